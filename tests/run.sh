#!/usr/bin/env bash
# Run all tests: style and types while the engines are made, unit tests side by side, the report in a browser, then
# what starts services here, then one after the other the lab and its faults.
# The tests start the lab themselves and stop it at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
base=${PYTHON:-python3}
python=.venv/bin/python
said=$(mktemp)
trap 'rm -f "$said"' EXIT
# Beside the engines. Where the lab's packages cannot come, the lab says why.
"$base" tests/lab/lab.py install --log /dev/null >/dev/null 2>&1 &
packages=$!
make --no-print-directory PYTHON="$base" lint >"$said" 2>&1 &
lint=$!
tools/setup.sh
engines=$?
wait "$packages"
wait "$lint"
lint=$?
cat "$said"
[ "$lint" = 0 ] || exit "$lint"
[ "$engines" = 0 ] || {
  [ "${CI:-}" = true ] && { echo "CI needs the CPU build of vLLM and AISBench, and they could not be made" >&2; exit 1; }
  echo "the tests that need them will be skipped"
}
failed=0
took="set-up, style and types $SECONDS s"
phase() { # NAME COMMAND...: run it, remember its exit code and its time
  local name=$1 began=$SECONDS
  shift
  "$@" || failed=1
  took+=", $name $((SECONDS - began)) s"
}
phase unit $python -m pytest -q -n 2 --dist worksteal tests/unit
# In a process of its own: the driver of the browser keeps an event loop, which asyncio tests cannot share.
phase browser $python -m pytest -q tests/browser
# These wait more than they compute; a file's tests stay together.
phase local $python -m pytest -q -n 2 --dist loadfile --durations=5 tests/local
phase "lab and faults" $python -m pytest --durations=10 tests/lab tests/faults
echo "$took: $SECONDS s in all"
exit $failed
