"""The first paragraph of a report, as sentences with values: which setting won, by how much, whether to believe it.

Each sentence is an id of jobs/results/page/words.json with its values, so that it can be said in every language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.results import keys, slo
from jobs.results.gather import Run, dotted
from jobs.results.noise import difference, sample
from jobs.results.resampling import minimum_detectable

LOW_IS_BEST = ("ttft_", "tpot_", "itl_", "e2el_", "price_", "queue_s", "load_s")
"""Beginnings of the columns in which less is better."""

FEW = 100
"""Under so many requests the 99th percentile is no more than the slowest request or two."""

REPEATS = 3
"""Windows of one setting from which its own scatter can be judged."""

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

    `settings` are the keys in which settings differ within this kind of work.
    """

    best: Row
    second: Row | None
    settings: tuple[str, ...]
    outcome: str
    values: Mapping[str, Any]


def low_is_best(column: str) -> bool:
    """Return whether less is better in this column."""
    return column.startswith(LOW_IS_BEST)


def objective(run: Run) -> str:
    """Return the column that decides: `results.objective` where the config has one, else output tokens a second."""
    return str(dotted(run.config, "results.objective") or "output_tok_s")


def judge(run: Run) -> Verdict:
    """Judge one sweep. Simulated rows are never set against measured ones, nor rows of different work."""
    column, said = objective(run), []
    rows: list[Row] = [row for row in run.rows if row["valid"] and isinstance(row.get(column), int | float)]
    measured = [row for row in rows if row["engine"] != "simulator"]
    simulated = bool(rows) and not measured
    if measured and len(measured) < len(rows):
        said.append(Sentence("left_out_simulated", {"count": len(rows) - len(measured)}))
    rows = measured or rows
    if slo.is_set(run):
        kept, words = _under_objective(run, rows)
        said += words
        rows = kept
    if not rows:
        return Verdict("no", None, (Sentence("nothing", {"count": len(run.rows)}), *said, *_invalid(run)))
    contests = _contests(run, rows, column)
    first, winner = _headline(contests)
    best = contests[0].best if len(contests) == 1 else winner
    if best is not None and len(contests) == 1:
        said.append(Sentence("user", {name: best.get(name) for name in ("ttft_ms_p50", "tpot_ms_p50", "e2el_ms_p50")}))
    said += _cautions(run, [row for one in contests for row in (one.best, one.second) if row is not None])
    if simulated:
        said.append(Sentence("simulated", {}))
    sure = winner is not None and all(one.outcome == "clear" for one in contests)
    believe = "no" if simulated else "yes" if sure else "care"
    return Verdict(believe, None if winner is None else str(winner["point"]), (*first, *said, *_invalid(run)))


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
    work = tuple(key for key in run.swept if keys.is_work(key))
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(keys.words(work, row), []).append(row)
    found = []
    for kind, members in kinds.items():
        ordered = sorted(members, key=lambda row: row[column], reverse=not low_is_best(column))
        best = ordered[0]
        settings = _settings(run, members)
        # Another load of the same setting is no rival; where nothing but the load is swept, loads are compared.
        rivals = [row for row in ordered[1:] if not settings or any(row[key] != best[key] for key in settings)]
        second = rivals[0] if rivals else None
        outcome, margin = _margin(run, best, second, column)
        shown = tuple(key for key in run.swept if key not in work)
        values = {"work": kind, "column": column, "value": best[column], "setting": _name(shown, best)} | margin
        if second is not None and second[column]:
            percent = abs(best[column] / second[column] - 1) * 100
            values |= {"second": _name(shown, second), "second_value": second[column], "percent": percent}
        found.append(_Contest(best, second, settings, outcome, values))
    return found


def _settings(run: Run, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the swept keys that are settings of the service and differ between these rows."""
    asked = [key for key in run.swept if not keys.is_work(key) and not key.startswith("bench.")]
    return tuple(key for key in asked if len({str(row[key]) for row in rows}) > 1)


def _name(shown: tuple[str, ...], row: Row) -> str:
    return keys.words(shown, row) or f"point {row['point']}"


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
    same = len({keys.words(settings, one.best) for one in clear}) == 1
    values = {"kinds": len(contests), "clear": len(clear)}
    if clear and same:
        said = Sentence("same" if sure else "same_ahead", values | {"setting": keys.words(settings, clear[0].best)})
    else:
        said = Sentence("differ" if clear else "none_clear" if settings else "kinds", values)
    listed = [Sentence(f"{one.outcome}_for", one.values) for one in contests[:MOST_KINDS]]
    if len(contests) > MOST_KINDS:
        listed.append(Sentence("more_kinds", {"count": len(contests) - MOST_KINDS}))
    return [said, *listed], clear[0].best if same and clear and len(clear) == len(contests) else None


def _repeats(row: Row) -> int:
    return int(row.get("windows") or 1)


def _cautions(run: Run, rows: Sequence[Row]) -> Sequence[Sentence]:
    said = []
    if (least := min(map(_repeats, rows))) < 2:
        said.append(Sentence("once", {"window": run.value(rows[0], "bench.window_s")}))
    else:
        said.append(Sentence("repeated", {"count": least}))
    if (fewest := min(row.get("completed") or 0 for row in rows)) < FEW:
        said.append(Sentence("few", {"count": fewest}))
    return said


def _invalid(run: Run) -> Sequence[Sentence]:
    bad = sum(not row["valid"] for row in run.rows)
    return [Sentence("invalid", {"count": bad, "of": len(run.rows)})] if bad else []
