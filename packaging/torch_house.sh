#!/usr/bin/env bash
# Everything that the package llmd-torch is made of: the wheels of packaging/torch.lock and llama.cpp's converter. Prints
# the folder. Needs a network the first time; kept in ~/.cache/llmd/torch-house.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # say, die, digest, lock_cache

folder=$CACHE/torch-house/$LLAMA_VERSION-$(digest "$(<"$ROOT/packaging/torch.lock")$(<"$ROOT/packaging/converter.sh")")
platforms=()
for each in 2_36 2_34 2_28 2_17 2014; do platforms+=(--platform "manylinux${each/#2_/_2_}_x86_64"); done
lock_cache torch-house
if [[ ! -e $folder/whole ]]; then
    rm -rf "$folder"
    mkdir -p "$folder/converter"
    say "downloading torch and transformers (290 MB)"
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none "${platforms[@]}" --dest "$folder" \
        -r "$ROOT/packaging/torch.lock" </dev/null >&2
    "$ROOT/packaging/converter.sh" "$folder/converter" >&2
    cp "$ROOT/packaging/torch.lock" "$folder/"
    touch "$folder/whole"
fi
echo "$folder"
