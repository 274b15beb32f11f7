#!/usr/bin/env bash
# Makes .build/torch, the interpreter that converts Hugging Face models in a checkout: torch for CPUs, transformers, and
# llama.cpp's converter from llama-cpp-python's source. In the package llmd-torch it is /usr/lib/llmd-torch.
#
#   packaging/setup_torch.sh      `make setup-torch`
#
# It is kept in ~/.cache/llmd/torch and linked here, so another checkout does not install it again.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # say, die, with_progress, digest, lock_cache

REQUIREMENTS=$ROOT/packaging/requirements-torch.lock # requirements-torch.txt, with hashes
LINK=$ROOT/.build/torch

install() {
    local folder=$1 log=$ROOT/.build/torch.log
    rm -rf "$folder"
    mkdir -p "${folder%/*}" "$ROOT/.build"
    "$PYTHON" -m venv --without-pip "$folder"
    say "installing torch and transformers (250 MB, a minute on a good line; only once on this machine)"
    PROGRESS_TOTAL=$(grep -c == "$REQUIREMENTS") with_progress "installing packages" "$log" \
        "$PYTHON" -m pip --python "$folder/bin/python" install --disable-pip-version-check --no-deps \
        --progress-bar off --require-hashes -r "$REQUIREMENTS"
    packaging/converter.sh "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    "$folder/bin/python" -P -c 'import conversion, torch, transformers' || die "what was installed cannot be imported"
    touch "$folder/whole"
}

cd "$ROOT"
[[ -x $PYTHON ]] || die "make setup comes first"
folder=$CACHE/torch/$(digest "$("$PYTHON" --version)$LLAMA_VERSION$(<"${BASH_SOURCE[0]}")$(<"$REQUIREMENTS")$(<packaging/converter.sh)")
lock_cache torch
[[ -e $folder/whole ]] || install "$folder"
mkdir -p .build
ln -sfn "$folder" "$LINK"
say "ready to convert models"
