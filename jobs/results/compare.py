"""Compare two runs or points: differences with intervals, and what could have been seen where none is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.core.errors import ConfigError, RunError
from jobs.core.rundir import SweepDir
from jobs.results import noise
from jobs.results.columns import HOW, OFFERED, RESTARTS, SEED, is_offered, is_work, low_is_best
from jobs.results.fingerprint import NAMES
from jobs.results.gather import Run, changes_question, flat, read_config_plain, read_run
from jobs.results.intervals import Interval
from jobs.results.pairs import drafts_alike
from jobs.results.spread import Spreads

FIGURES = ("output_tok_per_s", "goodput_per_s", "ttft_ms_mean", "ttft_ms_p99", "tpot_ms_mean", "e2el_ms_mean")

TOO_FEW = (
    "Note: with fewer than 3 windows a side that show a figure nothing is decided: the intervals hold the noise"
    " inside of these windows alone, and another window may say otherwise: measure with bench.repeats=3, for a 99th"
    " percentile with 100 requests or more in each window."
)
MEDIANS = "Note: a figure is the median of its windows, and a difference that of their means."
ONE_START = (
    "Note: ahead and behind hold the noise between windows of one start of the engine a side, and no more."
    " Another start may say otherwise: sweep parallel.seed=1,2,3 before a choice."
)

MANY = "Note: of {} differences that are told at 95 % about {} would be by chance, were all settings equal."
MANY_FROM = 30
"""Differences from which that is said."""

NOT_COMPARED = {
    "grows": "not compared: a queue grew, so it depends on how long was measured",
    "not_text": "not compared: they draft unlike on prompts that are no text, where speculation tells nothing",
    "unknown": "too few requests to tell a difference from noise",
}

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Side:
    """A setting in a comparison: its run, its rows (one for each start) and the whole config by dotted keys."""

    run: Run
    rows: tuple[Row, ...]
    config: Mapping[str, Any]
    spreads: Spreads

    def name(self, beside: Run) -> str:
        """The sweep and its point, `beside` one of the other sweep; of several starts the first, with their number."""
        others = len(self.rows) - 1
        more = f" and {others} more start{'s' * (others > 1)}" if others else ""
        return f"{_run_name(self.run, beside)}/{self.rows[0]['point']}{more}"

    @property
    def setting(self) -> str:
        """What was swept, with its values; of several starts what they share."""
        return self.run.words([key for key in self.run.swept if key not in RESTARTS], self.rows[0])

    def of(self, column: str) -> noise.Side:
        """Return the rows that show a column."""
        rows = tuple(row for row in self.rows if row.get(column))
        return noise.Side(self.run, rows, column, self.spreads.of(self.rows[0], column))


@dataclass(frozen=True)
class Figure:
    """One figure of a pair. `change` is relative, b against a; None: it cannot be told.

    `verdict`: better or worse (beyond the scatter between starts), ahead or behind (beyond that between the windows of
    one start), none (no difference seen), undecided (too few windows), unknown (too few records), grows (a queue grew,
    and how long was measured is in it), not_text (speculation on prompts that are no text).
    `least` is the least relative difference that would have been seen, about 80 % of the time. `basis`, `starts` and
    `windows`: see `noise.Difference`.
    """

    column: str
    a: float | None
    b: float | None
    change: Interval | None = None
    verdict: str = "unknown"
    least: float | None = None
    basis: str = ""
    starts: int = 0
    windows: int = 0


@dataclass(frozen=True)
class Pair:
    """Two settings that are compared, what they are in their sweeps, what differs between their configs and what they
    ran on (fingerprint.py), and the figures."""

    a: str
    b: str
    settings: tuple[str, str]
    differs: Mapping[str, tuple[Any, Any]]
    figures: tuple[Figure, ...]


def compare(a: Path, b: Path, key: str | None = None, *, anyway: bool = False) -> list[Pair]:
    """Compare the points of A and B, two and two; each is a sweep, or a point in one (`runs/<sweep>/points/<point>`).

    Args:
        key: pairs are points that are equal in all but this key. None: in two sweeps, points with the same swept
            values; two points are compared as they are.
        anyway: compare different work too.

    Raises:
        RunError: nothing can be paired, or a run cannot be read.
        ConfigError: the two did different work: other lengths, client, engine or model, or in an open loop other
            arrivals.
    """
    left, right, pairs = _matched(a, b, key)
    if not pairs:
        known = sorted({name for side in (*left, *right) for name in side.run.swept})
        remedy = f"Give --key of what differs, or two points. Swept here: {', '.join(known) or 'nothing'}."
        raise RunError("compare", f"{a} {b}", "no valid points of the two belong together", remedy)
    if not anyway:
        for one, two in pairs:
            _check_same_work(one, two)
    return [_compare(one, two) for one, two in pairs]


def left_out(a: Path, b: Path, key: str | None = None) -> list[str]:
    """Return the rows of A and B that are in no pair, and why. Raises RunError: see `compare`."""
    _, _, pairs = _matched(a, b, key)
    told = {(side.run.sweep.path, row["point"]) for pair in pairs for side in pair for row in side.rows}
    found = []
    both = [_rows(path) for path in (a, b)]
    for (run, rows), (other, _) in zip(both, reversed(both), strict=True):
        for row in (row for row in rows if (run.sweep.path, row["point"]) not in told):
            reason = (
                "nothing on the other side belongs to it" if row["valid"] else f"not valid: {row['invalid_reason']}"
            )
            found.append(f"{_run_name(run, other)}/{run.name_of(row)}: {reason}")
    return list(dict.fromkeys(found))


def _run_name(run: Run, beside: Run) -> str:
    """Return the name of a sweep, or its path where the other one has the same name."""
    alike = run.name == beside.name and run.sweep.path != beside.sweep.path
    return str(run.sweep.path) if alike else run.name


def _matched(a: Path, b: Path, key: str | None) -> tuple[list[Side], list[Side], list[tuple[Side, Side]]]:
    left, right = (_sides(path, apart=key in RESTARTS) for path in (a, b))
    return left, right, _pairs(left, right, key)


def _rows(path: Path) -> tuple[Run, list[Row]]:
    """Return the sweep of a path with all its rows, or that of the one point whose directory it is."""
    path = path.resolve()
    is_point = path.parent.name == "points" and not SweepDir(path).plan.exists()
    run = read_run(path.parent.parent if is_point else path)
    return run, [row for row in run.rows if not is_point or row["point"] == path.name]


def _sides(path: Path, *, apart: bool) -> list[Side]:
    """Return the settings of a sweep with a valid row, or the one point of this directory.

    Other starts of the engine are the same setting, again, unless they are to be told `apart`.
    """
    run, rows = _rows(path)
    if path.resolve() != run.sweep.path and not (rows and rows[0]["valid"]):
        reason = rows[0]["invalid_reason"] if rows else "it is no point of this sweep"
        raise RunError("compare", path, f"the point has no valid row: {reason}", "Choose a valid point.")
    spreads = Spreads(run)
    sides: dict[str, Side] = {}
    for row in (row for row in rows if row["valid"]):
        config = flat(read_config_plain(run.sweep.point(row["point"]).config))
        name = str(
            sorted((k, str(v)) for k, v in config.items() if changes_question(k) and (apart or k not in RESTARTS))
        )
        known = sides.get(name, Side(run, (), config, spreads))
        sides[name] = Side(run, (*known.rows, row), known.config, spreads)
    return list(sides.values())


def _asked(side: Side, without: str | None) -> dict[str, str]:
    """Return what is asked of a point, without one key (or section) and what does not count."""
    return {
        name: str(value)
        for name, value in side.config.items()
        if changes_question(name)
        and name not in RESTARTS
        and (without is None or not (name == without or name.startswith(without + ".")))
    }


def _pairs(left: Sequence[Side], right: Sequence[Side], key: str | None) -> list[tuple[Side, Side]]:
    if key is None:
        if len(left) == len(right) == 1:
            return [(left[0], right[0])]
        shared = [name for name in left[0].run.swept if name in right[0].run.swept] if left and right else []
        shared = [name for name in shared if name not in RESTARTS]
        return [
            (one, two)
            for one in left
            for two in right
            if all(one.rows[0][name] == two.rows[0][name] for name in shared)
        ]
    found, seen = [], set()
    for one in left:
        for two in right:
            differ = _valued(one, key) != _valued(two, key)
            ends = frozenset(str(side.run.sweep.point(side.rows[0]["point"]).path) for side in (one, two))
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


def _check_same_work(one: Side, two: Side) -> None:
    first, second = (
        {str(row["dataset_digest"]) for row in side.rows if row.get("dataset_digest")} for side in (one, two)
    )
    if first and second and first != second:
        reason = "its file had another content under the same name, so their figures do not compare"
        values = f"{' '.join(sorted(first))} and {' '.join(sorted(second))}"
        raise ConfigError("bench.dataset", values, reason, "Measure both with one file, or say --anyway.")
    for name, (first, second) in _differences(one, two).items():
        if is_work(name):
            reason = "the two points did different work, so their figures do not compare"
            raise ConfigError(
                name, f"{first} and {second}", reason, "Compare points of the same work, or say --anyway."
            )
        if name == SEED and any(is_offered(side.run, side.rows[0]) for side in (one, two)):
            reason = "in an open loop another seed is other arrivals, and their queues do not compare"
            raise ConfigError(name, f"{first} and {second}", reason, "Measure both with one seed, or say --anyway.")


def _differences(one: Side, two: Side) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys((*one.config, *two.config))
    return {
        name: (one.config.get(name), two.config.get(name))
        for name in names
        if changes_question(name) and str(one.config.get(name)) != str(two.config.get(name))
    }


def _grounds(one: Side, two: Side) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield in what both ran on and differs: versions, image, checkpoint, tuning of the nodes."""
    for name in NAMES:
        seen = [sorted({str(row[name]) for row in side.rows if row.get(name)}) for side in (one, two)]
        if all(seen) and seen[0] != seen[1]:
            yield name, (" and ".join(seen[0]), " and ".join(seen[1]))


