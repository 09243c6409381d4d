"""Compare two runs or points: paired differences with intervals, and what could have been seen where none is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.core import schema
from jobs.core.errors import ConfigError, RunError
from jobs.core.rundir import SweepDir
from jobs.results.columns import HOW, is_work, low_is_best
from jobs.results.gather import Run, read_config_plain, read_run
from jobs.results.noise import LEAST, Sample, difference, sample
from jobs.results.resampling import Interval, minimum_detectable, paired_difference
from jobs.results.verdict import REPEATS

FIGURES = ("output_tok_s", "ttft_ms_mean", "ttft_ms_p99", "tpot_ms_mean", "e2el_ms_mean")

ONCE = (
    "Note: with fewer than 3 windows a side, these intervals hold the noise inside windows alone. A busy machine or\n"
    "another start of the engine can make a difference too: measure again (bench.repeats) before a choice."
)

SAME_PROMPTS = 0.9
"""Share of the prompts that both windows must have so that they are compared prompt by prompt. With fewer, the faster
side's further prompts would be left out, and the means compared would not be those of the rows."""


@dataclass(frozen=True, eq=False)
class Side:
    """One point of a comparison: its run, its row and its whole config by dotted keys."""

    run: Run
    row: Mapping[str, Any]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a pair. `change` is relative, b against a; None: it cannot be told.

    `verdict`: better or worse (the interval excludes no difference), none (no difference seen), unknown.
    `least` is the least relative difference that would have been seen, 80 % of the time.
    """

    column: str
    a: float | None
    b: float | None
    change: Interval | None
    paired: bool
    verdict: str
    least: float | None


@dataclass(frozen=True)
class Pair:
    """Two points that are compared, what differs between their configs, and the figures."""

    a: str
    b: str
    differs: Mapping[str, tuple[Any, Any]]
    figures: tuple[Figure, ...]
    windows: int
    """Windows of the side that has fewer."""


def compare(a: Path, b: Path, key: str | None = None, *, anyway: bool = False) -> list[Pair]:
    """Compare the points of A and B, two and two.

    Args:
        a, b: directories of sweeps, or of points in them (`runs/<sweep>/points/<point>`).
        key: pairs are points that are equal in all but this key. None: in two sweeps, points with the same swept
            values; two points are compared as they are.
        anyway: compare different work too.

    Raises:
        RunError: nothing can be paired, or a run cannot be read.
        ConfigError: the two did different work: other lengths, client, engine or model.
    """
    left, right = _sides(a), _sides(b)
    pairs = _pairs(left, right, key)
    if not pairs:
        known = sorted({name for side in (*left, *right) for name in side.run.swept})
        remedy = f"Give --key of what differs, or two points. Swept here: {', '.join(known) or 'nothing'}."
        raise RunError("compare", f"{a} {b}", "no valid points of the two belong together", remedy)
    if not anyway:
        for one, two in pairs:
            _check_same_work(one, two)
    return [_compare(one, two) for one, two in pairs]


def _sides(path: Path) -> list[Side]:
    """Return the valid points of a sweep, or the one point of this directory."""
    path = path.resolve()
    is_point = path.parent.name == "points" and not SweepDir(path).plan.exists()
    run = read_run(path.parent.parent if is_point else path)
    rows = [row for row in run.rows if row["point"] == path.name] if is_point else list(run.rows)
    if is_point and not (rows and rows[0]["valid"]):
        reason = rows[0]["invalid_reason"] if rows else "it is no point of this sweep"
        raise RunError("compare", path, f"the point has no valid row: {reason}", "Choose a valid point.")
    return [
        Side(run, row, dict(_flat(read_config_plain(run.sweep.point(row["point"]).config))))
        for row in rows
        if row["valid"]
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, value))
    return found


def _asked(side: Side, without: str | None) -> dict[str, str]:
    """Return what is asked of a point, without one key (or section) and what does not count."""
    return {
        name: str(value)
        for name, value in side.config.items()
        if _counts(name) and (without is None or not (name == without or name.startswith(without + ".")))
    }


def _pairs(left: Sequence[Side], right: Sequence[Side], key: str | None) -> list[tuple[Side, Side]]:
    if key is None:
        if len(left) == len(right) == 1:
            return [(left[0], right[0])]
        shared = [name for name in left[0].run.swept if name in right[0].run.swept] if left and right else []
        return [(one, two) for one in left for two in right if all(one.row[name] == two.row[name] for name in shared)]
    found, seen = [], set()
    for one in left:
        for two in right:
            differ = _valued(one, key) != _valued(two, key)
            ends = frozenset(
                (str(one.run.sweep.point(one.row["point"]).path), str(two.run.sweep.point(two.row["point"]).path))
            )
            if differ and ends not in seen and _asked(one, key) == _asked(two, key):
                seen.add(ends)
                found.append((one, two))
    if not found and all(_valued(side, key) is None for side in (*left, *right)):
        raise RunError("--key", key, "no point has this key", "Give a full name, for example parallel.max_model_len.")
    return found


def _valued(side: Side, key: str) -> str | None:
    """Return a side's value of a key or of a whole section, as text; None: it has none."""
    values = {name: value for name, value in side.config.items() if name == key or name.startswith(key + ".")}
    return str(values) if values else None


