"""What services will show, before any of them runs: times and rates over length and load, and what fits in memory."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.cli import OVERRIDES, Command
from jobs.core.config import Config
from jobs.core.load import USUAL_CONCURRENCY
from jobs.core.rundir import Root
from jobs.forecast.anchors import errors
from jobs.forecast.chart import Line, chart
from jobs.forecast.history import forecaster as memory_forecaster
from jobs.forecast.learn import LEVEL, Predicted
from jobs.forecast.memory import Fit, queueing
from jobs.forecast.observed import COLUMNS, forecaster
from jobs.sweep import compose, show
from jobs.sweep.check import findings, refuse
from jobs.sweep.grammar import swept_keys
from jobs.sweep.points import points_of
from jobs.sweep.road import composed
from jobs.sweep.services_text import set_apart

TITLES = {
    "ttft_s": "time to first token, ms, mean",
    "tpot_s": "time per output token, ms, mean",
    "output_per_s": "output tokens/s, all ranks",
}
LOADS = (1, 4, 16, 64)
"""Concurrencies that are shown where the points themselves are one load."""

FIRST = 1024
"""The shortest prompt that is shown; each next one is four times as long, up to what the service holds."""


@dataclass(frozen=True)
class Cell:
    """One load of one service: `waits`: why not all of it runs at once."""

    label: str
    input_tokens: int
    concurrency: int | None
    said: dict[str, Predicted]
    waits: str


def _forecast(options: argparse.Namespace) -> int:
    asked = compose.expand(options.overrides)
    configs = composed(asked)
    for config in configs:
        refuse(findings(config))  # any figure of what can't run would be wrong
    root = Root(Path(configs[0].results.root).absolute())
    predict, memory = forecaster(root), memory_forecaster(root)
    points = points_of(asked, configs, swept_keys(asked))
    services: dict[str, list[tuple[Config, str, str]]] = {}
    for point, (setting, load) in zip(points, set_apart(points), strict=True):
        services.setdefault(point.service, []).append((point.config, setting, load))
    found: list[dict[str, Any]] = []
    out = show.console()
    for members in services.values():
        first, setting, _ = members[0]
        name = (f"{setting}: " if setting and len(services) > 1 else "") + _service(first)
        fit = memory(first).fit
        loads = [(one, load) for one, _, load in members] if len(members) > 1 else [(one, "") for one in _around(first)]
        cells = _told_apart(
            [_cell(one, fit, {} if fit.refusal else predict(one, fit)) for one, _ in loads], [load for _, load in loads]
        )
        found.append({"service": name, "memory": _memory(fit), "loads": [_json(one) for one in cells]})
        if not options.json:
            out.print("\n\n".join([f"{name}\n  memory: {_memory(fit)}", *_charts(cells, out.width, fit)]), markup=False)
            out.print("")
    if options.json:
        print(json.dumps(found if len(found) > 1 else found[0]))
    else:
        out.print(stated_error(), markup=False)
    return 0


def _service(config: Config) -> str:
    p = config.parallel
    extra = "".join(
        f" {name}{size}"
        for name, size in (("pp", p.pipeline_parallel_size), ("dcp", p.decode_context_parallel_size))
        if size and size > 1
    )
    return (
        f"{config.engine.name} {config.engine.release}, {config.model.name},"
        f" dp{p.data_parallel_size}_tp{p.tensor_parallel_size}{extra}, max_model_len={p.max_model_len},"
        f" max_num_seqs={p.max_num_seqs}, max_num_batched_tokens={p.max_num_batched_tokens}"
    )


def _around(config: Config) -> Iterator[Config]:
    """Yield loads over length and concurrency around the one that is asked for."""
    bench = config.bench
    room = config.parallel.max_model_len - bench.output_tokens
    steps = range(max(1, math.ceil(math.log(max(room, 1) / FIRST, 4)) + 1)) if room >= FIRST else ()
    lengths = sorted({bench.input_tokens, *(min(FIRST * 4**n, room) for n in steps)})
    loads = sorted({bench.concurrency or 0, *LOADS} - {0}) if not bench.is_open else [bench.concurrency]
    for length in lengths:
        for load in loads:
            yield replace(config, bench=replace(bench, input_tokens=length, concurrency=load))


def _cell(config: Config, fit: Fit, said: dict[str, Predicted]) -> Cell:
    bench = config.bench
    waits = queueing(config, fit)
    how = f"{bench.request_rate:g}/s" if bench.request_rate else f"x{bench.concurrency or USUAL_CONCURRENCY}"
    cause = f"{waits.capacity} run at once: {waits.cause}" if waits else ""
    return Cell(f"{bench.input_tokens:,} {how}", bench.input_tokens, bench.concurrency, said, cause)


def _told_apart(cells: list[Cell], loads: list[str]) -> list[Cell]:
    """Return cells whose labels are of one load each: prompt and concurrency, or else all that was swept."""
    if len({one.label for one in cells}) == len(cells):
        return cells
    return [replace(one, label=load) for one, load in zip(cells, loads, strict=True)]


def _charts(cells: list[Cell], width: int, fit: Fit) -> Iterator[str]:
    why = "no forecast: it does not start" if fit.refusal else "no forecast: nothing is known beforehand of such a load"
    for name, title in TITLES.items():
        unit = COLUMNS[name][1]
        told = [(one.label, one.said.get(name)) for one in cells]
        lines = [Line(label, said and _times(said, unit), why) for label, said in told]
        yield chart(f"{title} ({LEVEL:.0%} interval), by prompt tokens and load", lines, min(width, 110))
    if waiting := sorted({f"  {one.label}: {one.waits}" for one in cells if one.waits}):
        yield "\n".join(["more than the service holds; the rest waits, in the time to first token", *waiting])


def _times(said: Predicted, unit: float) -> Predicted:
    return replace(said, value=said.value * unit, low=said.low * unit, high=said.high * unit)


def _memory(fit: Fit) -> str:
    made = fit.prediction
    if made is None:
        return f"not known: {fit.unknown}"
    said = fit.refusal or fit.doubt or "fits"
    return f"max_model_len={fit.length:,}: {said}; {made.kv_tokens_per_rank:,} tokens of KV cache in each rank"


def _json(cell: Cell) -> dict[str, Any]:
    told = ((*COLUMNS[name], one) for name, one in cell.said.items())
    return asdict(cell) | {"said": {column: asdict(_times(one, unit)) for column, unit, one in told}}


def stated_error() -> str:
    """Return how far the model is from what others measured, in one line."""
    known = [one for one in errors() if one.anchor.known]
    worst = max(abs(one.relative) for one in known)
    left = max(abs(one.left_out / one.measured - 1) for one in known if one.left_out)
    return (
        f"how sure: {len(known)} published figures of this hardware whose layout is known are met within"
        f" {math.ceil(100 * worst)}%, each by the others alone within {math.ceil(100 * left)}% (docs/tuning.md);"
        " what sweeps under results.root showed is learnt from"
    )


COMMANDS = (
    Command("forecast", _forecast, "predict times and rates over length and load, and what fits", (OVERRIDES,)),
)
