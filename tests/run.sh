#!/usr/bin/env bash
# Run all tests: unit tests side by side, the report in a browser, then what starts
# services here, then one after the other the lab and its faults.
# The tests start the lab themselves and stop it at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
# The lab's packages come while the engines are installed. Where they cannot come, the lab says why.
(python3 tests/lab/lab.py install --log /dev/null >/dev/null 2>&1) &
packages=$!
tools/setup.sh || {
  [ "${CI:-}" = true ] && { echo "CI needs the CPU build of vLLM and AISBench, and they could not be made" >&2; exit 1; }
  echo "the tests that need them will be skipped"
}
wait "$packages"
$python -m pytest -q -n 2 --dist worksteal tests/unit
unit=$?
# In a process of its own: the driver of the browser keeps an event loop, which asyncio tests cannot share.
$python -m pytest -q tests/browser
browser=$?
# These wait more than they compute; a file's tests stay together.
$python -m pytest -q -n 2 --dist loadfile --durations=5 tests/local
local=$?
$python -m pytest --durations=10 tests/lab tests/faults
lab=$?
exit $((unit | browser | local | lab))
