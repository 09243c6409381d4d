"""Is a node that became slow seen in the rows, and no healthy one? `python -m benchmarks.sick_node DIR OVERRIDES`

The rehearsal engine on two ranks. First a healthy sweep teaches the forecast; then one sweep holds a healthy start and
one with everything on the second rank `FACTOR` times as slow. Judged is the column `unexpected` of the second sweep.
With cluster=slurm it runs on the two nodes of tests/lab.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from jobs.core.files import read_json
from jobs.core.planfile import read_plan
from jobs.core.rundir import sweeps_in

FACTOR = 3
SICK = "engine.rehearsal.faults"
COMMON = (
    *("engine=simulator", "bench.canary=off", "bench.check_share=0", "bench.output_tokens=64", "bench.repeats=3"),
    *("bench.warmup_s=3", "bench.window_s=10", "preflight.enabled=false"),
)


def main() -> None:
    """Print the table of docs/tuning.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    root = options.root.absolute()
    faults = f"{SICK}=[],[{{rank:1,kind:slow,when:ready,factor:{FACTOR}}}]"
    for swept in (["bench.input_tokens=512,2048"], ["bench.input_tokens=1024", "parallel.seed=2", faults]):
        argv = [sys.executable, "launch.py", "-m", "bench.concurrency=4,8", *swept, *COMMON, *options.overrides]
        subprocess.run([*argv, f"results.root={root}"], check=False)
    print("| second rank | load | tokens/s | forecast | unexpected |\n|---|---|---|---|---|")
    sweep = sweeps_in(root)[-1]
    for point in read_plan(sweep).points:
        row = read_json(sweep.point(point.point).row)
        state = f"{FACTOR} x as slow" if point.values[SICK] else "healthy"
        said = f"{row['output_tok_per_s']:.0f} | {row['forecast_output_tok_per_s']} | {row['unexpected'] or '-'}"
        print(f"| {state} | {point.values['bench.concurrency']} | {said} |")


if __name__ == "__main__":
    main()
