"""One setting against itself, really measured: how often `compare` and the report find a difference that is none.

`python -m benchmarks.coverage sweeps --engine vllm_cpu`: one service is measured in many short windows, of a closed and
of an open loop by turns; then several starts of it in three windows each. Each A/A trial picks windows out of these, as
if they were those of two settings, and asks jobs.results with the requests behind them. Trials share windows, so their
shares are less sure than their number says: those that share none are told apart.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jobs.core.load import REPEATS
from jobs.results import columns, noise, verdict
from jobs.results.gather import Run, read_run
from jobs.results.requests import Requests, of_row

SETTING, START = "parallel.max_model_len", "parallel.seed"
LOADS = ("closed loop", "open loop")
FIGURES = ("output_tok_per_s", "ttft_ms_mean", "e2el_ms_mean")

IN_TURN = ((0, 3, 4), (1, 2, 5))
"""Places of the windows of two settings that are measured by turns: A B, B A, A B."""

MOST = 500
"""Trials of one kind."""


@dataclass(frozen=True, eq=False)
class Picked(noise.Side):
    """A side whose rows say which of their windows are meant (`picked`, from 0)."""

    @cached_property
    def starts(self) -> tuple[tuple[float, ...], ...]:
        """The figures of the picked windows."""
        return tuple(tuple(row["lines"][one][self.column] for one in row["picked"]) for row in self.rows)

    @cached_property
    def _requests(self) -> tuple[Requests | None, ...]:
        return tuple(
            Requests(row["picked"], tuple(row["requests"].windows[one] for one in row["picked"])) for row in self.rows
        )


def measure(root: Path, engine: str, starts: int, windows: int, window_s: float, rate: float) -> None:
    """Measure one setting in a closed and in an open loop by turns, in so many starts and windows of each."""
    small = ("experiment=demo", "parallel.data_parallel_size=1")
    words = [
        *(("engine=simulator",) if engine == "simulator" else small), f"bench.request_rate=null,{rate}",
        "bench.output_tokens=32", "bench.input_tokens=64", "bench.warmup_s=1", f"bench.window_s={window_s}",
        f"bench.repeats={windows}", f"parallel.seed={','.join(str(n) for n in range(1, starts + 1))}",
        f"results.root={root}",
    ]  # fmt: skip
    subprocess.run([sys.executable, "launch.py", "-m", *words], check=False, stdout=sys.stderr)


def read(root: Path) -> tuple[list[Run], Run]:
    """Return the sweeps of one service in many windows, and all those of starts in three windows each as one sweep."""
    runs = [read_run(path.parent) for path in sorted(root.glob("*/plan.json")) if not path.parent.is_symlink()]
    for run in runs:
        for row in run.rows:
            row["lines"] = [line for _, line in columns.lines_in_row(run, row)]
            row["requests"] = of_row(run, row)
            told = row["requests"].windows if row["requests"] else ()
            row["usable"] = [
                place
                for place, (line, _) in enumerate(zip(row["lines"], told, strict=False))
                if line["valid"] and not line["saturated"] and all(line.get(column) for column in FIGURES)
            ]
    one = [run for run in runs if any(len(row["lines"]) > REPEATS for row in run.rows)]
    many = [run for run in runs if run not in one]
    return one, replace(many[0], rows=tuple(row for run in many for row in run.rows))


def pick(row: Mapping[str, Any], places: Iterable[int], setting: int = 0, start: int = 0) -> dict[str, Any]:
    """Return the row of a setting that has these of its windows and no others."""
    chosen = tuple(places)
    lines = [row["lines"][place] for place in chosen]
    medians = {column: float(np.median([line[column] for line in lines])) for column in FIGURES}
    about = {"picked": chosen, SETTING: setting, START: start, "service": f"{setting}-{start}", "valid": True}
    return {**row, **about, "engine": "vllm_ascend", "windows": len(chosen), **medians}


def in_turn(row: Mapping[str, Any], step: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield two settings out of six windows of one start that follow each other; the next six begin `step` later."""
    usable = row["usable"]
    for begin in range(0, len(usable) - 2 * REPEATS + 1, step):
        one, two = (pick(row, (usable[begin + place] for place in places)) for places in IN_TURN)
        yield one, two