def _compare(one: Side, two: Side) -> Pair:
    # At an offered rate no rate of tokens is a merit: it is the offered one.
    offered = OFFERED if any(is_offered(side.run, side.rows[0]) for side in (one, two)) else ()
    asked = {name: values for name, values in _differences(one, two).items() if not name.startswith((*HOW, *RESTARTS))}
    return Pair(
        one.name(two.run),
        two.name(one.run),
        (one.setting, two.setting),
        asked | dict(_grounds(one, two)),
        tuple(_figure(one.of(column), two.of(column)) for column in FIGURES if column not in offered),
    )


def _figure(one: noise.Side, two: noise.Side) -> Figure:
    a, b = (sum(row[side.column] for row in side.rows) / len(side.rows) if side.rows else None for side in (one, two))
    if why := _not_compared(one, two) if a and b else "":
        return Figure(one.column, a, b, verdict=why)
    found = noise.difference(one, two) if a and b else None
    if found is None:
        return Figure(one.column, a, b)
    change = found.change
    if found.basis == "window":
        verdict = "undecided"
    elif change.holds_zero:
        verdict = "none"
    else:
        better = (change.estimate < 0) == low_is_best(one.column)
        names = ("better", "worse") if found.sure else ("ahead", "behind")
        verdict = names[not better]
    return Figure(one.column, a, b, change, verdict, change.least, found.basis, found.starts, found.windows)


