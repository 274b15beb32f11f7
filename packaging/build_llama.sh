#!/usr/bin/env bash
# Builds the wheel of llama-cpp-python for this machine, installs it into .venv and lets it generate a few tokens.
#
#   packaging/build_llama.sh [MODEL.gguf]      with a model, the installed wheel is tried on it
#
# The package index has no wheels of llama-cpp-python, and its default build (-march=native) dies with SIGILL at the first
# token on servers whose hypervisor shows AMX and does not carry it out. So every instruction set is named here, AMX not
# among them. Wheels are kept in ~/.cache/llmd/wheels/VERSION-HASH_OF_THE_FLAGS: another checkout does not build again.
# An interrupted build goes on where it was. build_peer.sh takes its functions from this file.
set -euo pipefail
trap 'exit 130' INT # not a failure to be explained

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$ROOT/.venv/bin/python
CACHE=${XDG_CACHE_HOME:-${HOME:-$ROOT/.build}/.cache}/llmd
LLAMA_VERSION=0.3.36
LLAMA_SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
PATCHES=$ROOT/packaging/patches

# --- words

say() { printf 'llmd setup: %s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# with_progress WHAT LOG COMMAND...: runs it with its output in LOG. A terminal sees one line that counts, a file a line
# each 30 seconds. The command stays in the foreground: Ctrl-C ends it and its compilers.
with_progress() {
    local what=$1 log=$2
    shift 2
    : >"$log"
    if ! "$@" </dev/null 2>&1 | show_progress "$what" "$log"; then
        tail -n 40 "$log" | cut -c 1-300 >&2
        die "$what failed; the whole log is $log"
    fi
}

# Reads a build's output: `[n/m]` is ninja's count, `Collecting` one of the PROGRESS_TOTAL packages that pip looks at.
show_progress() {
    local what=$1 log=$2 line rc=0 at=0 of=${PROGRESS_TOTAL:-0} begin=$SECONDS shown=$SECONDS every=30 back='' end='\n'
    if [[ -t 2 ]]; then every=1 back='\r' end='\033[K'; fi
    exec 3>>"$log"
    while ((rc == 0 || rc > 128)); do
        rc=0
        IFS= read -r -t 1 line || rc=$?
        printf '%s' "$line" >&3
        ((rc > 0)) || printf '\n' >&3
        if [[ $line =~ ^[[:space:]]*\[([0-9]+)/([0-9]+)\] ]]; then
            at=${BASH_REMATCH[1]} of=${BASH_REMATCH[2]}
        elif [[ $line =~ ^(Collecting|Requirement\ already)\  ]]; then
            at=$((at + 1))
        fi
        if ((SECONDS - shown >= every)); then
            shown=$SECONDS
            printf "$back"'llmd setup: %s: %d%%, %d:%02d'"$end" "$what" \
                $((of > 0 ? 100 * (at < of ? at : of) / of : 0)) $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60)) >&2
        fi
    done
    if [[ -t 2 ]]; then printf '\r\033[K' >&2; fi
    say "$what: done in $(((SECONDS - begin) / 60)):$(printf '%02d' $(((SECONDS - begin) % 60)))"
}

# --- what to build

# cpu_has FEATURE...: does this machine have all of them?
cpu_has() {
    local feature
    for feature; do
        [[ " $CPU_FEATURES " == *" $feature "* ]] || return 1
    done
}

# cmake_flags [no-avx512]: the instruction sets that this machine has, in a fixed order (their text is hashed)
cmake_flags() {
    local set flags=-DGGML_NATIVE=OFF
    for set in SSE42:sse4_2 AVX:avx AVX2:avx2 FMA:fma F16C:f16c BMI2:bmi2; do
        if cpu_has "${set#*:}"; then flags+=" -DGGML_${set%:*}=ON"; else flags+=" -DGGML_${set%:*}=OFF"; fi
    done
    # ggml's AVX512 files do not compile without AVX2, FMA and F16C
    # (Linux writes VBMI with and without the underscore, by version)
    if [[ ${1:-} != no-avx512 ]] && cpu_has avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni &&
        { cpu_has avx512vbmi || cpu_has avx512_vbmi; }; then
        flags+=" -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON"
    fi
    echo "$flags"
}

# safe_flags: as cmake_flags, without AVX512 where a wheel with it has crashed on this machine before
safe_flags() {
    local flags
    flags=$(cmake_flags)
    if [[ -e $(wheel_folder "$flags")/crashed ]]; then flags=$(cmake_flags no-avx512); fi
    echo "$flags"
}

digest() { printf '%s' "$*" | sha256sum | cut -c 1-12; }

# the multimodal library is not used, and is a fifth of the build
wheel_flags() { echo "$1 -DLLAVA_BUILD=OFF"; }

wheel_folder() { echo "$CACHE/wheels/$LLAMA_VERSION-$(digest "$(wheel_flags "$1")$(patches)")"; }

