#!/usr/bin/env bash
# Builds the engine's backend for NVIDIA GPUs as a library that a worker loads beside the CPU's (quantize/backends.py), for
# the package llmd-cuda. No GPU, driver or installed CUDA is needed: the compiler and the libraries are the pinned wheels
# of packaging/cuda.lock. Prints the folder that holds libggml-cuda.so and, under wheels/, what it was linked with.
#
#   CUDA_ARCHITECTURES=90-real packaging/build_cuda.sh      as CMake writes them; several with ; between: each takes half an
#                                                           hour on two cores
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # say, die, with_progress, digest, unpack_sdist

ARCHITECTURES=${CUDA_ARCHITECTURES:-90-real}
PLATFORMS=(manylinux_2_34_x86_64 manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_18_x86_64 manylinux2014_x86_64
    manylinux_2_17_x86_64 manylinux2010_x86_64 manylinux_2_12_x86_64)
FLAGS=(-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU=OFF -DGGML_CUDA=ON -DGGML_CUDA_NCCL=ON -DCMAKE_BUILD_TYPE=Release
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF
    # where the package has CUDA's libraries, from where it has this one
    '-DCMAKE_INSTALL_RPATH=$ORIGIN/../../../../../cuda' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON)

fetch_wheels() {
    local each platforms=()
    for each in "${PLATFORMS[@]}"; do platforms+=(--platform "$each"); done
    say "downloading CUDA's compiler and libraries (720 MB)"
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --python-version 3.11 "${platforms[@]}" --dest "$1" -r "$ROOT/packaging/cuda.lock" </dev/null >&2
}

# make_toolkit WHEELS FOLDER SOURCE: CUDA as CMake expects it, with a driver that has names and nothing else
make_toolkit() {
    local wheel cuda=$2/nvidia/cu13
    for wheel in "$1"/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$2"; done
    chmod +x "$cuda"/bin/* "$cuda"/nvvm/bin/*
    ln -s lib "$cuda/lib64"
    for name in cudart.so.13 cublas.so.13 cublasLt.so.13; do ln -s "lib$name" "$cuda/lib/lib${name%.13}"; done
    ln -s libnccl.so.2 "$2/nvidia/nccl/lib/libnccl.so"
    mkdir -p "$cuda/lib/stubs"
    grep -rohE '\bcu(Mem|Device|Get)[A-Za-z]+\(' "$3/ggml-cuda" | tr -d '(' | sort -u | sed 's/.*/void &(void) {}/' |
        gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -x c -o "$cuda/lib/stubs/libcuda.so" -
}

build() {
    local folder=$1 work=$2 source cuda
    source=$work/src/vendor/llama.cpp
    cuda=$work/toolkit/nvidia/cu13
    unpack_sdist "$work/src"
    if [[ ! -e $work/toolkit.done ]]; then
        rm -rf "$work/toolkit" "$work/wheels"
        mkdir -p "$work/wheels"
        fetch_wheels "$work/wheels"
        make_toolkit "$work/wheels" "$work/toolkit" "$source/ggml/src"
        touch "$work/toolkit.done"
    fi
    say "compiling the backend for $ARCHITECTURES (half an hour on 2 cores; only once on this machine)"
    export CUDA_PATH=$cuda CUDACXX=$cuda/bin/nvcc
    with_progress "configuring" "$work/configure.log" cmake -G Ninja -S "$source" -B "$work/build" "${FLAGS[@]}" \
        -DCMAKE_CUDA_ARCHITECTURES="$ARCHITECTURES" -DCUDAToolkit_ROOT="$cuda" -DNCCL_ROOT="$work/toolkit/nvidia/nccl" \
        -DCMAKE_CUDA_FLAGS="-Xcompiler=-ffile-prefix-map=$source=." -DCMAKE_CXX_FLAGS="-ffile-prefix-map=$source=." \
        -DCMAKE_SHARED_LINKER_FLAGS="-L$cuda/lib/stubs"
    with_progress "compiling the backend" "$work/build.log" cmake --build "$work/build" --target ggml-cuda
    rm -rf "$folder"
    mkdir -p "$folder"
    strip --strip-unneeded -o "$folder/libggml-cuda.so" "$work/build/bin/libggml-cuda.so"
    ! grep -qF "$work" "$folder/libggml-cuda.so" || die "it names the folder of its build"
    mv "$work/wheels" "$folder/"
    rm -rf "$work"
}

main() {
    local folder
    folder=$CACHE/cuda/$LLAMA_VERSION-$(digest "$ARCHITECTURES ${FLAGS[*]} $(<"$ROOT/packaging/cuda.lock")")
    for tool in cmake ninja gcc strip; do command -v $tool >/dev/null || die "apt install cmake ninja-build g++"; done
    lock_cache cuda
    [[ -e $folder/wheels ]] || build "$folder" "$CACHE/work/cuda-$(digest "$ARCHITECTURES")"
    echo "$ARCHITECTURES" >"$folder/architectures" # which GPUs it has code for (quantize/backends.py)
    echo "$folder"
}

main
