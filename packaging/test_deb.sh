#!/usr/bin/env bash
# The package as an administrator meets it: built twice (the same bytes), looked through by lintian, and installed into a
# clean Debian 12 without a network: first token, remove, purge. Root, in mount, process and network namespaces of its own.
# llmd-cuda and llmd-torch are built and installed beside it from libraries and wheels that have the real ones' names and
# nothing in them. TORCH=FOLDER (packaging/torch_house.sh) MODEL_FOLDER=FOLDER: the real llmd-torch converts that model.
#
# The clean root is made once, in ~/.cache/llmd/debian. Each step's seconds are printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME=test-deb
source packaging/debian_root.sh # CACHE, BASE, say, fail, tools, base, inside
MODEL=$PWD/.build/models/SmolLM2-135M-Instruct.Q4_1.gguf
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

tools debhelper dpkg-dev lintian mmdebstrap gpg util-linux python3 python3-venv python3-pip
base
say "building"
first=$(TORCH="" packaging/deb.sh "$WORK/one")
say "building it again, elsewhere, llmd-cuda and llmd-torch"
.venv/bin/python tests/cuda_standins.py "$WORK/cuda"
[[ ${TORCH:-} ]] || .venv/bin/python tests/torch_standins.py "$WORK/torch"
mapfile -t built < <(CUDA=$WORK/cuda TORCH=${TORCH:-$WORK/torch} packaging/deb.sh "$WORK/another/folder")
second=${built[0]} cuda=${built[1]} torch=${built[2]}
cmp "$first" "$second" || fail "two builds differ"
say "looking it through"
lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$first" "$cuda" "$torch" || fail "lintian"
root=$WORK/debian
mkdir -p "$root"
tar -xf "$BASE" -C "$root"
cp "$first" "$root/srv/llmd.deb"
cp "$cuda" "$root/srv/llmd-cuda.deb"
cp "$torch" "$root/srv/llmd-torch.deb"
cp "$MODEL" "$root/srv/model.gguf"
.venv/bin/python - "$root/srv/Some-Model" <<'PY'
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from hf_folder import Folder
Folder().write(Path(sys.argv[1]))
PY
[[ ! ${TORCH:-} ]] || cp -r "$MODEL_FOLDER" "$root/srv/Real-Model"
cp packaging/test_deb_inside.sh "$root/srv/inside.sh"
say "reading it for paths of the build"
dpkg-deb --raw-extract "$first" "$WORK/raw"
dpkg-deb --raw-extract "$torch" "$WORK/raw/torch"
! grep -rlF -e "$WORK" -e "$CACHE" "$WORK/raw" || fail "these name a folder of the build"
rm -rf "$WORK/raw"
say "installing it"
inside "$root" /srv/inside.sh || fail "in the clean Debian"
say "the same bytes: $(sha256sum "$first" | cut -c 1-16), $(($(stat -c %s "$first") >> 20)) MiB"
