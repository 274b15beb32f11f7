#!/usr/bin/env bash
# Builds the engine's wheel for unknown servers: the CPU backend as one library a generation of CPUs, of which a worker
# loads the one that fits (daemon/machine/cpu.py). Prints the wheel's path. `make setup` does not use it; the package does.
#
# Left out of llama.cpp's variants: AMX, which hypervisors show and do not carry out, those with BF16, which gcc 12 does
# not compile, and those that differ little from a neighbour.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # say, die, with_progress, digest, unpack_engine

VARIANTS=(x64 haswell skylakex icelake alderlake)
FLAGS='-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DLLAVA_BUILD=OFF -DGGML_OPENMP=ON'
PYTHON=${PORTABLE_PYTHON:-$PYTHON}

# keep_variants FILE: of the CPU variants in ggml's CMakeLists.txt ours only
keep_variants() {
    local wanted
    wanted=$(IFS='|' && echo "${VARIANTS[*]}")
    awk -v wanted="^($wanted)\$" '
        match($0, /ggml_add_cpu_backend_variant\(([a-z0-9]+)[ )]/) && /AVX|SSE|\(x64\)|F16C/ {
            name = $0; sub(/.*variant\(/, "", name); sub(/[ )].*/, "", name)
            if (name !~ wanted) { print "#" $0; next }
        }
        { print }' "$1" >"$1.new"
    mv "$1.new" "$1"
}

# The install rules of the Python package do not know the variants: they are put in by hand, and find the engine's other
# libraries beside them instead of where they were built.
add_variants() {
    "$PYTHON" - "$1" "$2"/bin/libggml-cpu-*.so <<'PY'
import base64, hashlib, sys, zipfile
from pathlib import Path

wheel, *libraries = map(Path, sys.argv[1:])
built = str(libraries[0].parent).encode() + b":"
out = wheel.with_suffix(".new")
with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
    record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
    lines = old.read(record).decode().splitlines()
    def put(name, data, mode):
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        new.writestr(info, data)
    for name in sorted(set(old.namelist()) - {record}):
        put(name, old.read(name), old.getinfo(name).external_attr >> 16)
    for file in libraries:
        data, name = file.read_bytes().replace(built, b"$ORIGIN".ljust(len(built), b"\0")), f"llama_cpp/lib/{file.name}"
        assert built[:-1] not in data, f"{file.name} names where it was built"
        put(name, data, 0o755)
        hash_ = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={hash_},{len(data)}")
    put(record, ("\n".join(lines) + "\n").encode(), 0o644)
out.replace(wheel)
PY
}

build() {
    local folder=$1 work=$2 wheel
    unpack_engine "$work/src"
    [[ -e $work/kept ]] || { keep_variants "$work/src/vendor/llama.cpp/ggml/src/CMakeLists.txt" && touch "$work/kept"; }
    rm -rf "$work/out"
    say "compiling the engine for ${#VARIANTS[@]} kinds of CPU (about 8 minutes on 2 cores; only once on this machine)"
    # no path of this machine in what is shipped
    CFLAGS="-ffile-prefix-map=$work/src=." CXXFLAGS="-ffile-prefix-map=$work/src=." CMAKE_ARGS=$FLAGS \
        with_progress "compiling the engine" "$work/build.log" \
        "$PYTHON" -m pip wheel --verbose --disable-pip-version-check --no-deps --wheel-dir "$work/out" \
        --config-settings=build-dir="$work/build" "$work/src"
    wheel=$(echo "$work"/out/*.whl)
    [[ $(compgen -G "$work/build/bin/libggml-cpu-*.so" | wc -l) == "${#VARIANTS[@]}" ]] ||
        die "not every variant was built: $(echo "$work"/build/bin/libggml-cpu-*.so)"
    add_variants "$wheel" "$work/build"
    mkdir -p "$folder"
    mv "$wheel" "$folder/"
    rm -rf "$work"
}

main() {
    local folder
    folder=$CACHE/portable/$LLAMA_VERSION-$(digest "$FLAGS ${VARIANTS[*]} $(<"${BASH_SOURCE[0]}")$(patches)")
    lock_cache
    compgen -G "$folder/*.whl" >/dev/null || build "$folder" "$CACHE/work/portable"
    echo "$folder"/*.whl
}

main
