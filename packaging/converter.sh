#!/usr/bin/env bash
# Puts llama.cpp's converter (MIT) from llama-cpp-python's source into a folder of Python packages: conversion/, gguf/ and
# their licence.
#
#   packaging/converter.sh FOLDER
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # fetch_sdist

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tar -xzf "$(fetch_sdist)" --strip-components=3 -C "$scratch" --wildcards '*/vendor/llama.cpp/conversion' \
    '*/vendor/llama.cpp/gguf-py/gguf' '*/vendor/llama.cpp/gguf-py/pyproject.toml' '*/vendor/llama.cpp/LICENSE'
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$scratch/gguf-py/pyproject.toml")
rm -rf "${1:?}/conversion" "$1/gguf" "$1"/gguf-*.dist-info "$scratch/gguf-py/gguf/scripts"
mv "$scratch/conversion" "$scratch/gguf-py/gguf" "$1/"
# transformers asks for its version
mkdir "$1/gguf-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: gguf\nVersion: %s\nLicense: MIT\n' "$version" >"$1/gguf-$version.dist-info/METADATA"
mv "$scratch/LICENSE" "$1/gguf-$version.dist-info/"
