"""The figures of a row against plain formulas, and what is None instead of a number."""

from __future__ import annotations

import io
import math
import statistics as plain
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.core.config import Bench
from jobs.core.load import Slo
from jobs.measure.objective import SPREAD, combine
from jobs.measure.records import Growth, RequestRecord, Sample, Window
from jobs.measure.statistics import (
    arrived_tokens,
    latencies,
    of_series,
    records_table,
    requests_table,
    series_table,
    shares_of_limits,
    summarize,
)

SLO = Slo(ttft_ms=1500.0, itl_ms=1400.0)
BENCH = Bench(concurrency=1, input_tokens=50, num_requests=12, slo=SLO)
GROWTH = Growth({}, preemptions=3, prefix_queries=80, prefix_hits=20)
KEYS = [
    "completed",
    "failed",
    "truncated_requests",
    "offered_per_s",
    "request_per_s",
    "wait_ms_p50",
    "wait_ms_p99",
    *(f"{name}_ms_{part}" for name in ("ttft", "tpot", "itl", "e2el") for part in ("mean", "std", "p50", "p90", "p99")),
    "output_tok_per_s",
    "total_tok_per_s",
    "tok_per_s_per_user",
    "client_cpu_share",
    "client_lag_ms_p99",
    "goodput_per_s",
    "input_tokens_mean",
    "output_tokens_mean",
    "prefix_hit_share",
    "preemptions",
]


def record(start: float, *times: float, end: float | None = None, **fields: object) -> RequestRecord:
    values: dict[str, object] = {
        "index": 0,
        "start_s": start,
        "first_token_s": times[0] if times else None,
        "end_s": (times[-1] if times else start) if end is None else end,
        "chunk_times": np.array(times, dtype=np.float64),
        "prompt_tokens": 50,
        "output_tokens": len(times) or None,
    }
    return RequestRecord(**{**values, **fields})  # type: ignore[arg-type]


def window(*records: RequestRecord, opened: float = 10.0, closed: float = 20.0, cpu: float = 1.0) -> Window:
    return Window(opened, closed, 5.0, 1.0, records, {}, cpu, truncated=False, growth=GROWTH)


def naive_percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (above - below) * (place - math.floor(place))


