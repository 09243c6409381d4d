"""The first paragraph of a report, as sentences with values: which setting won, by how much, whether to believe it.

Each sentence is an id of jobs/results/page/words.json with its values, so that it can be said in every language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.core.fields import dotted
from jobs.engines.base import is_simulated
from jobs.results import break_even, columns, slo
from jobs.results.columns import counts, low_is_best
from jobs.results.gather import Run
from jobs.results.intervals import LEVEL
from jobs.results.noise import STARTS, Difference, Row, Side, difference
from jobs.results.pairs import changed, of_sweep, read_question, standing
from jobs.results.spread import Spreads

FEW = 100
"""Under so many requests the 99th percentile is no more than the slowest request or two."""

OUTCOMES = ("unknown", "undecided", "tie", "ahead", "clear")
"""What is said of the best setting and one of its rivals, the least first.

unknown: there are too few records. undecided: too few windows. tie: no difference seen. ahead: beyond the scatter of
windows, or of two starts: where starts come in two kinds, two of each setting are of one kind in every fourth sweep.
clear: beyond the scatter between starts of the engine, of three or more or known from earlier sweeps.
"""

DECIDED = {"better": "decided", "worse": "decided", "same": "decided_same"}
"""Answers of pairs (sequential.py) and their sentences."""

LEADS = ("ahead", "clear")

MOST_KINDS = 8
"""Kinds of work that are listed one by one."""


@dataclass(frozen=True)
class Sentence:
    """An id of words.json and the values in its braces."""

    id: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Sentences in order, whether to believe them (yes, care or no), and the point that won (None: none did)."""

    believe: str
    winner: str | None
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class _Contest:
    """The best setting of one kind of work, the rival that it is surest to be told with, and how they differ.

    `settings` are the keys in which settings differ within this kind of work. `rivals`: how many there are. `agree`: in
    each start of the engine the best one was the better one. `found`: None where there is no rival, or no record.
    """

    best: Side
    second: Side | None
    settings: tuple[str, ...]
    rivals: int
    outcome: str
    values: Mapping[str, Any]
    found: Difference | None = None
    agree: bool = True

    @property
    def sides(self) -> tuple[Side, ...]:
        return (self.best,) if self.second is None else (self.best, self.second)


def objective(run: Run) -> str:
    """Return the column that decides: `results.objective` where the config has one, else output tokens a second."""
    return str(dotted(run.config, "results.objective") or "output_tok_per_s")


def judge(run: Run, lines: Sequence[break_even.Line] | None = None) -> Verdict:
    """Judge one sweep. Simulated rows are never set against measured ones, nor rows of different work.

    `lines`: what it says of speculation (`speculation`), where that is known already.
    """
    column = objective(run)
    rows, said = _compared(run, column)
    lines = speculation(run) if lines is None else lines
    said += [Sentence(*break_even.sentence(line)) for line in lines]
    if any(line.found and line.one_start for line in lines):
        said.append(Sentence("speculation_one_start", {}))
    if not rows:
        return Verdict("no", None, (Sentence("nothing", {"count": len(run.rows)}), *said, *_invalid(run)))
    simulated = is_simulated(rows[0]["engine"])
    contests = _contests(run, rows, column)
    first, winner = _decided(run) or _headline(contests)
    if others := dict.fromkeys(one.best.column for one in contests if one.best.column != column):
        said.insert(0, Sentence("offered", {"objective": column, "column": " ".join(others)}))
    if len(contests) == 1:
        best = contests[0].best.rows[0]
        figures = {name: best.get(name) for name in ("ttft_ms_p50", "tpot_ms_p50", "e2el_ms_p50")}
        said.append(Sentence("user", {"setting": contests[0].values["setting"], **figures}))
    said += _cautions(run, contests)
    if simulated:
        said.append(Sentence("simulated", {}))
    told = first[0].id in DECIDED.values() or all(one.found and one.found.sure for one in contests)
    gone = _not_compared(run)
    sure = winner is not None and told and not gone
    believe = "no" if simulated else "yes" if sure else "care"
    return Verdict(believe, None if winner is None else str(winner["point"]), (*first, *said, *gone, *_invalid(run)))


def speculation(run: Run) -> list[break_even.Line]:
    """Return what a sweep says of speculation, with what earlier ones showed of the scatter between starts."""
    return break_even.lines(run, Spreads(run).of)


