"""From a window's records to the figures of a row. Pure numpy; a figure that does not exist is None, never 0 or NaN.

Latencies (`latencies`) are those of whole answers to requests that came in the window. In a closed loop they have the
definitions of `vllm bench serve` (vllm/benchmarks/serve.py), so that figures compare; in an open loop they count from
the intended arrival, as MLPerf LoadGen's do (from `scheduled_time`), whenever there was a slot to send the request:
    TTFT = first token chunk - arrival          E2EL = last token chunk - arrival
    TPOT = (E2EL - TTFT) / (n - 1), n output tokens by the engine's count; undefined for n = 1
    ITL  = gaps between successive token chunks, pooled over all requests
An answer of several tokens that came in one piece has no TPOT and no ITL: a time of 0 would be the best of all.
Rates of a closed loop are those of Little's law, so that a window of few rounds tells them too (rounds.py). All others
look at the window alone: what happened in [opened, closed), whenever its request started. So neither the ramp before
nor the drain after can bias them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.core.config import Bench
from jobs.core.load import Slo
from jobs.measure import rounds
from jobs.measure.records import NEVER, RequestRecord, Window, by_moment

if TYPE_CHECKING:
    import pyarrow as pa

Figure = float | int | None
Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 99)

MOMENT_S = 1e-3
"""What comes within it comes at one moment: the finest that a trace tells."""


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
    ttft = (record.first_token_s - record.came_s) * 1e3
    e2el = (float(times[-1]) - record.came_s) * 1e3
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

    completed, failed, truncated_requests: requests that came in the window, by how they ended.
    offered_per_s: open loop: requests that came in the window, per second. Of a fixed number of them the rate that was
        asked for; of a trace one by the mean time between two arrivals (None: all came at one moment).
    request_per_s: whole answers per second: open loop: that *ended* in the window; closed loop: see rounds.py.
    wait_ms_{p50,p99}: open loop: from the intended arrival to the sending, ms, of all requests that came.
    {ttft,tpot,itl,e2el}_ms_{mean,std,p50,p90,p99}: ms; std with denominator N and percentiles by linear
        interpolation, both as numpy's (and `vllm bench serve`'s) defaults. A percentile of too few values is None
        (`enough`).
    goodput_per_s: those of them that kept every limit of `bench.slo`, per second.
    input_tokens_mean, output_tokens_mean: real lengths by the engine's count.
    prefix_hit_share: prompt tokens of the window that the engines found in their prefix caches.
    preemptions: requests of the window that an engine put back for want of KV cache; their tokens are computed twice.
    output_tok_per_s: output tokens per second: open loop: that arrived in the window (`arrived_tokens`), without those
        of the known questions among the load.
    total_tok_per_s: the same plus the prompts; open loop: of requests whose first token arrived in the window.
    tok_per_s_per_user: mean over requests of 1000 / its TPOT, as AIPerf has it (`output_token_throughput_per_user`):
        the decoding speed that one user sees.
    client_cpu_share: processor time of this process per second of window; near 1 the client was measured, not
        the service.
    client_lag_ms_p99: how late the client's own loop was in 99 of 100 moments from the opening to the end of the drain.
    """
    counted = [record for record in window.records if record.in_window]
    whole = [record for record in counted if record.status == "ok"]
    answered = [latencies(record) for record in whole]
    requests, output, total, goodput = _rates(window, bench)
    row: dict[str, Figure] = {
        "completed": len(answered),
        "failed": sum(record.status == "failed" for record in counted),
        "truncated_requests": sum(record.status == "truncated" for record in counted),
        "offered_per_s": _offered(counted, window, bench),
        "request_per_s": requests,
    }
    waits = np.array([record.wait_s * 1e3 for record in counted if bench.is_open])
    row |= {f"wait_ms_p{p}": float(np.percentile(waits, p)) if enough(waits.size, p) else None for p in (50, 99)}
    row |= _spread("ttft_ms", [one.ttft for one in answered if one.ttft is not None])
    row |= _spread("tpot_ms", [one.tpot for one in answered if one.tpot is not None])
    row |= _spread("itl_ms", np.concatenate([one.itl for one in answered]) if answered else ())
    row |= _spread("e2el_ms", [one.e2el for one in answered if one.e2el is not None])
    row["output_tok_per_s"], row["total_tok_per_s"] = output, total
    row["tok_per_s_per_user"] = mean(1e3 / one.tpot for one in answered if one.tpot)
    row["client_cpu_share"] = window.cpu_s / window.seconds if window.seconds > 0 else None
    row["client_lag_ms_p99"] = float(np.percentile(window.lags, 99)) * 1e3 if window.lags.size else None
    row["goodput_per_s"] = goodput if any(asdict(bench.slo).values()) else None
    row["input_tokens_mean"] = mean(record.prompt_tokens for record in whole)
    row["output_tokens_mean"] = mean(record.output_tokens for record in whole)
    growth = window.growth
    row["prefix_hit_share"] = growth.prefix_hit_share
    row["preemptions"] = growth.preemptions
    return row