def naive(records: list[RequestRecord], opened: float, closed: float) -> dict[str, float | int | None]:
    """All figures again, from the definitions in the issue and without numpy."""
    good = [r for r in records if r.in_window and r.status == "ok"]
    lists: dict[str, list[float]] = {"ttft": [], "tpot": [], "itl": [], "e2el": []}
    for r in good:
        times = r.chunk_times.tolist()
        first, last = (times[0] - r.start_s) * 1000, (times[-1] - r.start_s) * 1000
        lists["ttft"].append(first)
        lists["e2el"].append(last)
        if (r.output_tokens or len(times)) > 1 and first == last:
            continue
        lists["itl"] += [(b - a) * 1000 for a, b in pairwise(times)]
        if r.output_tokens and r.output_tokens > 1:
            lists["tpot"].append((last - first) / (r.output_tokens - 1))
    row: dict[str, float | int | None] = {
        "completed": len(good),
        "failed": len([r for r in records if r.in_window and r.status == "failed"]),
        "truncated_requests": len([r for r in records if r.in_window and r.status == "truncated"]),
        "offered_per_s": None,
        "request_per_s": len([r for r in records if r.status == "ok" and opened <= r.end_s < closed])
        / (closed - opened),
        "wait_ms_p50": None,
        "wait_ms_p99": None,
    }
    for name, values in lists.items():
        row[f"{name}_ms_mean"] = plain.fmean(values) if values else None
        row[f"{name}_ms_std"] = plain.pstdev(values) if values else None
        for percent in (50, 90, 99):
            known = values and len(values) >= {50: 1, 90: 10, 99: 100}[percent]
            row[f"{name}_ms_p{percent}"] = naive_percentile(values, percent) if known else None
    whole = [r for r in records if r.status == "ok"]
    chunks = sum(len(r.chunk_times) for r in whole)
    usual = sum(r.output_tokens or 0 for r in whole) / chunks if chunks else 1.0
    prompts = [r.prompt_tokens for r in records if r.prompt_tokens is not None]
    output = prompt = 0.0
    for r in records:
        if r.status == "failed":
            continue
        for moment in r.chunk_times.tolist():
            if opened <= moment < closed:
                output += r.output_tokens / len(r.chunk_times) if r.output_tokens else usual
        if r.first_token_s is not None and opened <= r.first_token_s < closed:
            prompt += r.prompt_tokens if r.prompt_tokens is not None else (plain.fmean(prompts) if prompts else 50)
    row["output_tok_per_s"] = output / (closed - opened)
    row["total_tok_per_s"] = (output + prompt) / (closed - opened)
    speeds = [1000 / tpot for tpot in lists["tpot"] if tpot]
    row["tok_per_s_per_user"] = plain.fmean(speeds) if speeds else None
    row["client_cpu_share"] = 1.0 / (closed - opened)
    row["client_lag_ms_p99"] = None
    kept = 0
    for r in records:
        if r.status == "ok" and opened <= r.end_s < closed:
            times = r.chunk_times.tolist()
            one = [(b - a) * 1000 for a, b in pairwise(times)]
            slow = one and naive_percentile(one, 99) > SLO.itl_ms
            hidden = times[0] == times[-1] and (r.output_tokens or len(times)) > 1
            kept += (times[0] - r.start_s) * 1000 <= SLO.ttft_ms and not slow and not hidden
    row["goodput_per_s"] = kept / (closed - opened)
    row["input_tokens_mean"] = plain.fmean([r.prompt_tokens for r in good]) if good else None
    row["output_tokens_mean"] = plain.fmean([r.output_tokens for r in good]) if good else None
    row["prefix_hit_share"] = 0.25
    row["preemptions"] = 3
    return row


moments = st.floats(0, 30, allow_nan=False)


@st.composite
def any_record(draw: st.DrawFn) -> RequestRecord:
    start = draw(moments)
    status = draw(st.sampled_from(["ok", "ok", "failed", "truncated"]))
    gaps = draw(st.lists(st.floats(1e-4, 3, allow_nan=False), min_size=1 if status == "ok" else 0, max_size=8))
    times = (start + np.cumsum(gaps)).tolist()
    whole = status == "ok"
    return record(
        start,
        *times,
        end=(times[-1] if times else start) + draw(st.floats(0, 1)),
        status=status,
        output_tokens=len(times) + draw(st.integers(0, 9)) if whole else None,
        prompt_tokens=draw(st.integers(1, 99)) if whole else None,
        in_window=10.0 <= start < 20.0,
    )


@settings(max_examples=100)
@given(st.lists(any_record(), max_size=12))
def test_every_figure_equals_its_plain_formula(records: list[RequestRecord]) -> None:
    row = summarize(window(*records), BENCH)
    assert list(row) == KEYS
    expected = naive(records, 10.0, 20.0)
    for key in KEYS:
        shown, right = row[key], expected[key]
        if right is None:
            assert shown is None, key
        else:
            assert shown == pytest.approx(right, rel=1e-9, abs=1e-9), key
            assert type(shown) in (int, float), key


@settings(max_examples=50)
@given(st.lists(st.floats(0.001, 5, allow_nan=False), min_size=1, max_size=120))
def test_percentiles_are_numpys_where_there_are_enough_values(ttfts: list[float]) -> None:
    row = summarize(window(*(record(10.0, 10.0 + ttft) for ttft in ttfts)), BENCH)
    shown = [(10.0 + ttft - 10.0) * 1e3 for ttft in ttfts]
    for percent, needed in ((50, 1), (90, 10), (99, 100)):
        right = float(np.percentile(shown, percent, method="linear")) if len(shown) >= needed else None
        assert row[f"ttft_ms_p{percent}"] == (None if right is None else pytest.approx(right))
    assert row["ttft_ms_std"] == pytest.approx(float(np.std(shown)), abs=1e-9)