def _counts(name: str) -> bool:
    """Return whether a key changes what is asked: those of scope `sweep` may differ freely."""
    return schema.schema().get(schema.leaf_of(name) or name) != "sweep"


def _check_same_work(one: Side, two: Side) -> None:
    for name, (first, second) in _differences(one, two).items():
        if is_work(name):
            raise ConfigError(
                name,
                f"{first} and {second}",
                "the two points did different work, so their figures do not compare",
                "Compare points of the same work, or say --anyway.",
            )


def _differences(one: Side, two: Side) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys((*one.config, *two.config))
    return {
        name: (one.config.get(name), two.config.get(name))
        for name in names
        if _counts(name) and str(one.config.get(name)) != str(two.config.get(name))
    }


def _compare(one: Side, two: Side) -> Pair:
    first, second = sample(one.run, one.row), sample(two.run, two.row)
    return Pair(
        f"{one.run.name}/{one.row['point']}",
        f"{two.run.name}/{two.row['point']}",
        {name: values for name, values in _differences(one, two).items() if not name.startswith(HOW)},
        tuple(_figure(one, two, first, second, column) for column in FIGURES),
        min(1 if side is None else len(side.requests.windows) for side in (first, second)),
    )


def _figure(one: Side, two: Side, first: Sample | None, second: Sample | None, column: str) -> Figure:
    a, b = one.row.get(column), two.row.get(column)
    if not a or b is None:
        return Figure(column, a, b, None, False, "unknown", None)
    observed = b / a - 1
    change = _paired(one, two, first, second, column)
    paired = change is not None
    if change is None:
        change = difference(first, second, column, observed=observed)
    if change is None:
        return Figure(column, a, b, None, paired, "unknown", None)
    least = minimum_detectable(change.error)
    if change.holds_zero:
        return Figure(column, a, b, change, paired, "none", least)
    better = (change.estimate < 0) == low_is_best(column)
    return Figure(column, a, b, change, paired, "better" if better else "worse", least)


def _paired(one: Side, two: Side, first: Sample | None, second: Sample | None, column: str) -> Interval | None:
    """Compare the means of a latency prompt by prompt, where the two windows asked mostly the same prompts."""
    name, _, statistic = column.rpartition("_")
    same = one.config.get("bench.seed") == two.config.get("bench.seed")
    if first is None or second is None or statistic != "mean" or not same or not name.endswith("_ms"):
        return None
    if len(first.requests.windows) > 1 or len(second.requests.windows) > 1:
        return None
    both = first.requests.frame[["index", name]].merge(second.requests.frame[["index", name]], on="index").dropna()
    most = max(len(first.requests.frame), len(second.requests.frame))
    if len(both) < max(LEAST, SAME_PROMPTS * most):
        return None
    left, right = (both[f"{name}{suffix}"].to_numpy(dtype=np.float64) for suffix in ("_x", "_y"))
    return paired_difference(left, right, block=max(first.block, second.block))


def text(pairs: Sequence[Pair]) -> str:
    """Return a comparison in words: one paragraph a pair."""
    lines: list[str] = []
    for pair in pairs:
        lines.append(f"{pair.a} -> {pair.b}")
        lines += [f"  {name}: {one} -> {two}" for name, (one, two) in pair.differs.items()]
        lines += [f"    {_line(figure)}" for figure in pair.figures if figure.a is not None or figure.b is not None]
    if any(pair.windows < REPEATS for pair in pairs):
        lines.append(ONCE)
    return "\n".join(lines)


def _line(one: Figure) -> str:
    start = f"{one.column:<13} {_short(one.a):>8} -> {_short(one.b):>8}"
    if one.change is None or one.least is None:
        return f"{start}  too few requests to tell a difference from noise"
    interval = f"{one.change.estimate:+.1%} [{one.change.low:+.1%}, {one.change.high:+.1%}]"
    how = ", prompt by prompt" if one.paired else ""
    if one.verdict == "none":
        return f"{start}  no difference seen: {interval}{how}; one of {one.least:.1%} would have been seen"
    return f"{start}  {one.verdict}: {interval}{how}"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