def _offered(counted: Sequence[RequestRecord], window: Window, bench: Bench) -> float | None:
    if not bench.is_open or not counted:
        return None
    if bench.workload == "trace":
        came = [one.came_s for one in counted]
        seconds = max(came) - min(came)
        return (len(came) - 1) / seconds if seconds > MOMENT_S else None
    if bench.num_requests:  # so many come in just the time that the rate asks for (arrivals.py)
        return bench.request_rate if len(counted) == bench.num_requests else None
    return len(counted) / window.seconds if window.seconds > 0 else None


def _rates(window: Window, bench: Bench) -> tuple[Figure, Figure, Figure, Figure]:
    """Return whole answers, output tokens, all tokens and answers within `bench.slo`, each per second."""
    if rounds.in_rounds(bench):
        each = rounds.per_request(window)
        came = [record for record in window.records if record.in_window and record.status != "failed"]
        whole = [record for record in came if record.status == "ok"]
        output = arrived_tokens(window, -np.inf, np.inf, came)
    else:
        each = 1 / window.seconds if window.seconds > 0 else None
        ours = [one for one in window.records if one.status != "failed" and not one.check]
        came = [one for one in ours if window.holds(one.first_token_s)]
        whole = [one for one in ours if one.status == "ok" and window.holds(one.end_s)]
        output = arrived_tokens(window, of=ours)
    if each is None:
        return None, None, None, None
    prompts = _prompt_tokens(came, window, bench)
    return len(whole) * each, output * each, (output + prompts) * each, kept(whole, bench.slo) * each


def kept(records: Iterable[RequestRecord], slo: Slo) -> int:
    """Return how many whole answers are within every limit; of ITL the request's own p99 counts."""
    return sum(share_of_limits(record, slo) <= 1 for record in records)


def share_of_limits(record: RequestRecord, slo: Slo) -> float:
    """Return what a request took as a share of its limit, of several limits the largest share; above 1 it is a miss.

    A latency that it does not have breaks no limit. But an answer that came in one piece hides how fast its tokens
    came, so it keeps no limit of that; nor does one that failed or was cut off keep any.
    """
    if record.status != "ok" or ((slo.tpot_ms is not None or slo.itl_ms is not None) and in_one_piece(record)):
        return float("inf")
    one = latencies(record)
    itl = float(np.percentile(one.itl, 99)) if one.itl.size else None
    pairs = ((one.ttft, slo.ttft_ms), (one.tpot, slo.tpot_ms), (itl, slo.itl_ms), (one.e2el, slo.e2el_ms))
    return max((value / limit for value, limit in pairs if value is not None and limit is not None), default=0.0)


def shares_of_limits(window: Window, slo: Slo) -> tuple[Floats, Floats] | None:
    """Return when each request of the window came, and its share of the limits; above 1 it is a miss; shape (n,) each.

    None: no limit is set, or no answer tells: all came in one piece, which hides how fast their tokens came.
    """
    counted = [record for record in window.records if record.in_window]
    whole = [record for record in counted if record.status == "ok"]
    hidden = (slo.tpot_ms is not None or slo.itl_ms is not None) and bool(whole) and all(map(in_one_piece, whole))
    if hidden or not any(limit is not None for limit in asdict(slo).values()):
        return None
    return np.array([one.came_s for one in counted]), np.array([share_of_limits(one, slo) for one in counted])


def of_series(window: Window) -> dict[str, Figure]:
    """Return figures of what the service said of itself in the window: means over time, of all engines together."""
    inside = [sample for sample in window.series if window.holds(sample.time_s)]
    uses = [sample.kv_use for sample in inside if sample.kv_use is not None]
    return {
        "running_mean": _mean_total((sample.time_s, sample.running) for sample in inside),
        "waiting_mean": _mean_total((sample.time_s, sample.waiting) for sample in inside),
        "kv_use_max": max(uses, default=None),
    }


