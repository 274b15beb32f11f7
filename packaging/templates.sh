#!/usr/bin/env bash
# Prints the folder of the chat templates that come with llama.cpp's source; tests hold ours to transformers on them.
# Taken once from the source that the engine is built from, and kept in ~/.cache/llmd/templates/VERSION.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # LLAMA_VERSION, CACHE, fetch_sdist

folder=$CACHE/templates/$LLAMA_VERSION
if [[ ! -d $folder ]]; then
    file=$(fetch_sdist)
    rm -rf "$folder.part"
    mkdir -p "$folder.part"
    tar -xzf "$file" --strip-components=5 -C "$folder.part" "llama_cpp_python-$LLAMA_VERSION/vendor/llama.cpp/models/templates"
    mv "$folder.part" "$folder"
fi
echo "$folder"
