#!/usr/bin/env bash
# Builds llama.cpp's own server from the source that the engine is built from, with the same flags, so that `make bench`
# compares two servers and not two builds. The last line on stdout is the path of llama-server; llama-batched-bench,
# llama-quantize and the libraries lie beside it. Kept in ~/.cache/llmd/peer/VERSION-HASH_OF_THE_FLAGS.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # say, die, with_progress, unpack_sdist, safe_flags

TARGETS=(llama-server llama-batched-bench llama-quantize)
OPTIONS=(-DLLAMA_BUILD_SERVER=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON) # the libraries are found beside the program, wherever it is copied

# The machine's cmake and ninja, or the package index's.
find_tools() {
    local tools=$CACHE/work/tools
    if command -v cmake >/dev/null && command -v ninja >/dev/null; then return; fi
    if ! "$tools/bin/cmake" --version >/dev/null 2>&1 || [[ ! -x $tools/bin/ninja ]]; then
        say "installing cmake and ninja for this build (a few seconds)"
        "$PYTHON" -m venv --clear "$tools"
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check cmake==4.4.4 ninja==1.13.2 </dev/null
    fi
    PATH=$tools/bin:$PATH
}

build_peer() {
    local folder=$1 flags=$2 work=$CACHE/work/peer-${1##*/}
    unpack_sdist "$work/src"
    find_tools
    say "compiling llama-server (about 6 minutes on 2 cores, 1 on 16; only once on this machine)"
    # shellcheck disable=SC2086 # the flags are words
    with_progress "configuring llama-server" "$work/configure.log" \
        cmake -G Ninja -S "$work/src/vendor/llama.cpp" -B "$work/build" $flags "${OPTIONS[@]}"
    with_progress "compiling llama-server" "$work/build.log" cmake --build "$work/build" --target "${TARGETS[@]}"
    rm -rf "$folder"
    mkdir -p "${folder%/*}"
    mkdir "$work/out"
    cp -a "$work/build/bin" "$work/out/bin"
    mv "$work/out" "$folder"
    rm -rf "$work"
}

main() {
    local flags folder
    lock_cache
    flags=$(safe_flags)
    folder=$CACHE/peer/$LLAMA_VERSION-$(digest "$flags ${OPTIONS[*]}")
    if [[ ! -x $folder/bin/llama-quantize ]]; then build_peer "$folder" "$flags"; fi
    "$folder/bin/llama-server" --version >/dev/null 2>&1 || die "$folder/bin/llama-server does not start; remove its folder and try again"
    echo "$folder/bin/llama-server"
}

main
