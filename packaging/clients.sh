#!/usr/bin/env bash
# Installs the clients of docs/clients.md at their pinned versions: Python's in a virtual environment of their own, npm's
# beside them with a Node of their own, and each framework's in one more. The last line on stdout is their folder:
# bin/python, bin/node, node_modules, and NAME/bin/python of a framework. guidellm imports torch: .build/torch's.
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

install_frameworks() {
    local folder=$1 file name
    for file in "$VERSIONS"/framework-*.txt; do
        name=$(basename "${file#"$VERSIONS"/framework-}" .txt)
        "$folder/bin/uv" venv --quiet --clear --python "$PYTHON" "$folder/$name"
        "$folder/bin/uv" pip install --quiet --python "$folder/$name/bin/python" --no-deps --requirements "$file"
    done
}

# behind what guidellm has itself
borrow_torch() {
    local site='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$ROOT/packaging/setup_torch.sh" >&2
    "$ROOT/.build/torch/bin/python" -c "$site" >"$("$1/guidellm/bin/python" -c "$site")/torch.pth"
}

folder=$CACHE/clients/$(digest "$(cat "$VERSIONS"/*)$UV")
if [[ ! -f $folder/ready ]]; then
    say "installing the clients (1.4 GB, about two minutes; only once on this machine)"
    install_clients "$folder" </dev/null >&2
    install_frameworks "$folder" </dev/null >&2
    touch "$folder/ready"
fi
borrow_torch "$folder"
echo "$folder"