def _compared(run: Run, column: str) -> tuple[list[Row], list[Sentence]]:
    """Return the rows that take part, and what is left out; all are simulated, or none is."""
    said = []
    valid = [row for row in run.rows if row["valid"]]
    rows: list[Row] = [row for row in valid if counts(column, row.get(column))]
    if rows and len(rows) < len(valid):
        said.append(Sentence("left_out_blank", {"count": len(valid) - len(rows), "column": column}))
    if saturated := sum(bool(row.get("saturated")) for row in rows):
        said.append(Sentence("left_out_saturated", {"count": saturated}))
        rows = [row for row in rows if not row.get("saturated")]
    if not_text := sum(row.get("spec_text") is False for row in rows):
        said.append(Sentence("left_out_not_text", {"count": not_text}))
        rows = [row for row in rows if row.get("spec_text") is not False]
    measured = [row for row in rows if not is_simulated(row["engine"])]
    if measured and len(measured) < len(rows):
        said.append(Sentence("left_out_simulated", {"count": len(rows) - len(measured)}))
    rows = measured or rows
    if slo.is_set(run):
        rows, told = _under_objective(run, rows)
        said += told
    return rows, said


def _under_objective(run: Run, rows: Sequence[Row]) -> tuple[list[Row], list[Sentence]]:
    """Return the rows that keep their own objective, or have none, and how many do and do not tell."""
    told = [(row, slo.kept(run, row) if slo.limits(run, row) else True) for row in rows]
    kept = [row for row, verdict in told if verdict]
    asked = dict.fromkeys(_words(slo.limits(run, row)) for row in run.rows)
    said = [Sentence("under_slo", {"count": len(kept), "of": len(rows), "slo": " | ".join(filter(None, asked))})]
    if unknown := sum(verdict is None for _, verdict in told):
        said.append(Sentence("slo_unknown", {"count": unknown}))
    return kept, said


