"""From a window's records to the figures of a row. Pure numpy; a figure that does not exist is None, never 0 or NaN.

Latencies (`latencies`) are those of whole answers to requests that started in the window, by the definitions of
`vllm bench serve` (vllm/benchmarks/serve.py), so that figures compare:
    TTFT = first token chunk - start            E2EL = last token chunk - start
    TPOT = (E2EL - TTFT) / (n - 1), n output tokens by the engine's count; undefined for n = 1
    ITL  = gaps between successive token chunks, pooled over all requests
An answer of several tokens that came in one piece has no TPOT and no ITL: a time of 0 would be the best of all.
Rates look at the window alone: what happened in [opened, closed), whenever its request started. So neither the
ramp before nor the drain after can bias them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.core.config import Bench
from jobs.core.load import Slo
from jobs.measure.records import RequestRecord, Window

if TYPE_CHECKING:
    import pyarrow as pa

Figure = float | int | None
Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 99)

UNKNOWN = "is unknown"
"""In the words of `broken`: the requests do not tell whether a limit is kept."""


def enough(count: int, percentile: float) -> bool:
    """Tell whether so many values can show a percentile: one of them lies beyond it (p90: 10, p99: 100 values).

    A p99 of 20 values would be their maximum under another name. The median is shown of any number.
    """
    return count > 0 and (percentile <= 50 or count * (100 - percentile) >= 100)


class Latencies(NamedTuple):
    """Latencies of one request in ms; itl has shape (chunks - 1,). None: undefined for this request."""

    ttft: float | None
    tpot: float | None
    itl: Floats
    e2el: float | None


def latencies(record: RequestRecord) -> Latencies:
    """Return the latencies of one request, of the part of the answer that came."""
    if record.first_token_s is None:
        return Latencies(None, None, np.empty(0), None)
    times = record.chunk_times
    ttft = (record.first_token_s - record.start_s) * 1e3
    e2el = (float(times[-1]) - record.start_s) * 1e3
    tokens = record.output_tokens or 0
    if in_one_piece(record):
        return Latencies(ttft, None, np.empty(0), e2el)
    tpot = (e2el - ttft) / (tokens - 1) if tokens > 1 else None
    return Latencies(ttft, tpot, np.diff(times) * 1e3, e2el)


def in_one_piece(record: RequestRecord) -> bool:
    """Tell whether all tokens of an answer of several came at one moment: in one chunk, or in one network read."""
    times = record.chunk_times
    return len(times) > 0 and (record.output_tokens or len(times)) > 1 and bool(times[-1] == times[0])


def summarize(window: Window, bench: Bench) -> dict[str, Figure]:
    """Return the figures of a window by column name, in the order of the table.

    completed, failed, truncated_requests: requests that started in the window, by how they ended.
    request_s: whole answers that *ended* in the window, per second.
    {ttft,tpot,itl,e2el}_ms_{mean,std,p50,p90,p99}: ms; std with denominator N and percentiles by linear
        interpolation, both as numpy's (and `vllm bench serve`'s) defaults. A percentile of too few values is None
        (`enough`).
    goodput_s: whole answers that ended in the window and kept every limit of `bench.slo`, per second.
    input_tokens_mean, output_tokens_mean: real lengths by the engine's count.
    prefix_hit_share: prompt tokens of the window that the engines found in their prefix caches.
    preemptions: requests of the window that an engine put back for want of KV cache; their tokens are computed twice.
    output_tok_s: output tokens that arrived in the window, per second (`arrived_tokens`).
    total_tok_s: the same plus the prompts of requests whose first token arrived in the window.
    tok_s_per_user: 1000 / tpot_ms_mean: the decoding speed that one user sees.
    client_cpu_share: processor time of this process per second of window; near 1 the client was measured, not
        the service.
    """
    counted = [record for record in window.records if record.in_window]
    whole = [record for record in counted if record.status == "ok"]
    answered = [latencies(record) for record in whole]
    row: dict[str, Figure] = {
        "completed": len(answered),
        "failed": sum(record.status == "failed" for record in counted),
        "truncated_requests": sum(record.status == "truncated" for record in counted),
        "request_s": _per_second(_ended(window), window),
    }
    row |= _spread("ttft_ms", [one.ttft for one in answered if one.ttft is not None])
    row |= _spread("tpot_ms", [one.tpot for one in answered if one.tpot is not None])
    row |= _spread("itl_ms", np.concatenate([one.itl for one in answered]) if answered else ())
    row |= _spread("e2el_ms", [one.e2el for one in answered if one.e2el is not None])
    output = arrived_tokens(window)
    tpot = row["tpot_ms_mean"]
    row["output_tok_s"] = _per_second(output, window)
    row["total_tok_s"] = _per_second(output + _prompt_tokens(window, bench), window)
    row["tok_s_per_user"] = 1e3 / tpot if tpot else None
    row["client_cpu_share"] = _per_second(window.cpu_s, window)
    row["goodput_s"] = _per_second(kept(window, bench.slo), window) if any(asdict(bench.slo).values()) else None
    row["input_tokens_mean"] = _mean(record.prompt_tokens for record in whole)
    row["output_tokens_mean"] = _mean(record.output_tokens for record in whole)
    growth = window.growth
    row["prefix_hit_share"] = growth.prefix_hit_share
    row["preemptions"] = growth.preemptions
    return row


def kept(window: Window, slo: Slo) -> int:
    """Return the whole answers that ended in the window within every limit; of ITL the request's own p99 counts."""
    return sum(_keeps(record, slo) for record in window.records if _is_ended(record, window))


