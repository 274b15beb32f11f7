#!/usr/bin/env bash
# The fast tests, in two processes: beside those that mostly wait for a daemon run, with what they leave of the
# processors, those that compute. What these say comes last.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

computes=(tests/daemon/{admin,audit,engine,gpus,identity,models,planning} tests/quantize tests/test_*.py)
run=(.venv/bin/python -P -m pytest -m "not slow" --durations=5)
said=$(mktemp)
nice -n 10 "${run[@]}" -p no:cacheprovider "${computes[@]}" >"$said" 2>&1 </dev/null &
beside=$!
trap 'rm -f "$said"' EXIT
trap 'kill "$beside" 2>/dev/null; exit 130' INT TERM

"${run[@]}" "${computes[@]/#/--ignore=}"
waiting=$?
wait "$beside"
computing=$?
cat "$said"
exit $((waiting ? waiting : computing))