def _words(limits: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ≤ {limit:g}" for name, limit in limits.items())


def _contests(run: Run, rows: Sequence[Row], column: str) -> list[_Contest]:
    # A rate is offered, not reached: more of it is no merit, so rows compare at the same one, with the same arrivals.
    work = tuple(key for key in run.swept if columns.is_work(key) or key in (columns.RATE, columns.SEED))
    shown = tuple(key for key in run.swept if key not in (*work, *columns.RESTARTS))
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(columns.setting_text(work, row), []).append(row)
    spreads = Spreads(run)
    fields = {kind: _field(run, kind, members, shown, column, spreads) for kind, members in kinds.items()}
    return list(_judged(fields).values())


def _judged(fields: Mapping[str, _Field]) -> dict[str, _Contest]:
    """Judge every kind of work so that in one of twenty sweeps of equal settings one is said to lead in any of them.

    Each is judged as strictly as there are kinds; where some are told, the others share what is left of the doubt
    (Holm 1979, "A simple sequentially rejective multiple test procedure").
    """
    found = {kind: _contest(field, 1) for kind, field in fields.items() if not field.rivals}
    left = [kind for kind in fields if kind not in found]
    while left:
        judged = {kind: _contest(fields[kind], len(left)) for kind in left}
        found |= judged
        rest = [kind for kind in left if judged[kind].outcome not in LEADS]
        if len(rest) == len(left):
            break
        left = rest
    return {kind: found[kind] for kind in fields}


@dataclass(frozen=True)
class _Field:
    """The best setting of one kind of work and its rivals, the best first. Others as in `_Contest`."""

    best: Side
    rivals: tuple[Side, ...]
    shown: tuple[str, ...]
    settings: tuple[str, ...]
    values: Mapping[str, Any]


def _field(run: Run, kind: str, members: Sequence[Row], shown: tuple[str, ...], asked: str, spreads: Spreads) -> _Field:
    column = _deciding(run, members, asked)
    sides: dict[str, list[Row]] = {}
    for row in members:
        if counts(column, row.get(column)):
            sides.setdefault(columns.setting_text(shown, row), []).append(row)
    low = low_is_best(column)
    ranked = []
    for rows in sides.values() or [list(members)]:
        starts = sorted(rows, key=lambda row: row.get(column) or 0.0, reverse=not low)
        ranked.append(Side(run, tuple(starts), column, spreads.of(rows[0], column)))
    ranked.sort(key=_value, reverse=not low)
    best, settings = ranked[0], _settings(run, members)
    # Another load of the same setting is no rival; where nothing but the load is swept, loads are compared.
    differ = settings or shown
    rivals: dict[str, Side] = {}
    for side in ranked[1:]:
        name = columns.setting_text(differ, side.rows[0])
        if name != columns.setting_text(differ, best.rows[0]):
            rivals.setdefault(name, side)
    values = {"work": kind, "column": column, "value": _value(best), "setting": _name(best, shown)}
    return _Field(best, tuple(rivals.values()), shown, settings, values)


def _contest(field: _Field, kinds: int) -> _Contest:
    """Judge the best setting of a field as strictly as so many kinds of work ask for."""
    best, rivals = field.best, field.rivals
    if not rivals:
        return _Contest(best, None, field.settings, 0, "only", field.values)
    # Of twenty equal pairs one is told apart at 5 %: no matter whether they are rivals, or kinds of work.
    level = 1 - (1 - LEVEL) / (len(rivals) * kinds)
    told = [(side, *_told(best, side, level, inside=side is rivals[0])) for side in rivals]
    # A winner is better than each of its rivals, so the one that is least surely beaten stands for all.
    second, outcome, found, margin = min(told, key=lambda one: OUTCOMES.index(one[1]))
    values = {**field.values, "second": _name(second, field.shown), "second_value": _value(second)} | margin
    return _Contest(best, second, field.settings, len(rivals), outcome, values, found, _agree(best, second))


def _deciding(run: Run, rows: Sequence[Row], column: str) -> str:
    """Return the column by which rows compare. At an offered rate no rate of tokens is a merit: it is the offered one.

    There goodput decides where each row has an objective (`bench.slo`), else the mean end-to-end latency.
    """
    if column not in columns.OFFERED or not any(columns.is_offered(run, row) for row in rows):
        return column
    return "goodput_per_s" if all(slo.limits(run, row) for row in rows) else "e2el_ms_mean"


def _value(side: Side) -> float:
    """Return the figure of a setting: the mean of its rows, one for each start."""
    return float(sum(row.get(side.column) or 0.0 for row in side.rows) / len(side.rows))


def _agree(best: Side, second: Side) -> bool:
    """Return whether every start of the best one is better than every one of the other."""
    first, other = ([row[side.column] for row in side.rows] for side in (best, second))
    return bool(max(first) < min(other) if low_is_best(best.column) else min(first) > max(other))


def _settings(run: Run, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the swept keys that are settings of the service and differ between these rows."""
    asked = [key for key in run.swept if not columns.is_work(key) and not key.startswith("bench.")]
    asked = [key for key in asked if key not in columns.RESTARTS]
    return tuple(key for key in asked if len({str(row[key]) for row in rows}) > 1)


def _name(side: Side, keys: tuple[str, ...]) -> str:
    return side.run.words(keys, side.rows[0]) or f"point {side.rows[0]['point']}"


def _told(best: Side, second: Side, level: float, *, inside: bool) -> tuple[str, Difference | None, dict[str, Any]]:
    """Return what is said of the best one and a rival (OUTCOMES), and how they differ, percent; above 0 is better."""
    found = difference(second, best, level=level, inside=inside)
    if found is None:
        return "unknown", None, {}
    ends = (found.change.low * 100, found.change.high * 100)
    low, high = (-ends[1], -ends[0]) if low_is_best(best.column) else ends
    values = {"low": low, "high": high, "windows": found.windows, "starts": found.starts}
    if found.basis == "window":
        return "undecided", found, values
    if low <= 0:
        return "tie", found, values | {"least": found.change.least * 100}
    return "clear" if found.sure else "ahead", found, values


def _decided(run: Run) -> tuple[list[Sentence], Row | None] | None:
    """Return what `python -m jobs decide` has found by this sweep's pairs; None: it asked nothing, or it is open.

    Pairs share what drifts and, where they are windows, their start: they tell more than the figures of two rows.
    """
    if (asked := read_question(run.sweep)) is None:
        return None
    decision = standing(asked, of_sweep(run.sweep, asked)).decision
    rows = {row["point"]: row for row in run.rows}
    sides = [rows.get(point) for point in asked.pairs[0]]
    if decision.answer not in DECIDED or not all(sides):
        return None
    one, two = (row for row in sides if row)
    keys = tuple(key for key in run.swept if key not in columns.RESTARTS)
    won, lost = (one, two) if decision.answer == "worse" else (two, one)
    least = 1 / (1 + decision.high) - 1 if decision.answer == "worse" else decision.low
    values = {"won": run.words(keys, won), "lost": run.words(keys, lost), "column": asked.goal, "pairs": decision.pairs}
    values |= {"least": abs(changed(asked.goal, max(least, 0.0))) * 100, "difference": asked.difference * 100}
    return [Sentence(DECIDED[decision.answer], values)], None if decision.answer == "same" else won


def _headline(contests: Sequence[_Contest]) -> tuple[list[Sentence], Row | None]:
    if len(contests) == 1:
        [one] = contests
        few = one.outcome == "undecided" and one.values["windows"] > 1
        said = Sentence("undecided_few" if few else one.outcome, one.values)
        return [said], one.best.rows[0] if one.outcome == "clear" else None
    settings = tuple(dict.fromkeys(key for one in contests for key in one.settings))
    led = [one for one in contests if one.outcome in LEADS]
    sure = all(one.outcome == "clear" for one in led)
    # Where nothing but the load is swept, loads were compared.
    best = {one.best.run.words(settings, one.best.rows[0]) if settings else one.values["setting"] for one in led}
    agreed = len(best) == 1
    values = {"kinds": len(contests), "clear": len(led)}
    if agreed:
        said = Sentence("same" if sure else "same_ahead", values | {"setting": best.pop()})
    else:
        said = Sentence("differ" if led else "none_clear" if settings else "kinds", values)
    listed = [Sentence(f"{one.outcome}_for", one.values) for one in contests[:MOST_KINDS]]
    if len(contests) > MOST_KINDS:
        listed.append(Sentence("more_kinds", {"count": len(contests) - MOST_KINDS}))
    won = agreed and sure and len(led) == len(contests)
    return [said, *listed], led[0].best.rows[0] if won else None


def _cautions(run: Run, contests: Sequence[_Contest]) -> Sequence[Sentence]:
    sides = [side for one in contests for side in one.sides]
    said = []
    if (least := min(len(side.windows) for side in sides)) > 1:
        said.append(Sentence("repeated", {"count": least}))
    said += _starts_caution(contests)
    if (most := max(one.rivals for one in contests)) > 1:
        said.append(Sentence("adjusted", {"count": most}))
    if len(contests) > 1 and most:
        said.append(Sentence("adjusted_kinds", {"count": len(contests)}))
    rows = [row for side in sides for row in side.rows]
    fewest = min(rows, key=lambda row: row.get("completed") or 0)
    if (count := fewest.get("completed") or 0) < FEW:
        said.append(Sentence("few", {"point": run.name_of(fewest), "count": count}))
    notes = dict.fromkeys((run.name_of(row), str(row["notes"])) for row in rows if row.get("notes"))
    said += [Sentence("note", {"point": point, "note": note}) for point, note in list(notes)[:MOST_KINDS]]
    return said


def _starts_caution(contests: Sequence[_Contest]) -> list[Sentence]:
    told = [one for one in contests if one.found and one.outcome != "undecided"]
    if not told:
        return []
    starts = min(one.found.starts for one in told if one.found)
    spreads = [side.spread for one in told if one.found and one.found.basis == "known" for side in one.sides]
    said = []
    if known := [spread for spread in spreads if spread]:
        percent, free = max((spread.squared**0.5 * 100, spread.free) for spread in known)
        said.append(Sentence("known_spread", {"percent": percent, "starts": starts, "free": round(free)}))
    elif any(one.found and not one.found.of_starts for one in told):
        said.append(Sentence("one_start", {}))
    elif starts >= STARTS:
        said.append(Sentence("starts", {"count": starts}))
    if starts > 1 and not all(one.agree for one in told):
        said.append(Sentence("starts_differ", {}))
    elif 1 < starts < STARTS:
        said.append(Sentence("not_contradicted", {"count": starts}))
    return said


def _not_compared(run: Run) -> Sequence[Sentence]:
    """Return words on settings of which no row is valid: what won may be worse than they are."""
    keys = tuple(key for key in run.swept if not (key.startswith("bench.") or columns.is_work(key)))
    keys = tuple(key for key in keys if key not in columns.RESTARTS)
    there = {columns.setting_text(keys, row) for row in run.rows if row["valid"]}
    gone = dict.fromkeys(columns.setting_text(keys, row) for row in run.rows)
    missing = [name for name in gone if name not in there]
    return [Sentence("left_out_invalid", {"settings": " | ".join(missing)})] if missing else []


def _invalid(run: Run) -> Sequence[Sentence]:
    bad = sum(not row["valid"] for row in run.rows)
    return [Sentence("invalid", {"count": bad, "of": len(run.rows)})] if bad else []
