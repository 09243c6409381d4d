"""The first paragraph of a report, as sentences with values: which setting won, by how much, whether to believe it.

Each sentence is an id of jobs/results/page/words.json with its values, so that it can be said in every language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.core.fields import dotted
from jobs.engines.base import is_simulated
from jobs.results import columns, slo
from jobs.results.columns import counts, low_is_best
from jobs.results.gather import Run
from jobs.results.noise import difference, sample
from jobs.results.resampling import minimum_detectable

FEW = 100
"""Under so many requests the 99th percentile is no more than the slowest request or two."""

REPEATS = 3
"""Windows of one setting from which its own scatter can be judged."""

STARTS = 2
"""Starts of the engine in which a difference must have shown before it is to be believed."""

LEADS = ("clear", "ahead")
"""Outcomes in which one setting is better beyond the noise that is known."""

MOST_KINDS = 8
"""Kinds of work that are listed one by one."""

Row = Mapping[str, Any]


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
    """The best row of one kind of work, the best row of another setting (None: there is none), and their margin.

    `settings` are the keys in which settings differ within this kind of work. `starts`: of the engine that both were
    measured in at least; `agree`: in each of them the best one was the better one.
    """

    best: Row
    second: Row | None
    settings: tuple[str, ...]
    outcome: str
    values: Mapping[str, Any]
    starts: int = 1
    agree: bool = True


def objective(run: Run) -> str:
    """Return the column that decides: `results.objective` where the config has one, else output tokens a second."""
    return str(dotted(run.config, "results.objective") or "output_tok_s")


def judge(run: Run) -> Verdict:
    """Judge one sweep. Simulated rows are never set against measured ones, nor rows of different work."""
    column = objective(run)
    rows, said = _compared(run, column)
    if not rows:
        return Verdict("no", None, (Sentence("nothing", {"count": len(run.rows)}), *said, *_invalid(run)))
    simulated = is_simulated(rows[0]["engine"])
    contests = _contests(run, rows, column)
    first, winner = _headline(contests)
    if len(contests) == 1:
        best = contests[0].best
        said.append(Sentence("user", {name: best.get(name) for name in ("ttft_ms_p50", "tpot_ms_p50", "e2el_ms_p50")}))
    said += _cautions(run, contests)
    if simulated:
        said.append(Sentence("simulated", {}))
    sure = winner is not None and all(one.outcome == "clear" and one.starts >= STARTS and one.agree for one in contests)
    believe = "no" if simulated else "yes" if sure else "care"
    return Verdict(believe, None if winner is None else str(winner["point"]), (*first, *said, *_invalid(run)))


def _compared(run: Run, column: str) -> tuple[list[Row], list[Sentence]]:
    """Return the rows that take part, and what is left out; all are simulated, or none is."""
    said = []
    rows: list[Row] = [row for row in run.rows if row["valid"] and counts(column, row.get(column))]
    if saturated := sum(bool(row.get("saturated")) for row in rows):
        said.append(Sentence("left_out_saturated", {"count": saturated}))
        rows = [row for row in rows if not row.get("saturated")]
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
    # A rate is offered, not reached: more of it is no merit, so rows compare at the same one.
    work = tuple(key for key in run.swept if columns.is_work(key) or key == columns.RATE)
    shown = tuple(key for key in run.swept if key not in (*work, *columns.RESTARTS))
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(columns.setting_text(work, row), []).append(row)
    found = []
    for kind, members in kinds.items():
        ordered = sorted(members, key=lambda row: row[column], reverse=not low_is_best(column))
        best = ordered[0]
        settings = _settings(run, members)
        # Another load of the same setting is no rival; where nothing but the load is swept, loads are compared.
        differ = settings or shown
        second = next((row for row in ordered[1:] if any(row[key] != best[key] for key in differ)), None)
        outcome, margin = _margin(run, best, second, column)
        values = {"work": kind, "column": column, "value": best[column], "setting": _name(shown, best)} | margin
        if second is not None and second[column]:
            percent = abs(best[column] / second[column] - 1) * 100
            values |= {"second": _name(shown, second), "second_value": second[column], "percent": percent}
        sides = [_same(members, row, shown) for row in (best, second) if row is not None]
        found.append(_Contest(best, second, settings, outcome, values, min(map(_starts, sides)), _agree(sides, column)))
    return found


def _same(members: Sequence[Row], row: Row, shown: tuple[str, ...]) -> list[Row]:
    """Return the rows that differ from this one in nothing but the start of the engine, itself among them."""
    return [one for one in members if all(one[key] == row[key] for key in shown)]


def _starts(rows: Sequence[Row]) -> int:
    return len({(row["service"], row.get("attempt"), row.get("job_id")) for row in rows})


def _agree(sides: Sequence[Sequence[Row]], column: str) -> bool:
    """Return whether every row of the first side is better than every one of the second."""
    if len(sides) < 2:
        return True
    first, second = ([row[column] for row in side] for side in sides)
    return bool(max(first) < min(second) if low_is_best(column) else min(first) > max(second))


def _settings(run: Run, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the swept keys that are settings of the service and differ between these rows."""
    asked = [key for key in run.swept if not columns.is_work(key) and not key.startswith("bench.")]
    asked = [key for key in asked if key not in columns.RESTARTS]
    return tuple(key for key in asked if len({str(row[key]) for row in rows}) > 1)