def test_an_empty_window_has_no_figure() -> None:
    row = summarize(window(), BENCH)
    assert (row["completed"], row["failed"], row["truncated_requests"]) == (0, 0, 0)
    assert (row["request_per_s"], row["output_tok_per_s"], row["total_tok_per_s"]) == (0.0, 0.0, 0.0)
    assert {row[key] for key in KEYS if "_ms_" in key or key == "tok_per_s_per_user"} == {None}


def test_a_window_that_never_opened_has_no_rate() -> None:
    row = summarize(window(record(3.0, 4.0, in_window=False), opened=5.0, closed=5.0), BENCH)
    counted = {"prefix_hit_share", "preemptions"}  # by the engines
    assert {key for key in KEYS if row[key] is not None} == {"completed", "failed", "truncated_requests"} | counted


def test_one_token_has_no_tpot_and_two_have() -> None:
    assert latencies(record(10.0, 10.5)).tpot is None
    row = summarize(window(record(10.0, 10.5), record(11.0, 11.5, 11.75)), BENCH)
    assert row["tpot_ms_mean"] == pytest.approx(250.0)
    assert row["tok_per_s_per_user"] == pytest.approx(4.0)
    assert row["itl_ms_mean"] == pytest.approx(250.0)
    assert row["ttft_ms_mean"] == pytest.approx(500.0)


def misses(window: Window, slo: Slo) -> tuple[int, int] | None:
    """Return how many requests of a window miss the limits, and how many there are."""
    found = shares_of_limits(window, slo)
    return None if found is None else (int((found[1] > 1).sum()), len(found[1]))


def test_an_answer_in_one_piece_has_no_speed_of_its_tokens() -> None:
    """64 tokens in one chunk, or in 64 chunks of one network read: a TPOT of 0 would be the best of all."""
    one_chunk, one_read = record(10.0, 11.0, output_tokens=64), record(11.0, *[12.0] * 64)
    for pieces in ([one_chunk], [one_read], [one_chunk, one_read]):
        row = summarize(window(*pieces), BENCH)
        assert {row[key] for key in KEYS if key.startswith(("tpot", "itl", "tok_per_s_per"))} == {None}
        assert row["ttft_ms_p50"] == row["e2el_ms_p50"] == pytest.approx(1000.0)
    beside = summarize(window(one_chunk, record(12.0, 12.5, 12.75)), BENCH)
    assert beside["tpot_ms_mean"] == pytest.approx(250.0), "of those that show one"
    assert beside["goodput_per_s"] == pytest.approx(0.1), "nor does it keep a limit of it"
    assert misses(window(one_chunk, one_read), SLO) is None, "they hide how fast their tokens came"
    assert misses(window(one_chunk), Slo(ttft_ms=1500.0)) == (0, 1)


def test_tpot_goes_by_the_engines_count_and_itl_by_chunks() -> None:
    row = summarize(window(record(10.0, 11.0, 12.0, output_tokens=11)), BENCH)
    assert row["tpot_ms_mean"] == pytest.approx(100.0)
    assert row["itl_ms_mean"] == pytest.approx(1000.0)
    assert row["output_tok_per_s"] == pytest.approx(1.1)


def test_only_what_arrives_between_opening_and_closing_is_a_rate() -> None:
    early = record(5.0, 9.0, 10.0, 11.0, in_window=False)  # the chunk at the opening counts
    late = record(18.0, 19.0, 20.0, 21.0)  # the one at the closing does not
    after = record(20.5, 21.0, in_window=False)
    assert arrived_tokens(window(early, late, after)) == pytest.approx(3.0)
    row = summarize(window(early, late, after), BENCH)
    assert row["output_tok_per_s"] == pytest.approx(0.3)
    assert row["total_tok_per_s"] == pytest.approx(0.3 + 50 / 10)
    assert row["request_per_s"] == pytest.approx(0.1)
    assert row["completed"] == 1


