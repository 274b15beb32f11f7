#!/usr/bin/env bash
# Installs the clients of docs/clients.md at their pinned versions: Python's in a virtual environment of their own, npm's
# beside them with a Node of their own. The last line on stdout is their folder: bin/python, bin/node, node_modules.
# Kept in ~/.cache/llmd/clients/HASH_OF_THE_VERSIONS.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # say, die, with_progress, digest

VERSIONS=$ROOT/packaging/clients
UV=uv==0.13.9

install_clients() {
    local folder=$1
    "$PYTHON" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$UV"
    "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --no-deps --requirements "$VERSIONS/requirements.txt"
    cp "$VERSIONS"/package*.json "$folder/"
    (cd "$folder" && PATH=$folder/bin:$PATH npm ci --silent --no-audit --no-fund --ignore-scripts)
}

folder=$CACHE/clients/$(digest "$(cat "$VERSIONS"/*)$UV")
if [[ ! -f $folder/ready ]]; then
    say "installing the clients (700 MB, about a minute; only once on this machine)"
    install_clients "$folder" </dev/null >&2
    touch "$folder/ready"
fi
echo "$folder"
