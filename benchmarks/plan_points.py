"""Planning time of large sweeps beside Hydra's basic launcher, in one run.

Goals: 1,000 points in under 10 s, 10,000 points in under 60 s.

Hydra's basic launcher composes the whole tree for every point by `load_sweep_config`; only that is timed here,
on a sample of the points. The planner's time holds everything up to the finished plan: composing, checking, the
memory of every service, order, packing, and the text that is printed.

    python benchmarks/plan_points.py [--points 1000 10000] [--sample 20]
"""

from __future__ import annotations

import argparse
import time

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from jobs.core import schema
from jobs.sweep import compose, road, show


def overrides(points: int) -> list[list[str]]:
    """Return a grid of `points` points over a restart key, a live key and a linked key."""
    lengths = ",".join(str(4096 + 64 * i) for i in range(points // 20))
    loads = ",".join(str(1 + i) for i in range(20))
    return compose.expand([f"parallel.max_model_len={lengths}", f"bench.concurrency={loads}"])


def basic_launcher_seconds(points: list[list[str]]) -> float:
    """Return the seconds that Hydra's basic launcher needs to compose these points."""
    schema.register()
    with initialize_config_dir(str(schema.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        began = time.perf_counter()
        for point in points:
            loader.load_sweep_config(master, point)
        return time.perf_counter() - began


def main() -> None:
    """Print both times a point and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--sample", type=int, default=20)
    options = parser.parse_args()
    for points in options.points:
        grid = overrides(points)
        began = time.perf_counter()
        plan = road.plan(grid)
        show.plan_text(plan)
        ours = time.perf_counter() - began
        sample = grid[:: max(1, len(grid) // options.sample)]
        theirs = basic_launcher_seconds(sample) / len(sample)
        print(f"planner: {len(plan.points)} points in {len(plan.services)} services, {ours:.2f} s")
        print(f"  Hydra's basic launcher, composing only: {1000 * theirs:.0f} ms a point ({len(sample)} points)")
        print(f"  ratio a point, planner / basic launcher: {ours / len(grid) / theirs:.4f}")


if __name__ == "__main__":
    main()