def _name(shown: tuple[str, ...], row: Row) -> str:
    return columns.setting_text(shown, row) or f"point {row['point']}"


def _margin(run: Run, best: Row, second: Row | None, column: str) -> tuple[str, dict[str, Any]]:
    """Return what noise says of the difference, and its figures in percent.

    only: there is no other setting. unknown: too few requests. tie: no difference seen. ahead: beyond the noise
    inside of one window. clear: beyond noise that several windows of both have shown.
    """
    if second is None:
        return "only", {}
    observed = best[column] / second[column] - 1 if second[column] else None
    found = difference(sample(run, second), sample(run, best), column, observed=observed)
    if found is None:
        return "unknown", {}
    if found.holds_zero:
        return "tie", {"least": minimum_detectable(found.error) * 100}
    low, high = sorted((abs(found.low) * 100, abs(found.high) * 100))
    often = min(_repeats(best), _repeats(second)) >= REPEATS
    return "clear" if often else "ahead", {"low": low, "high": high}


def _headline(contests: Sequence[_Contest]) -> tuple[list[Sentence], Row | None]:
    if len(contests) == 1:
        [one] = contests
        return [Sentence(one.outcome, one.values)], one.best if one.outcome in LEADS else None
    settings = tuple(dict.fromkeys(key for one in contests for key in one.settings))
    clear = [one for one in contests if one.outcome in LEADS]
    sure = all(one.outcome == "clear" for one in clear)
    same = len({columns.setting_text(settings, one.best) for one in clear}) == 1
    values = {"kinds": len(contests), "clear": len(clear)}
    if clear and same:
        said = Sentence(
            "same" if sure else "same_ahead", values | {"setting": columns.setting_text(settings, clear[0].best)}
        )
    else:
        said = Sentence("differ" if clear else "none_clear" if settings else "kinds", values)
    listed = [Sentence(f"{one.outcome}_for", one.values) for one in contests[:MOST_KINDS]]
    if len(contests) > MOST_KINDS:
        listed.append(Sentence("more_kinds", {"count": len(contests) - MOST_KINDS}))
    return [said, *listed], clear[0].best if same and clear and len(clear) == len(contests) else None


def _repeats(row: Row) -> int:
    return int(row.get("windows") or 1)


def _cautions(run: Run, contests: Sequence[_Contest]) -> Sequence[Sentence]:
    rows = [row for one in contests for row in (one.best, one.second) if row is not None]
    said = []
    if (least := min(map(_repeats, rows))) < 2:
        said.append(Sentence("once", {"window": run.value(rows[0], "bench.window_s")}))
    else:
        said.append(Sentence("repeated", {"count": least}))
    said += _starts_caution(contests)
    if (fewest := min(row.get("completed") or 0 for row in rows)) < FEW:
        said.append(Sentence("few", {"count": fewest}))
    notes = dict.fromkeys((str(row["point"]), str(row["notes"])) for row in rows if row.get("notes"))
    said += [Sentence("note", {"point": point, "note": note}) for point, note in list(notes)[:MOST_KINDS]]
    return said


def _starts_caution(contests: Sequence[_Contest]) -> list[Sentence]:
    said = []
    ahead = [one for one in contests if one.outcome in LEADS]
    if ahead and min(one.starts for one in ahead) < STARTS:
        said.append(Sentence("one_start", {}))
    elif ahead and all(one.agree for one in ahead):
        said.append(Sentence("starts", {"count": min(one.starts for one in ahead)}))
    if not all(one.agree for one in contests):
        said.append(Sentence("starts_differ", {}))
    return said


def _invalid(run: Run) -> Sequence[Sentence]:
    bad = sum(not row["valid"] for row in run.rows)
    return [Sentence("invalid", {"count": bad, "of": len(run.rows)})] if bad else []
