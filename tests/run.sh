#!/usr/bin/env bash
# Run all tests: style, types and the report in a browser while the engines are made; then the lab and its faults, and
# beside them unit tests and what starts services here. What runs beside something else prints when it is over.
# The tests start the lab themselves and stop it at the end.
# What failed among others, where many processes share two processors, is run once more alone: it is named at the end, and
# more than three such tests, or one that fails again, are a failure. Unit tests have no second look.
# Printed at the end: how many lines of jobs/ and containers/ the unit and whole tests ran. COVERAGE=all measures the
# other tests as well, in the lab too, which takes half as long again (Python 3.11 counts lines by tracing). CI leaves it
# out: it takes as long as those tests themselves.
set -uo pipefail
cd "$(dirname "$0")/.."
base=${PYTHON:-$(tools/python.sh)}
python=.venv/bin/python
output=$(mktemp -d) # of what runs beside
export COVERAGE_FILE=$output/coverage
measured="$python -m coverage run -m pytest"
further="$python -m pytest"
if [ "${COVERAGE:-}" = all ]; then further=$measured; elif [ "${CI:-}" = true ]; then measured=$further; fi
# Beside the first tests, which need none of it, each in a process group of its own: Ctrl-C does not reach them.
# Where the lab's packages cannot come, the lab says why.
setsid "$base" tests/lab/lab.py install --log /dev/null >/dev/null 2>&1 &
packages=$!
trap 'for group in $(jobs -pr); do kill -- "-$group" 2>/dev/null || kill "$group"; done; rm -r "$output"' EXIT
failed=0
took=
once=
phase() { # NAME COMMAND...: run it, remember its exit code and its time
  local name=$1 began=$SECONDS
  shift
  "$@" || failed=1
  took+="$name $((SECONDS - began)) s, "
}
phase "the tool's environment" make --no-print-directory PYTHON="$base" .venv/made
look() { # LANE ARGUMENTS...: run tests with real processes; what failed is noted for the second look
  nice -n "$([ "$1" = local ] && echo 5 || echo 0)" env --default-signal=INT $further -o cache_dir="$output/cache.$1" "${@:2}"
  local code=$?
  [ "$code" = 1 ] || return "$code"
  touch "$output/again.$1"
}
second_look() { # run alone what failed, and say its names
  local lane found names all=0
  for lane in "$output"/again.*; do
    found=$output/cache.${lane##*.}
    names=$($python -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' "$found/v/cache/lastfailed") || return 1
    all=$((all + $(wc -l <<<"$names")))
    [ "$all" -le 3 ] || return 1
    $further -o cache_dir="$found" --last-failed --last-failed-no-failures none \
      tests/local tests/conformance tests/lab tests/faults || return 1
    once+=$names$'\n'
  done
}
[ "$failed" = 0 ] || exit 1
setsid tools/setup.sh >"$output/setup" 2>&1 &
engines=$!
# In a process of its own: the driver of the browser keeps an event loop, which asyncio tests cannot share.
# It may call apt-get, which runs once at a time. Style and types need one processor.
{
  tail --pid="$packages" -f /dev/null
  exec env --default-signal=INT $python -m pytest -q tests/browser
} >"$output/browser" 2>&1 &
browser=$!
phase "style and types" make --no-print-directory PYTHON="$base" lint
[ "$failed" = 0 ] || exit 1
began=$SECONDS
wait "$engines"
code=$?
took+="the rest of the set-up $((SECONDS - began)) s, "
cat "$output/setup"
[ "$code" = 0 ] || {
  [ "${CI:-}" = true ] && { echo "CI needs the CPU build of vLLM and AISBench, and they could not be made" >&2; exit 1; }
  echo "the tests that need them will be skipped"
}
# Neither the lab nor what starts services here keeps two processors busy alone, and the lab takes longest: it begins
# first. It has its limits of time, so that it goes first where both want the processor. Ctrl-C does reach it: it ends the lab.
look lab --durations=10 tests/lab tests/faults >"$output/lab" 2>&1 &
lab=$!
phase unit nice -n 5 $measured -q -n 2 --dist worksteal tests/unit tests/whole
phase "the rest of the browser" wait "$browser"
cat "$output/browser"
phase local look local -q -n 5 --dist worksteal --durations=15 tests/local tests/conformance
phase "the rest of the lab and faults" wait "$lab"
cat "$output/lab"
compgen -G "$output/again.*" >/dev/null && phase "the second look" second_look
[ "$measured" = "$python -m pytest" ] || $python -m coverage combine --quiet
[ "$measured" = "$python -m pytest" ] || echo "lines run by the ${COVERAGE:+lab, local, }unit and whole tests: $($python -m coverage report -i --format=total) %"
[ -z "$once" ] || printf 'FAILED AMONG OTHERS, passed alone (a defect, to be mended: CONTRIBUTING.md):\n%s' "$once"
echo "$took$SECONDS s in all"
exit $failed