def _keeps(record: RequestRecord, slo: Slo) -> bool:
    """An answer that came in one piece hides how fast its tokens came, so it keeps no limit of that."""
    hidden = (slo.tpot_ms_p99 is not None or slo.itl_ms_p99 is not None) and in_one_piece(record)
    return within(latencies(record), slo) and not hidden


def within(one: Latencies, slo: Slo) -> bool:
    """Tell whether a request kept every limit; a latency that it does not have breaks none."""
    itl = float(np.percentile(one.itl, 99)) if one.itl.size else None
    pairs = (
        (one.ttft, slo.ttft_ms_p99),
        (one.tpot, slo.tpot_ms_p99),
        (itl, slo.itl_ms_p99),
        (one.e2el, slo.e2el_ms_p99),
    )
    return all(value is None or limit is None or value <= limit for value, limit in pairs)


def broken(window: Window, slo: Slo) -> str | None:
    """Return the first limit that the window's requests break, with the figure, or None.

    The 99th percentile is taken of however many there are: of few it is nearly their maximum, which is on the safe
    side of the limit.
    """
    whole = [record for record in window.records if record.in_window and record.status == "ok"]
    each = [latencies(record) for record in whole]
    for name, limit in asdict(slo).items():
        if limit is None or not each:
            continue
        field = name.partition("_")[0]
        if field in ("tpot", "itl") and all(map(in_one_piece, whole)):
            return f"{name} {UNKNOWN}: answers came in one piece"
        values = (
            np.concatenate([one.itl for one in each])
            if field == "itl"
            else np.array([getattr(one, field) for one in each if getattr(one, field) is not None])
        )
        if values.size and (found := float(np.percentile(values, 99))) > limit:
            return f"{name} is {found:.4g}, the limit {limit:g}"
    return None


def of_series(window: Window) -> dict[str, Figure]:
    """Return figures of what the service said of itself in the window: means over time, of all engines together."""
    inside = [sample for sample in window.series if window.opened_s <= sample.time_s < window.closed_s]
    uses = [sample.kv_use for sample in inside if sample.kv_use is not None]
    return {
        "running_mean": _mean_total((sample.time_s, sample.running) for sample in inside),
        "waiting_mean": _mean_total((sample.time_s, sample.waiting) for sample in inside),
        "kv_use_max": max(uses, default=None),
    }


def _mean_total(samples: Iterable[tuple[float, float | None]]) -> float | None:
    """Return the mean over moments of the sums over engines."""
    totals: dict[float, float] = {}
    for time, value in samples:
        if value is not None:
            totals[time] = totals.get(time, 0.0) + value
    return float(np.mean(list(totals.values()))) if totals else None


def arrived_tokens(window: Window, since_s: float | None = None, until_s: float | None = None) -> float:
    """Return the output tokens that arrived in [since, until) of all requests but failed ones; usually in the window.

    A chunk may carry several tokens, and the engine tells their number at the end of an answer alone: so the
    tokens of an answer are shared out evenly over its chunks. A chunk of a truncated request counts for
    `tokens_a_chunk`.
    """
    since = window.opened_s if since_s is None else since_s
    until = window.closed_s if until_s is None else until_s
    mean, total = tokens_a_chunk(window), 0.0
    for record in window.records:
        times = record.chunk_times
        if record.status != "failed" and len(times):
            inside = int(np.count_nonzero((times >= since) & (times < until)))
            total += inside * (record.output_tokens / len(times) if record.output_tokens else mean)
    return total


def tokens_a_chunk(window: Window) -> float:
    """Return the tokens of the mean chunk of the whole answers, 1 where there is none."""
    whole = [r for r in window.records if r.status == "ok" and r.output_tokens]
    chunks = sum(len(r.chunk_times) for r in whole)
    return sum(r.output_tokens or 0 for r in whole) / chunks if chunks else 1.0