def test_the_tokens_of_a_cut_request_are_estimated_and_those_of_a_failed_one_are_not_counted() -> None:
    whole = record(10.0, 11.0, 12.0, output_tokens=6)
    cut = record(10.0, 11.0, 12.0, 13.0, output_tokens=None, status="truncated")
    failed = record(10.0, 11.0, output_tokens=None, status="failed", error="x")
    assert arrived_tokens(window(cut)) == pytest.approx(3.0)
    assert arrived_tokens(window(whole, cut, failed)) == pytest.approx(6 + 3 * 3)


def test_failed_and_truncated_requests_are_counted_apart_and_in_no_latency() -> None:
    good = record(10.0, 10.5, 11.0)
    others = [record(12.0, 19.0, 19.5, status=status) for status in ("failed", "truncated", "truncated")]
    row, alone = (summarize(window(good, *more), BENCH) for more in (others, []))
    assert (row["completed"], row["failed"], row["truncated_requests"]) == (1, 1, 2)
    for key in KEYS:
        if "_ms_" in key:
            assert row[key] == alone[key]


def test_rates_of_a_closed_loop_are_those_of_littles_law() -> None:
    """Requests of 3 s, one of them failed, and 1.1 in flight on average."""
    records = [
        record(8.0, 9.0, 12.0, in_window=False),  # [10, 12): 2 s in the window
        record(10.0, 11.0, 12.0, 13.0),
        record(13.0, 14.0, 15.0, 16.0),
        record(16.0, end=19.0, status="failed"),
    ]
    row = summarize(window(*records), Bench(concurrency=2))
    in_flight, took = (2 + 3 + 3 + 3) / 10, 3.0
    assert row["request_per_s"] == pytest.approx(in_flight / took * 2 / 3)
    assert row["output_tok_per_s"] == pytest.approx(in_flight / took * 2 / 3 * 3)
    assert row["total_tok_per_s"] == pytest.approx(in_flight / took * 2 / 3 * 53)
    assert summarize(window(opened=10.0, closed=10.0), Bench(concurrency=2))["request_per_s"] is None
    assert summarize(window(), Bench(concurrency=2))["output_tok_per_s"] == 0.0


def test_records_table_survives_parquet() -> None:
    records = [
        record(12.0, 12.5, 12.75, 13.25, index=4, output_tokens=5, wait_s=0.5),
        record(13.0, index=5, status="failed", error="boom", prompt_tokens=None),
        record(9.0, 9.5, index=1, status="truncated", output_tokens=None, in_window=False),
    ]
    file = io.BytesIO()
    pq.write_table(records_table(window(*records)), file)
    rows = pq.read_table(file).to_pylist()
    assert rows[0] == {
        "index": 4,
        "start_s": 2.0,
        "wait_s": 0.5,
        "ttft_ms": 1000.0,
        "tpot_ms": 187.5,
        "e2el_ms": 1750.0,
        "prompt_tokens": 50,
        "output_tokens": 5,
        "chunks": 3,
        "itl_ms": [250.0, 500.0],
        "status": "ok",
        "error": None,
        "in_window": True,
    }
    assert (rows[1]["ttft_ms"], rows[1]["itl_ms"], rows[1]["error"], rows[1]["chunks"]) == (None, [], "boom", 0)
    assert (rows[2]["start_s"], rows[2]["ttft_ms"], rows[2]["tpot_ms"]) == (-1.0, 500.0, None)
    assert records_table(window()).schema == records_table(window(*records)).schema


def test_requests_that_miss_an_objective_are_counted() -> None:
    slow = [record(10.0 + i / 10, 10.0 + i / 10 + (3.0 if i > 90 else 0.2)) for i in range(100)]
    assert misses(window(*slow), Slo(ttft_ms=1000.0)) == (9, 100)
    assert misses(window(*slow), Slo(ttft_ms=3001.0)) == (0, 100)
    assert misses(window(record(10.0, 10.1, 12.1, 12.2)), Slo(itl_ms=1500.0)) == (1, 1), "of ITL the request's own p99"
    bad = [replace(slow[0], status="failed"), replace(slow[1], status="truncated"), replace(slow[2], in_window=False)]
    assert misses(window(*slow[3:10], *bad), Slo(ttft_ms=1000.0)) == (2, 9), "what failed or was cut off missed it"
    assert misses(window(), Slo(e2el_ms=1.0)) == (0, 0)
    assert misses(window(*slow), Slo()) is None