def _mean_total(samples: Iterable[tuple[float, float | None]]) -> float | None:
    """Return the mean over moments of the sums over engines."""
    return mean(by_moment(samples).values())


def arrived_tokens(
    window: Window,
    since_s: float | None = None,
    until_s: float | None = None,
    of: Iterable[RequestRecord] | None = None,
) -> float:
    """Return the output tokens that arrived in [since, until) of all requests but failed ones; usually in the window.

    `of`: the requests; None: all of the window's records.

    A chunk may carry several tokens, and the engine tells their number at the end of an answer alone: so the
    tokens of an answer are shared out evenly over its chunks. A chunk of a truncated request counts for
    `tokens_a_chunk`.
    """
    since = window.opened_s if since_s is None else since_s
    until = window.closed_s if until_s is None else until_s
    mean, total = tokens_a_chunk(window), 0.0
    for record in window.records if of is None else of:
        times = record.chunk_times
        if record.status != "failed" and len(times):
            inside = int(np.count_nonzero((times >= since) & (times < until)))
            total += inside * (record.output_tokens / len(times) if record.output_tokens else mean)
    return total


def tokens_a_chunk(window: Window) -> float:
    """Return the tokens of the mean chunk of the whole answers, 1 where there is none."""
    whole = [r for r in window.records if r.status == "ok" and r.output_tokens and not r.check]
    chunks = sum(len(r.chunk_times) for r in whole)
    return sum(r.output_tokens or 0 for r in whole) / chunks if chunks else 1.0


def series_table(windows: Sequence[Window]) -> pa.Table:
    """Return one row per engine and second, for series.parquet: times in s from the opening of its window."""
    import pyarrow as pa

    pairs = [(number, window, sample) for number, window in enumerate(windows, 1) for sample in window.series]
    columns = {
        "window": pa.array([number for number, _, _ in pairs], pa.int64()),
        "time_s": pa.array([sample.time_s - window.opened_s for _, window, sample in pairs], pa.float64()),
        "in_window": pa.array([window.holds(sample.time_s) for _, window, sample in pairs], pa.bool_()),
        "engine": pa.array([sample.engine for _, _, sample in pairs], pa.string()),
    }
    for name in ("running", "waiting", "kv_use", "preemptions", "generated_tokens"):
        columns[name] = pa.array([getattr(sample, name) for _, _, sample in pairs], pa.float64())
    return pa.table(columns)


def requests_table(windows: Sequence[Window], in_row: Collection[int] | None = None) -> pa.Table:
    """Return the requests of all windows of a point, in order of time; the column `window` counts from 1.

    `in_row`: numbers of the windows whose figures stand in the row, as the column `in_row` says; None: all do.
    """
    import pyarrow as pa

    tables = [records_table(window) for window in windows] or [records_table(NEVER)]
    numbers = [number for number, table in enumerate(tables, 1) for _ in range(len(table))]
    stands = [in_row is None or number in in_row for number in numbers]
    whole = pa.concat_tables(tables).append_column("window", pa.array(numbers, pa.int64()))
    return whole.append_column("in_row", pa.array(stands, pa.bool_()))


def records_table(window: Window) -> pa.Table:
    """Return one row per request: times in s from the opening, latencies in ms."""
    import pyarrow as pa

    records = window.records
    each = [latencies(record) for record in records]
    columns = {
        "index": pa.array([r.index for r in records], pa.int64()),
        "start_s": pa.array([r.start_s - window.opened_s for r in records], pa.float64()),
        "wait_s": pa.array([r.wait_s for r in records], pa.float64()),
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


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known; None: nothing is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _prompt_tokens(records: Iterable[RequestRecord], window: Window, bench: Bench) -> float:
    """Return the prompt tokens of requests by the engine's count.

    Where that did not come, the mean of the window's others, else `bench.input_tokens`.
    """
    known = mean(record.prompt_tokens for record in window.records)
    usual = float(bench.input_tokens) if known is None else known
    return sum(usual if one.prompt_tokens is None else one.prompt_tokens for one in records)


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


COLUMNS = tuple(summarize(NEVER, Bench()))
"""The figures of a window, in their order; an external client fills those that it has."""
