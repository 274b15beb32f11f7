#!/usr/bin/env bash
# Everything that the package is built from and that is not in this tree, in .build/wheelhouse: the index's wheels, each
# held against packaging/deb.lock, and under built/ what is compiled here: the engine for many kinds of CPU, the bindings
# to systemd. The only step of the package's build that needs a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

HOUSE=$PWD/.build/wheelhouse
PIP=(.venv/bin/python -m pip)
STAMP=$(cat packaging/deb.lock packaging/requirements-deb.txt packaging/build_portable.sh packaging/build_llama.sh packaging/patches/*.patch | sha256sum)

[[ -f $HOUSE/stamp && $(<"$HOUSE/stamp") == "$STAMP" ]] && exit 0
rm -rf "$HOUSE"
mkdir -p "$HOUSE/built"
"${PIP[@]}" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes --dest "$HOUSE" \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none --platform manylinux_2_36_x86_64 \
    --platform manylinux_2_34_x86_64 --platform manylinux_2_31_x86_64 --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -r packaging/deb.lock
pkg-config --exists libsystemd || { echo "wheelhouse: apt install libsystemd-dev pkg-config" >&2 && exit 1; }
"${PIP[@]}" wheel --quiet --disable-pip-version-check --no-deps --no-binary systemd-python --require-hashes --wheel-dir "$HOUSE/built" \
    -r packaging/requirements-deb.txt
engine=$(packaging/build_portable.sh)
cp "$engine" "$HOUSE/built/"
echo "$STAMP" >"$HOUSE/stamp"