def series_table(windows: Sequence[Window]) -> pa.Table:
    """Return one row per engine and second, for series.parquet: times in s from the opening of its window."""
    import pyarrow as pa

    pairs = [(number, window, sample) for number, window in enumerate(windows, 1) for sample in window.series]
    columns = {
        "window": pa.array([number for number, _, _ in pairs], pa.int64()),
        "time_s": pa.array([sample.time_s - window.opened_s for _, window, sample in pairs], pa.float64()),
        "in_window": pa.array([w.opened_s <= sample.time_s < w.closed_s for _, w, sample in pairs], pa.bool_()),
        "engine": pa.array([sample.engine for _, _, sample in pairs], pa.string()),
    }
    for name in ("running", "waiting", "kv_use", "preemptions", "generated_tokens"):
        columns[name] = pa.array([getattr(sample, name) for _, _, sample in pairs], pa.float64())
    return pa.table(columns)


def requests_table(windows: Sequence[Window], in_row: Collection[int] | None = None) -> pa.Table:
    """Return the requests of all windows of a point; the column `window` counts from 1.

    Args:
        windows: in order of time.
        in_row: numbers of the windows whose figures stand in the row, as the column `in_row` says; None: all do.
    """
    import pyarrow as pa

    tables = [records_table(window) for window in windows] or [records_table(_EMPTY)]
    numbers = [number for number, table in enumerate(tables, 1) for _ in range(len(table))]
    stands = [in_row is None or number in in_row for number in numbers]
    whole = pa.concat_tables(tables).append_column("window", pa.array(numbers, pa.int64()))
    return whole.append_column("in_row", pa.array(stands, pa.bool_()))


_EMPTY = Window(0.0, 0.0, 0.0, 0.0, (), {}, 0.0, truncated=True)


def records_table(window: Window) -> pa.Table:
    """Return one row per request: times in s from the opening, latencies in ms."""
    import pyarrow as pa

    records = window.records
    each = [latencies(record) for record in records]
    columns = {
        "index": pa.array([r.index for r in records], pa.int64()),
        "start_s": pa.array([r.start_s - window.opened_s for r in records], pa.float64()),
        "queue_s": pa.array([r.queue_s for r in records], pa.float64()),
        "ttft_ms": pa.array([one.ttft for one in each], pa.float64()),
        "tpot_ms": pa.array([one.tpot for one in each], pa.float64()),
        "e2el_ms": pa.array([one.e2el for one in each], pa.float64()),
        "prompt_tokens": pa.array([r.prompt_tokens for r in records], pa.int64()),
        "output_tokens": pa.array([r.output_tokens for r in records], pa.int64()),
        "chunks": pa.array([len(r.chunk_times) for r in records], pa.int64()),
        "itl_ms": pa.array([one.itl.astype(np.float32) for one in each], pa.list_(pa.float32())),
        "status": pa.array([r.status for r in records], pa.string()),
        "error": pa.array([r.error for r in records], pa.string()),
        "in_window": pa.array([r.in_window for r in records], pa.bool_()),
    }
    return pa.table(columns)


def _ended(window: Window) -> int:
    return sum(_is_ended(record, window) for record in window.records)


def _is_ended(record: RequestRecord, window: Window) -> bool:
    return record.status == "ok" and window.opened_s <= record.end_s < window.closed_s


def _mean(values: Iterable[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _prompt_tokens(window: Window, bench: Bench) -> float:
    """Return the prompt tokens of requests whose first token arrived in the window.

    The engine's own count where it came, else the mean of those that did, else `bench.input_tokens`.
    """
    known = [r.prompt_tokens for r in window.records if r.prompt_tokens is not None]
    usual = float(np.mean(known)) if known else float(bench.input_tokens)
    return sum(
        usual if r.prompt_tokens is None else r.prompt_tokens
        for r in window.records
        if r.status != "failed" and r.first_token_s is not None and window.opened_s <= r.first_token_s < window.closed_s
    )


def _spread(name: str, values: Iterable[float]) -> dict[str, Figure]:
    data = np.asarray(values, dtype=np.float64)
    keys = [f"{name}_mean", f"{name}_std", *(f"{name}_p{p}" for p in PERCENTILES)]
    if not data.size:
        return dict.fromkeys(keys)
    shown = [
        value if enough(data.size, p) else None
        for p, value in zip(PERCENTILES, np.percentile(data, PERCENTILES), strict=True)
    ]
    figures = [data.mean(), data.std(), *shown]
    return {key: None if figure is None else float(figure) for key, figure in zip(keys, figures, strict=True)}


def _per_second(amount: float, window: Window) -> float | None:
    return amount / window.seconds if window.seconds > 0 else None
