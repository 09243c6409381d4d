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
from jobs.sweep.road import composed

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
    configs = composed(compose.expand(options.overrides))
    root = Root(Path(configs[0].results.root).absolute())
    predict, memory = forecaster(root), memory_forecaster(root)
    services: dict[str, list[Config]] = {}
    for config in configs:
        services.setdefault(_service(config), []).append(config)
    found: list[dict[str, Any]] = []
    out = show.console()
    for name, members in services.items():
        fit = memory(members[0]).fit
        loads = members if len(members) > 1 else list(_around(members[0]))
        cells = [_cell(one, fit, predict(one, fit)) for one in loads]
        found.append({"service": name, "memory": _memory(fit), "loads": [_json(one) for one in cells]})
        if not options.json:
            out.print("\n\n".join([f"{name}\n  memory: {_memory(fit)}", *_charts(cells, out.width)]), markup=False)
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


def _charts(cells: list[Cell], width: int) -> Iterator[str]:
    for name, title in TITLES.items():
        unit = COLUMNS[name][1]
        told = [(one.label, one.said.get(name)) for one in cells]
        lines = [Line(label, said and _times(said, unit), "not known beforehand") for label, said in told]
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
        f"how sure: {len(known)} published figures of this hardware whose layout is known are met within {worst:.0%},"
        f" each by the others alone within {left:.0%} (docs/tuning.md); what sweeps under results.root showed is"
        " learnt from"
    )


COMMANDS = (
    Command("forecast", _forecast, "predict times and rates over length and load, and what fits", (OVERRIDES,)),
)