def _not_compared(one: noise.Side, two: noise.Side) -> str:
    """Return why a figure of two sides says nothing of them (see `Figure`); empty: it does."""
    rows = (*one.rows, *two.rows)
    if not all(drafts_alike(row, other) for row in one.rows for other in two.rows):
        return "not_text"
    of_time = one.column.startswith(("ttft_", "e2el_", "goodput_"))
    return "grows" if of_time and any(row.get("saturated") for row in rows) else ""


def text(pairs: Sequence[Pair]) -> str:
    """Return a comparison in words: one paragraph a pair."""
    lines: list[str] = []
    for pair in pairs:
        lines.append(" -> ".join(map(_titled, (pair.a, pair.b), pair.settings)))
        lines += [f"  {name}: {one} -> {two}" for name, (one, two) in pair.differs.items()]
        lines += [f"    {_line(figure)}" for figure in pair.figures if figure.a is not None or figure.b is not None]
    shown = [figure for pair in pairs for figure in pair.figures]
    lines += [TOO_FEW] if any(figure.basis == "window" for figure in shown) else []
    lines += [MEDIANS] if any(figure.change and figure.windows > 1 for figure in shown) else []
    lines += [ONE_START] if any(figure.basis == "windows" for figure in shown) else []
    told = sum(figure.verdict in ("better", "worse", "ahead", "behind", "none") for figure in shown)
    lines += [MANY.format(told, round(told / 20))] if told >= MANY_FROM else []
    return "\n".join(lines)


def _titled(name: str, setting: str) -> str:
    return f"{name} ({setting})" if setting else name


def _line(one: Figure) -> str:
    start = f"{one.column:<16} {_short(one.a):>8} -> {_short(one.b):>8}"
    if one.change is None:
        return f"{start}  {NOT_COMPARED[one.verdict]}"
    interval = f"{one.change.estimate:+.1%} [{one.change.low:+.1%}, {one.change.high:+.1%}]"
    if one.verdict == "undecided":
        many = "one window" if one.windows == 1 else f"{one.windows} windows"
        return f"{start}  not decided: {many}; the noise inside alone: {interval}"
    how = {
        "starts": f"{one.starts} starts a side",
        "known": "by the known spread between starts",
        "windows": f"{one.windows} windows of one start a side",
    }[one.basis]
    if one.verdict == "none":
        return f"{start}  no difference seen: {interval}, {how}; about {one.least:.1%} would have been seen"
    return f"{start}  {one.verdict}: {interval}, {how}"


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.4g}"
