"""From a window's records to the figures of a row. Pure numpy; a figure that does not exist is None, never 0 or NaN.

Latencies (`latencies`) are those of whole answers to requests that started in the window, by the definitions of
`vllm bench serve` (vllm/benchmarks/serve.py), so that figures compare:
    TTFT = first token chunk - start            E2EL = last token chunk - start
    TPOT = (E2EL - TTFT) / (n - 1), n output tokens by the engine's count; undefined for n = 1
    ITL  = gaps between successive token chunks, pooled over all requests
Rates look at the window alone: what happened in [opened, closed), whenever its request started. So neither the
ramp before nor the drain after can bias them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config import Bench
from jobs.measure.records import RequestRecord, Window

Figure = float | int | None
Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 99)


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
    tpot = (e2el - ttft) / (tokens - 1) if tokens > 1 else None
    return Latencies(ttft, tpot, np.diff(times) * 1e3, e2el)


def summarize(window: Window, bench: Bench) -> dict[str, Figure]:
    """Return the figures of a window by column name, in the order of the table.

    completed, failed, truncated_requests: requests that started in the window, by how they ended.
    request_s: whole answers that *ended* in the window, per second.
    {ttft,tpot,itl,e2el}_ms_{mean,std,p50,p90,p99}: ms; std with denominator N and percentiles by linear
        interpolation, both as numpy's (and `vllm bench serve`'s) defaults.
    output_tok_s: output tokens that arrived in the window, per second (`arrived_tokens`).
    total_tok_s: the same plus the prompts of requests whose first token arrived in the window.
    tok_s_per_user: 1000 / tpot_ms_mean: the decoding speed that one user sees.
    client_cpu_share: processor time of this process per second of window; near 1 the client was measured, not
        the service.
    """
    counted = [record for record in window.records if record.in_window]
    answered = [latencies(record) for record in counted if record.status == "ok"]
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
    return row


def arrived_tokens(window: Window) -> float:
    """Return the output tokens that arrived in [opened, closed), of all requests but failed ones.

    A chunk may carry several tokens, and the engine tells their number at the end of an answer alone: so the
    tokens of an answer are shared out evenly over its chunks. A chunk of a truncated request counts for as many
    tokens as the mean chunk of the whole answers, or one where there is none.
    """
    whole = [r for r in window.records if r.status == "ok" and r.output_tokens]
    chunks = sum(len(r.chunk_times) for r in whole)
    mean = sum(r.output_tokens or 0 for r in whole) / chunks if chunks else 1.0
    total = 0.0
    for record in window.records:
        times = record.chunk_times
        if record.status != "failed" and len(times):
            inside = int(np.count_nonzero((times >= window.opened_s) & (times < window.closed_s)))
            total += inside * (record.output_tokens / len(times) if record.output_tokens else mean)
    return total


def records_table(window: Window) -> pa.Table:
    """Return one row per request, for requests.parquet: times in s from the opening, latencies in ms."""
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
    return sum(r.status == "ok" and window.opened_s <= r.end_s < window.closed_s for r in window.records)


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
    figures = [data.mean(), data.std(), *np.percentile(data, PERCENTILES)]
    return {key: float(figure) for key, figure in zip(keys, figures, strict=True)}


def _per_second(amount: float, window: Window) -> float | None:
    return amount / window.seconds if window.seconds > 0 else None