# what we change in llama.cpp: every patch says why
patches() { cat "$PATCHES"/*.patch; }

# lock_cache [WHAT]: two checkouts that build the same at once would write over each other's objects.
lock_cache() {
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock${1:+-$1}"
    if ! flock -n 9; then
        say "waiting for another build on this machine"
        flock 9
    fi
}

# --- steps

# fetch_sdist: the source, downloaded once for all builds, its hash checked; prints the file
fetch_sdist() {
    local file=$CACHE/sdist/llama_cpp_python-$LLAMA_VERSION.tar.gz
    if ! is_sdist "$file"; then
        say "downloading the source of llama-cpp-python $LLAMA_VERSION (77 MB, usually less than a minute)"
        mkdir -p "$CACHE/sdist/part"
        "$PYTHON" -m pip download --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
            --dest "$CACHE/sdist/part" "llama-cpp-python==$LLAMA_VERSION" </dev/null >&2
        is_sdist "$CACHE/sdist/part/${file##*/}" || die "the downloaded ${file##*/} is not the one pinned in $0 (sha256)"
        mv "$CACHE/sdist/part/${file##*/}" "$file"
    fi
    echo "$file"
}

# unpack_sdist FOLDER
unpack_sdist() {
    local file
    [[ ! -d $1 ]] || return 0
    file=$(fetch_sdist)
    rm -rf "$1.part"
    mkdir -p "$1.part"
    tar -xzf "$file" --strip-components=1 -C "$1.part"
    mv "$1.part" "$1"
}

# unpack_engine FOLDER: the source with our patches
unpack_engine() {
    local patch
    [[ ! -d $1 ]] || return 0
    rm -rf "$1.unpatched"
    unpack_sdist "$1.unpatched"
    for patch in "$PATCHES"/*.patch; do
        # whatever repository the cache may lie in is none of git's business
        GIT_CEILING_DIRECTORIES=${1%/*} git -C "$1.unpatched" apply "$patch" || die "${patch##*/} does not fit llama-cpp-python $LLAMA_VERSION"
    done
    mv "$1.unpatched" "$1"
}

is_sdist() { [[ -f $1 ]] && sha256sum --check --status <<<"$LLAMA_SHA256  $1"; }

# make_wheel FLAGS: into the cache, unless it is there
make_wheel() {
    local folder work
    folder=$(wheel_folder "$1")
    work=$CACHE/work/wheel-${folder##*/}
    if compgen -G "$folder/*.whl" >/dev/null; then
        say "taking the engine's wheel from ${folder}"
        return
    fi
    unpack_engine "$work/src"
    rm -rf "$work/out"
    mkdir -p "$folder"
    say "compiling the engine (about 6 minutes on 2 cores, 1 on 16; only once on this machine)"
    say "flags: $(wheel_flags "$1")"
    # a build folder of our own: pip's would be thrown away when the build is interrupted
    CMAKE_ARGS=$(wheel_flags "$1") with_progress "compiling the engine" "$work/build.log" \
        "$PYTHON" -m pip wheel --verbose --disable-pip-version-check --no-deps --wheel-dir "$work/out" \
        --config-settings=build-dir="$work/build" "$work/src"
    mv "$work/out"/*.whl "$folder/"
    rm -rf "$work"
}

install_wheel() {
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$(wheel_folder "$1")"/*.whl
}

# A prompt of more than 32 tokens, so that the kernels for many tokens at once run too, then four tokens one by one.
SELF_TEST='
import sys
import llama_cpp.llama_cpp as lib
silent = lib.llama_log_callback(lambda *_: None)
lib.llama_log_set(silent, None)
lib.llama_backend_init()
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.n_ctx = 256
context = lib.llama_init_from_model(model, params) if model else sys.exit("the model does not load")
vocab, text = lib.llama_model_get_vocab(model), b"Once upon a time there was a small house in the forest. " * 4
tokens = (lib.llama_token * 128)()
n = lib.llama_tokenize(vocab, text, len(text), tokens, 128, True, False)
sampler = lib.llama_sampler_init_greedy()
for _ in range(4):
    if lib.llama_decode(context, lib.llama_batch_get_one(tokens, n)):
        sys.exit("llama_decode failed")
    tokens[0], n = lib.llama_sampler_sample(sampler, context, -1), 1
'

# try_wheel MODEL: in a child, as what is looked for kills the process
try_wheel() {
    (
        ulimit -c 0
        cd /
        exec "$PYTHON" -P -c "$SELF_TEST" "$1" </dev/null >&2
    )
}

# crashes MODEL: does the installed wheel die of a signal on it? Any other failure ends the script.
crashes() {
    local rc=0
    try_wheel "$1" || rc=$?
    case $rc in
        0) say "the engine generates tokens on this machine" && return 1 ;;
        132 | 134 | 135 | 136 | 139) say "the engine crashed on this machine (signal $((rc - 128)))" ;; # SIGILL, ABRT, BUS, FPE, SEGV
        *) die "the engine's self-test failed (exit code $rc)" ;;
    esac
}

main() {
    local flags
    lock_cache
    flags=$(safe_flags)
    make_wheel "$flags"
    install_wheel "$flags"
    if [[ -z ${1:-} ]] || ! crashes "$1"; then return; fi
    [[ $flags == *AVX512=ON* ]] || die "no build of the engine runs here; please report this machine's /proc/cpuinfo"
    say "building it again without AVX512"
    touch "$(wheel_folder "$flags")/crashed"
    flags=$(cmake_flags no-avx512)
    make_wheel "$flags"
    install_wheel "$flags"
    if crashes "$1"; then die "no build of the engine runs here; please report this machine's /proc/cpuinfo"; fi
}

CPU_FEATURES=$(grep -m 1 '^flags' /proc/cpuinfo || true)
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
