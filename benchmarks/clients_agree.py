"""Do the three clients agree? One real vLLM service of this machine, measured by each in turn.

    .venv/bin/python -m benchmarks.clients_agree [--rounds 3] [--requests 300] [--concurrency 8]

Rounds are interleaved (window, vllm_bench, ais_bench, window, ...), so that what else the machine does meets all
three. Printed: the median of each figure, its smallest and largest round, and its ratio to the window client's; then
(from two rounds on) which means differ by more than the noise of the rounds, by agreement.py. A client sees the first
token up to 30 ms late where it shares two cores with the engine, so that short prompts tell less.
AISBench's prompts are longer than asked: it decodes random token ids and encodes the text again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.agreement import differ

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = ("window", "vllm_bench", "ais_bench")
FIGURES = (
    "output_tok_per_s",
    "request_per_s",
    "ttft_ms_p50",
    "ttft_ms_mean",
    "tpot_ms_p50",
    "tpot_ms_mean",
    "e2el_ms_p50",
)


def main() -> int:
    """Measure and print. Exit code 1 if a row is invalid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        words = [
            *("experiment=demo", "parallel.max_model_len=8192", f"bench.concurrency={options.concurrency}"),
            *(f"bench.num_requests={options.requests}", f"bench.seed={','.join(map(str, range(options.rounds)))}"),
            *(f"bench.client={','.join(CLIENTS)}", f"results.root={root}", "results.name=agree"),
        ]
        subprocess.run([sys.executable, str(ROOT / "launch.py"), "-m", *words], cwd=ROOT, check=False)
        table = pd.read_csv(Path(root) / "agree" / "table.csv")
    bad = table[~table["valid"]]
    for reason in bad["invalid_reason"]:
        print(f"invalid: {reason}")
    good = {name: table[table["valid"] & (table["bench.client"] == name)] for name in CLIENTS}
    print(f"{'':14}" + "".join(f"{name:>34}" for name in CLIENTS))
    for figure in FIGURES:
        cells, base = [], good["window"][figure].median()
        for name in CLIENTS:
            values = good[name][figure]
            spread = f"{values.median():9.2f} [{values.min():.2f} - {values.max():.2f}]"
            cells.append(f"{spread} x{values.median() / base:.2f}")
        print(f"{figure:14}" + "".join(f"{cell:>34}" for cell in cells))
        if min(map(len, good.values())) > 1:
            for client, said in differ({name: rows[figure].tolist() for name, rows in good.items()}, "window").items():
                print(f"  {client}: {said}")
    return 1 if len(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