def at_random(row: Mapping[str, Any], rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield two settings out of six windows of one start in any order."""
    for _ in range(MOST if len(row["usable"]) >= 2 * REPEATS else 0):
        drawn = rng.choice(row["usable"], 2 * REPEATS, replace=False).tolist()
        yield pick(row, drawn[:REPEATS]), pick(row, drawn[REPEATS:])


def apart(run: Run, pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]], column: str) -> str:
    """Return how many pairs are told apart."""
    found = [noise.difference(*(Picked(run, (row,), column) for row in pair)) for pair in pairs]
    return _share([one is not None and not one.change.holds_zero for one in found])


def claims(run: Run, rows: Sequence[Mapping[str, Any]], a_side: int, rng: np.random.Generator) -> tuple[str, str]:
    """Return how often one of two equal settings of so many starts a side leads by the report, and how often it won."""
    splits = [
        (one, two)
        for one in itertools.combinations(range(len(rows)), a_side)
        for two in itertools.combinations(sorted(set(range(len(rows))) - set(one)), a_side)
        if one[0] < two[0]
    ]
    led, won = [], []
    for one, two in [splits[place] for place in rng.permutation(len(splits))[:MOST]]:
        sides = enumerate((one, two))
        drawn = tuple(
            pick(rows[number], rows[number]["usable"][:REPEATS], setting, number)
            for setting, numbers in sides
            for number in numbers
        )
        said = verdict.judge(replace(run, rows=drawn, swept=(SETTING, START, columns.RATE)))
        led.append(said.sentences[0].id in verdict.LEADS)
        won.append(said.winner is not None)
    return _share(led), _share(won)


def _share(found: Sequence[bool]) -> str:
    return f"{sum(found)} of {len(found)} ({100 * sum(found) / len(found):.1f} %)" if found else "-"


def _of_load(run: Run, is_open: int) -> list[dict[str, Any]]:
    return [row for row in run.rows if (row[columns.RATE] is not None) == bool(is_open)]


def report(engine: str, one: Sequence[Run], many: Run) -> None:
    """Print the tables of one service in many windows, and of many starts in three each."""
    rng = np.random.default_rng(0)
    print(f"\n### {engine}: groups of 3 windows of one start told apart (nominal 5 %)\n")
    print("| load | windows | figure | by turns, none shared | by turns, all | drawn at random |")
    print("|---|---|---|---|---|---|")
    for is_open, load in enumerate(LOADS):
        rows = [row for run in one for row in _of_load(run, is_open)]
        usable = f"{sum(len(row['usable']) for row in rows)} of {sum(len(row['lines']) for row in rows)}"
        for column in FIGURES:
            kinds = (
                (pair for row in rows for pair in in_turn(row, 2 * REPEATS)),
                (pair for row in rows for pair in in_turn(row, 1)),
                (pair for row in rows for pair in at_random(row, rng)),
            )
            cells = [apart(one[0], pairs, column) for pairs in kinds]
            print(f"| {load} | {usable} | `{column}` | {' | '.join(cells)} |", flush=True)
    print(f"\n### {engine}: two equal settings by the report\n")
    print("| load | starts | starts a side | one leads | one won |\n|---|---|---|---|---|")
    was, verdict.Side = verdict.Side, Picked  # type: ignore[attr-defined]
    try:
        for is_open, load in enumerate(LOADS):
            rows = _of_load(many, is_open)
            whole = [row for row in rows if len(row["usable"]) >= REPEATS]
            for a_side in range(1, min(3, len(whole) // 2) + 1):
                led, won = claims(many, whole, a_side, rng)
                print(f"| {load} | {len(whole)} of {len(rows)} | {a_side} | {led} | {won} |", flush=True)
    finally:
        verdict.Side = was  # type: ignore[attr-defined]


def sweeps(engine: str, window_s: float, windows: int, starts: int, rate: float, keep: Path | None) -> None:
    """Measure, and print the tables.

    Args:
        keep: where the sweeps are left, and others of the same kind may lie from before; None: they are not kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = keep or Path(folder)
        if windows:
            measure(root, engine, 1, windows, window_s, rate)
        if starts:
            measure(root, engine, starts, REPEATS, window_s, rate)
        report(engine, *read(root))
