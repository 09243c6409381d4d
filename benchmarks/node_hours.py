"""Allocation-seconds per valid row: this tool beside the stock Hydra submitit launcher.

The same grid (2 max_model_len x 4 concurrencies), the same real vLLM on the same two-node Slurm of tests/lab, one
after the other. The stock way is one job a point and one engine start a job (benchmarks/stock_launcher.py); this tool
starts the engine once for each max_model_len. Seconds are Slurm's own (sacct, ElapsedRaw of each allocation).

The windows have the share of a load that they have on two Atlas nodes: with 40 minutes for the weights and 165 s for
a point (warm-up 15 s, window 120 s, drain) a window is 7 % of a load; the load is about 20 s here. With longer windows
the ratio is nearer to one: it is (2 L + 8 m) / (8 L + 8 m), for loads of L and windows of m seconds.

The stock way costs one job a row, whatever the grid: where time is short, --stock-loads 4 takes a sample of its jobs.

    pip install -e '.[bench]'  &&  python benchmarks/node_hours.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests/lab")]

import pandas as pd  # noqa: E402
from lab import Lab  # noqa: E402

from jobs.core.files import read_json  # noqa: E402
from jobs.core.rundir import SweepDir  # noqa: E402

NAME = "stock_launcher"


def fixed(options: argparse.Namespace) -> list[str]:
    """Return what is the same for every point, as overrides of this tool's config."""
    words = ["cluster=slurm", "engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1"]
    return [*words, f"bench.warmup_s={options.warmup_s}", f"bench.window_s={options.window_s}"]


def ours(lab: Lab, options: argparse.Namespace, folder: Path) -> tuple[int, float]:
    """Run the grid by this tool. Returns valid rows and allocation-seconds."""
    grid = [f"parallel.max_model_len={options.lengths}", f"bench.concurrency={options.loads}"]
    words = ["launch.py", "-m", *fixed(options), *grid, f"results.root={folder}", "results.name=ours"]
    run([sys.executable, *words], lab.env, folder / "ours.log")
    sweep = SweepDir(folder / "ours")
    valid = int(pd.read_parquet(sweep.table("parquet"))["valid"].sum())
    ids = [str(read_json(path)["job_id"]) for path in (sweep.path / "allocations").glob("*/*/job.json")]
    return valid, seconds(lab, ["-j", ",".join(ids)])


def stock(lab: Lab, options: argparse.Namespace, folder: Path) -> tuple[int, float]:
    """Run the grid by the stock launcher. Returns valid rows and allocation-seconds."""
    launcher = {
        "nodes": 2,
        "tasks_per_node": 1,
        "timeout_min": 30,
        "array_parallelism": 1,  # a service takes both nodes
        "name": NAME,
    }
    words = ["benchmarks/stock_launcher.py", "-m", "hydra/launcher=submitit_slurm"]
    words += [f"hydra.launcher.{key}={value}" for key, value in launcher.items()]
    words += ["+hydra.launcher.additional_parameters.exclusive=true"]
    words += [f"hydra.sweep.dir={folder / 'hydra'}", f"out={folder / 'stock'}"]
    words += ["fixed=[" + ",".join(f"'{word}'" for word in fixed(options)) + "]"]
    words += [f"max_model_len={options.lengths}", f"concurrency={options.stock_loads or options.loads}"]
    began = datetime.now()
    run([sys.executable, *words], lab.env, folder / "stock.log")
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "stock").glob("*/row.json")]
    return sum(row["valid"] for row in rows), seconds(lab, [f"--name={NAME}", f"-S{began:%Y-%m-%dT%H:%M:%S}"])


def run(argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
    """Run to the end, whatever the exit code: invalid rows count for nothing, and their seconds count."""
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(argv, env=dict(env), stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, check=False)


def seconds(lab: Lab, which: Sequence[str]) -> float:
    """Return the seconds of some allocations; accounting may lag behind the queue by a moment."""
    for _ in range(30):
        lines = lab.slurm("sacct", "-X", "-n", "-P", "-o", "JobIDRaw,State,ElapsedRaw", *which).splitlines()
        fields = [line.split("|") for line in lines]
        if fields and not any(state in ("RUNNING", "PENDING") for _, state, _ in fields):
            return float(sum(int(elapsed) for *_, elapsed in fields))
        time.sleep(1)
    return 0.0


def main() -> None:
    """Print allocation-seconds per valid row of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--loads", default="1,2,4,8")
    parser.add_argument("--stock-loads", help="loads that the stock launcher measures; by default the same")
    parser.add_argument("--warmup-s", type=float, default=0.5)
    parser.add_argument("--window-s", type=float, default=1.5)
    options = parser.parse_args()
    if not importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"):
        raise SystemExit("the stock launcher is not installed: pip install -e '.[bench]'")
    lab = Lab()
    lab.up()
    with tempfile.TemporaryDirectory(prefix="node_hours_") as scratch:
        folder = Path(scratch)
        per_row = {}
        for name, how in (("this tool", ours), ("stock launcher", stock)):
            lab.wait_idle()
            valid, spent = how(lab, options, folder)
            if not valid or not spent:
                print((folder / ("ours.log" if how is ours else "stock.log")).read_text(encoding="utf-8")[-3000:])
                raise SystemExit(f"{name}: {valid} valid rows, {spent:.0f} allocation-seconds by sacct")
            per_row[name] = spent / valid
            print(f"{name}: {valid} valid rows, {spent:.0f} allocation-seconds, {per_row[name]:.1f} a row", flush=True)
    print(f"ratio, this tool / stock launcher: {per_row['this tool'] / per_row['stock launcher']:.3f}")


if __name__ == "__main__":
    main()
