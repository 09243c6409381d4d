"""The rows that taught the forecast, kept under `results.root` by engine; what it says of a point; what is unexpected.

What sweeps have shown is learnt anew from their rows whenever it is asked for: a fit over eighty points takes
two seconds, and nothing that was learnt can be older than its rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.core.files import write_json
from jobs.core.foreign import LARGE, load_form
from jobs.core.rundir import Root
from jobs.engines.base import engine_of
from jobs.engines.layout_name import layout_name
from jobs.engines.prediction import Layout
from jobs.forecast.demand import demand_of, sizes_of
from jobs.forecast.learn import Learnt, Observation, Predicted, Subject, explanation, learn, outside
from jobs.forecast.memory import Fit

KEPT = 400
"""Rows of an engine: the last ones."""

COLUMNS = {"ttft_s": ("ttft_ms_mean", 1e3), "tpot_s": ("tpot_ms_mean", 1e3), "output_per_s": ("output_tok_per_s", 1.0)}
"""Column of a row for each figure of the model, and what one unit of the model is in it."""

NORMAL_90, NORMAL_99 = 1.645, 2.576
FAR = NORMAL_99 / NORMAL_90

NEARER = (0.0, 0.0, 0.707, 0.588, 0.801, 0.874, 0.999, 1.056, 1.146, 1.193, 1.26)
"""Of so many values of deviation 1, how far the end that lies nearer to their median lies from it (root of the mean
square, drawn 40,000 times): one window that something disturbed is at the other end, and the median does without it."""


@dataclass(frozen=True)
class _Kept:
    rows: tuple[Observation, ...]


def subject_of(config: Config, fit: Fit | None = None) -> Subject | None:
    """Return a point as the model of time sees it; its memory forecast limits what runs at once.

    None: its requests are not known beforehand, or it has no layout.
    """
    made = fit.prediction if fit else None
    load = demand_of(config, made.kv_tokens_per_rank if made and made.kv_tokens_per_rank > 0 else None)
    if load is None:
        return None
    try:
        layout = layout_name(config)
    except ConfigError:
        return None
    traits = engine_of(config).traits
    scope = {
        "engine": config.engine.name,
        "release": config.engine.release,
        "model": config.model.name,
        "layout": layout,
    }
    return Subject(
        scope,
        sizes_of(config),
        Layout.of(config),
        load,
        npus_per_node=config.cluster.npus_per_node,
        anchored=traits.npus or traits.simulated,
    )


def observation(config: Config, fit: Fit | None, row: Mapping[str, Any]) -> Observation | None:
    """Return what a row teaches; None: it is not valid, was cut short, or its load is not known beforehand."""
    subject = subject_of(config, fit)
    if subject is None or not row.get("valid") or row.get("truncated"):
        return None
    measured = {
        name: row[column] / unit
        for name, (column, unit) in COLUMNS.items()
        if isinstance(row.get(column), int | float) and row[column] > 0
    }
    if subject.load.rate is not None:  # what was offered is no figure of the service
        measured.pop("output_per_s", None)
    scatter = (window_scatter(row, "output_tok_per_s") or 0.0) / math.sqrt(row.get("windows") or 1)
    return Observation(subject, measured, scatter) if measured else None


def window_scatter(row: Mapping[str, Any], column: str) -> float | None:
    """Return the deviation of a window of a row, as a logarithm; None: its windows are too few or too many to tell."""
    told = (row.get(name) for name in (f"{column}_min", column, f"{column}_max"))
    ends = [math.log(one) for one in told if isinstance(one, int | float) and one > 0]
    count = row.get("windows") or 1
    if len(ends) < 3 or not 2 <= count < len(NEARER):
        return None
    return max(0.0, min(ends[2] - ends[1], ends[1] - ends[0])) / NEARER[count]


def remember(root: Root, rows: Iterable[Observation]) -> None:
    """Keep what rows showed. Two writers replace each other's file, never mix. RunError: the file cannot be written."""
    for engine, found in _by_engine(rows).items():
        kept = (*kept_rows(root, engine), *found)[-KEPT:]
        write_json(root.figures(engine), _Kept(kept))


def _by_engine(rows: Iterable[Observation]) -> dict[str, list[Observation]]:
    found: dict[str, list[Observation]] = {}
    for one in rows:
        found.setdefault(one.subject.scope["engine"], []).append(one)
    return found


def kept_rows(root: Root, engine: str) -> tuple[Observation, ...]:
    """Return the rows of an engine that are kept."""
    path = root.figures(engine)
    try:
        return load_form(path, _Kept, LARGE, ours=True).rows if path.exists() else ()
    except RunError:  # torn, of another version, or another user's: nothing is known, and that is always safe
        return ()


def learnt_of(root: Root, engine: str, but: Iterable[Subject] = ()) -> Learnt:
    """Return what is believed of an engine after all rows under `root`; those of some points would count twice."""
    left_out = list(but)
    return learn(one for one in kept_rows(root, engine) if one.subject not in left_out)


def forecaster(root: Root) -> Callable[[Config, Fit | None], dict[str, Predicted]]:
    """Return what says the figures of points; empty where nothing is known of a load beforehand."""
    learnt = cache(lambda engine: learnt_of(root, engine))

    def predict(config: Config, fit: Fit | None = None) -> dict[str, Predicted]:
        subject = subject_of(config, fit)
        return learnt(config.engine.name).predict(subject) if subject else {}

    return predict


def _far(said: Mapping[str, Predicted], scatter: float) -> dict[str, Predicted]:
    """Return the intervals outside of which a row is unexpected: wider than those of 90 %, of which healthy rows leave
    one in ten, and with the scatter of the row's own windows, which is judged no finer than it tells.
    """
    found = {}
    for name, one in said.items():
        own = math.log(one.high / one.value) if math.isfinite(one.high) else math.inf
        more = math.exp(FAR * math.hypot(own, NORMAL_90 * scatter))
        found[name] = replace(one, low=one.value / more, high=one.value * more)
    return found


def beside(learnt: Learnt, rows: Mapping[str, Observation]) -> dict[str, dict[str, Any]]:
    """Return for each point the columns that stand beside what was measured: predicted figures, and what is unexpected.

    `learnt` is from before these rows, which are of one service: what explains one of them has to explain all.
    """
    told = {point: _far(learnt.predict(one.subject), one.scatter) for point, one in rows.items()}
    strange = {point: outside(told[point], one.measured) for point, one in rows.items()}
    terms = " or ".join(explanation(learnt, tuple(rows.values()))) if any(strange.values()) else ""
    found: dict[str, dict[str, Any]] = {}
    for point, said in told.items():
        known = ((*COLUMNS[name], one.value) for name, one in said.items() if not one.declined)
        columns: dict[str, Any] = {f"forecast_{column}": round(value * unit, 2) for column, unit, value in known}
        words = []
        for name in strange[point]:
            (column, unit), one = COLUMNS[name], said[name]
            way = "{} is below {} to {}" if rows[point].measured[name] < one.low else "{} is above {} to {}"
            words.append(way.format(column, f"{one.low * unit:,.4g}", f"{one.high * unit:,.4g}"))
        if words:
            columns["unexpected"] = f"{'; '.join(words)}: {terms} would explain it"
        found[point] = columns
    return found