def test_the_series_becomes_means_over_time_of_sums_over_engines() -> None:
    series = [
        Sample(9.0, "0", 99.0, 99.0, 0.9, 0.0, 0.0),  # before the window
        Sample(11.0, "0", 2.0, 0.0, 0.1, 0.0, 5.0),
        Sample(11.0, "1", 3.0, 1.0, 0.4, 0.0, 6.0),
        Sample(12.0, "0", 4.0, 0.0, 0.2, 1.0, 9.0),
        Sample(12.0, "1", 5.0, 3.0, None, 0.0, 9.0),
    ]
    seen = Window(10.0, 20.0, 5.0, 1.0, (), {}, 1.0, truncated=False, series=tuple(series))
    assert of_series(seen) == {"running_mean": 7.0, "waiting_mean": 2.0, "kv_use_max": 0.4}
    assert of_series(window()) == {"running_mean": None, "waiting_mean": None, "kv_use_max": None}
    table = series_table([window(), seen]).to_pylist()
    assert [row["window"] for row in table] == [2] * 5
    assert [row["in_window"] for row in table] == [False, True, True, True, True]
    assert table[2] == {
        "window": 2, "time_s": 1.0, "in_window": True, "engine": "1", "running": 3.0, "waiting": 1.0, "kv_use": 0.4,
        "preemptions": 0.0, "generated_tokens": 6.0,
    }  # fmt: skip
    assert series_table([]).schema == series_table([seen]).schema


def test_the_requests_of_all_windows_are_told_apart() -> None:
    one, two = window(record(10.0, 11.0)), window(record(10.0, 11.0), record(12.0, 13.0))
    assert requests_table([one, two])["window"].to_pylist() == [1, 2, 2]
    assert len(requests_table([])) == 0


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.data())
def test_repeats_become_medians_and_their_ends(counts: list[int], data: st.DataObject) -> None:
    rates = [data.draw(st.none() | st.floats(0, 1e6, allow_nan=False)) for _ in counts]
    rows = [dict.fromkeys(SPREAD) | {"completed": c, "output_tok_per_s": r} for c, r in zip(counts, rates, strict=True)]
    row, known = combine(rows), [rate for rate in rates if rate is not None]
    assert row["windows"] == len(counts)
    assert row["completed"] in counts and type(row["completed"]) is int
    assert row["output_tok_per_s"] == (pytest.approx(np.median(known)) if known else None)
    ends = (min(known), max(known)) if known and len(counts) > 1 else (None, None)
    assert (row["output_tok_per_s_min"], row["output_tok_per_s_max"]) == ends


@pytest.mark.filterwarnings("ignore:Precision loss")
@settings(max_examples=30)
@given(st.lists(st.floats(0.001, 5, allow_nan=False), min_size=100, max_size=200))
def test_mean_deviation_and_percentiles_are_scipys(ttfts: list[float]) -> None:
    row = summarize(window(*(record(10.0, 10.0 + ttft) for ttft in ttfts)), BENCH)
    shown = np.array([(10.0 + ttft - 10.0) * 1e3 for ttft in ttfts])
    assert row["ttft_ms_mean"] == pytest.approx(scipy.stats.tmean(shown))
    assert row["ttft_ms_std"] == pytest.approx(scipy.stats.tstd(shown, ddof=0), rel=1e-6, abs=1e-6)
    for percent in (50, 90, 99):
        right = scipy.stats.mstats.mquantiles(shown, [percent / 100], alphap=1, betap=1)[0]
        assert row[f"ttft_ms_p{percent}"] == pytest.approx(right)
