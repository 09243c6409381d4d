"""How long does it take to merge 10,000 rows of many sweeps into one table?

    python benchmarks/collect_rows.py            100 sweeps of 100 rows, in a temporary directory

Printed: seconds of processor time of `read_runs` and `collect` (best of three, files in the page cache; on a free
machine the same as by the clock), beside those that opening and parsing the same row files takes alone, and their
ratio. Goal: under 2 s, exit code 1 where it is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from jobs.core.rundir import SweepDir
from jobs.core.tasks import write_config
from jobs.results.gather import collect, read_runs
from jobs.results.row import make_row
from jobs.sweep import compose, road
from jobs.sweep.record import as_json

GOAL_S = 2.0


def write_sweeps(root: Path, sweeps: int, rows: int) -> list[Path]:
    [point] = road.plan(compose.expand(["cluster=local"])).points
    figures = {name: 12.345 for name in ("output_tok_per_s", "ttft_ms_p50", "tpot_ms_p50", "e2el_ms_p50", "load_s")}
    row = make_row(point.point, point.service, point.config, valid=True, nodes=2, job_id="7", attempt=1, **figures)
    record = as_json(road.plan(compose.expand(["cluster=local"])))
    for number in range(sweeps):
        found = SweepDir(root / f"sweep-{number}")
        names = [f"{number:04}{n:06}" for n in range(rows)]
        points = [
            {"point": name, "service": point.service, "overrides": [], "values": {"bench.concurrency": n}}
            for n, name in enumerate(names)
        ]
        found.path.mkdir()
        found.plan.write_text(json.dumps(record | {"points": points, "swept": ["bench.concurrency"]}))
        for name in names:
            found.point(name).path.mkdir(parents=True)
            found.point(name).row.write_text(json.dumps(row | {"point": name}, indent=1))
        write_config(found, names[0], point.config)
    return [root / f"sweep-{number}" for number in range(sweeps)]


def parse_alone(paths: list[Path]) -> float:
    files = [file for path in paths for file in path.glob("points/*/row.json")]
    began = time.process_time()
    for file in files:
        with file.open("rb") as opened:
            json.loads(opened.read())
    return time.process_time() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_sweeps(Path(folder), options.sweeps, options.rows)
        ours, alone = [], []
        for _ in range(3):
            alone.append(parse_alone(paths))
            began = time.process_time()
            runs, skipped = read_runs(paths)
            table = collect(runs)
            ours.append(time.process_time() - began)
    assert len(table) == options.sweeps * options.rows
    assert not skipped
    ratio = min(ours) / min(alone)
    print(f"{len(table)} rows: {min(ours):.2f} s; parsing alone {min(alone):.2f} s; {ratio:.1f} x")
    return 0 if min(ours) < GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
