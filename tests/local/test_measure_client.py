"""The window client against a strict stub: what counts, what does not, and what happens when things break."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web
from core_help import config
from measure_stub import MODEL, Answer, Stub, serving

from jobs.core.config import Bench
from jobs.core.errors import ConfigError
from jobs.core.sweep_settings import Limits
from jobs.measure import client, series
from jobs.measure.client import measure, usual_limit_s
from jobs.measure.gate.case import Case
from jobs.measure.queueing import trend
from jobs.measure.records import RequestRecord, Target, Window
from jobs.measure.statistics import summarize
from jobs.measure.validity import judge

BENCH = Bench(concurrency=3, input_tokens=8, output_tokens=4, warmup_s=0.05, window_s=0.25)
LIMITS = Limits(drain_s=20.0)


async def whole(answer: Answer) -> None:
    await answer.whole()


async def hang(answer: Answer) -> None:
    await answer.open()
    await answer.tokens(2)
    await asyncio.Event().wait()


class Phases:
    """Follows the phases and counts the requests that came in each.

    Up to `concurrency` requests that come in a phase were sent just before it began: the fifth was not.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.arrived: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        self.names.append(name)

    def fifth(self, phase: str) -> bool:
        """Count one arrival; tell whether it is the fifth or a later one of `phase`."""
        now = self.names[-1]
        self.arrived[now] += 1
        return now == phase and self.arrived[now] >= 5


def counted(window: Window) -> list[RequestRecord]:
    return [record for record in window.records if record.in_window]


async def test_closed_loop() -> None:
    phases: list[str] = []
    three = asyncio.Barrier(3)

    async def together(answer: Answer) -> None:
        await three.wait()
        await answer.whole()

    async with serving(BENCH, together) as stub:
        stub.generated = {"0": 100.0, "1": 7.0}

        def phase(name: str) -> None:
            phases.append(name)
            if name == "drain":
                stub.generated = {"0": 140.0, "1": 27.0}

        window = await measure(BENCH, LIMITS, MODEL, stub.target, on_phase=phase)
        assert stub.most == 3
        assert len(stub.connections) == 3
        prompts = [tuple(asked["prompt"]) for asked in stub.seen]
    assert phases == ["warm", "measuring", "drain"]
    assert len(set(prompts)) == len(prompts)
    assert {len(prompt) for prompt in prompts} == {8}
    assert sorted(record.index for record in window.records) == list(range(len(prompts)))
    for record in window.records:
        assert record.in_window == (window.opened_s <= record.start_s < window.closed_s)
        assert record.wait_s == 0.0
    inside = counted(window)
    assert inside and len(inside) < len(window.records)
    assert {(r.status, r.error, r.prompt_tokens, r.output_tokens) for r in inside} == {("ok", None, 8, 4)}
    for record in inside:
        assert record.first_token_s == record.chunk_times[0]
        assert record.start_s < record.chunk_times[0] <= record.chunk_times[-1] <= record.end_s
        assert len(record.chunk_times) == 4
    assert window.seconds == pytest.approx(0.25)
    assert window.engine_tokens == {"0": 40, "1": 20}
    assert window.warmup_s >= 0.05 and window.drain_s >= 0 and window.cpu_s > 0
    assert not window.truncated


async def test_the_same_prompts_come_at_every_concurrency_in_the_order_of_sending() -> None:
    sent = []
    for concurrency in (1, 4):
        bench = replace(BENCH, concurrency=concurrency)
        async with serving(bench, whole) as stub:
            window = await measure(bench, LIMITS, MODEL, stub.target)
        sent.append({r.index: asked["prompt"] for r, asked in zip(_by_start(window), stub.seen, strict=True)})
    common = set(sent[0]) & set(sent[1])
    assert len(common) > 5
    assert sorted(sent[0][i] for i in common) == sorted(sent[1][i] for i in common)


def _by_start(window: Window) -> list[RequestRecord]:
    return sorted(window.records, key=lambda record: record.start_s)


async def test_chat() -> None:
    bench = replace(BENCH, endpoint="chat")
    async with serving(bench, whole) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target)
    assert {(r.status, r.prompt_tokens, r.output_tokens, len(r.chunk_times)) for r in counted(window)} == {
        ("ok", 8, 4, 4)
    }


@pytest.mark.parametrize("key", [None, "secret"])
async def test_the_api_key_is_a_bearer_token(key: str | None) -> None:
    async with serving(BENCH, whole) as stub:
        await measure(BENCH, LIMITS, MODEL, replace(stub.target, api_key=key))
        assert {headers.get("Authorization") for headers in stub.headers} == {key and f"Bearer {key}"}


async def test_the_warm_up_lasts_until_the_first_answer() -> None:
    """The first answer comes only when the client has had every chance to open the window without it."""
    phases: list[str] = []

    async def slow_start(answer: Answer) -> None:
        await answer.open()
        if answer.number < 3:
            await asyncio.sleep(0.2)
            assert phases == ["warm"]
        await answer.tokens(4)
        await answer.end()

    bench = replace(BENCH, warmup_s=0.0)
    async with serving(bench, slow_start) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target, on_phase=phases.append)
    assert phases == ["warm", "measuring", "drain"]
    assert {r.status for r in window.records if r.index < 3} == {"ok"}
    assert not any(r.in_window for r in window.records if r.index < 3)


class Last:
    """Makes one request of the window wait for `release`, which the fifth request after the closing sets."""

    def __init__(self) -> None:
        self.phases = Phases()
        self.chosen: int | None = None
        self.after_closing: list[int] = []
        self.release = asyncio.Event()

    async def script(self, answer: Answer) -> None:
        phase = self.phases.names[-1]
        fifth = self.phases.fifth(phase)
        if fifth and phase == "measuring" and self.chosen is None:
            self.chosen = answer.number
            await answer.open()
            await answer.tokens(2)
            await self.release.wait()
            await answer.tokens(2)
            await answer.end()
            return
        if fifth and phase == "drain":
            self.after_closing.append(answer.number)
            self.release.set()
        await answer.whole()


async def test_the_load_is_held_until_the_last_request_of_the_window_has_its_answer() -> None:
    last = Last()
    async with serving(BENCH, last.script) as stub:
        window = await measure(BENCH, LIMITS, MODEL, stub.target, on_phase=last.phases)
    assert last.chosen is not None and last.after_closing
    assert {record.status for record in counted(window)} == {"ok"}
    late = [record for record in window.records if record.start_s >= window.closed_s]
    assert late and not any(record.in_window for record in late)
    assert {record.status for record in late} <= {"ok", "truncated"}
    assert not window.truncated


async def test_without_hold_load_nothing_is_sent_after_the_closing() -> None:
    last = Last()

    def on_phase(name: str) -> None:
        last.phases(name)
        if name == "drain":
            asyncio.get_running_loop().call_later(0.1, last.release.set)

    bench = replace(BENCH, hold_load=False)
    async with serving(bench, last.script) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target, on_phase=on_phase)
    late = [record for record in window.records if record.start_s >= window.closed_s]
    assert len(late) <= 3, "one a worker at most, from the moment between the closing and its news"
    assert {record.status for record in counted(window)} == {"ok"}


async def test_the_drain_limit_cuts_requests_off_as_truncated() -> None:
    phases, stuck = Phases(), []

    async def one_hangs(answer: Answer) -> None:
        if phases.fifth("measuring") and not stuck:
            stuck.append(answer.number)
            await hang(answer)
        await answer.whole()

    async with serving(BENCH, one_hangs) as stub:
        window = await measure(BENCH, replace(LIMITS, drain_s=0.2), MODEL, stub.target, on_phase=phases)
    cut = [record for record in counted(window) if record.status != "ok"]
    assert [(r.status, r.error, r.output_tokens, len(r.chunk_times)) for r in cut] == [("truncated", None, None, 2)]
    assert not window.truncated
    figures = summarize(window, BENCH)
    assert (figures["failed"], figures["truncated_requests"]) == (0, 1)
    assert figures["completed"] == len(counted(window)) - 1


async def test_a_window_that_never_warms_up_never_opens() -> None:
    bench = replace(BENCH, warmup_s=0.0, window_s=3600.0)
    async with serving(bench, hang) as stub:
        window = await measure(bench, replace(LIMITS, warmup_s=0.2, drain_s=3600.0), MODEL, stub.target)
    assert window.truncated and window.seconds == 0
    assert [(r.status, r.in_window) for r in window.records] == [("truncated", False)] * 3
    assert summarize(window, bench)["output_tok_per_s"] is None


@pytest.mark.parametrize("phase", ["warm", "measuring", "drain"])
async def test_stop_ends_every_phase(phase: str) -> None:
    """Each phase would last an hour here: only `stop` can end the test."""
    hour = 3600.0
    bench = replace(
        BENCH,
        warmup_s=hour if phase == "warm" else 0.05,
        window_s=hour if phase == "measuring" else 0.1,
        hold_load=True,
    )
    stop, phases = asyncio.Event(), Phases()

    async def script(answer: Answer) -> None:
        fifth = phases.fifth("measuring" if phase == "drain" else phase)
        if fifth and phase == "drain":
            await hang(answer)
        elif fifth and phases.arrived[phase] >= 20:
            stop.set()
        await answer.whole()

    def on_phase(name: str) -> None:
        phases(name)
        if name == phase == "drain":
            asyncio.get_running_loop().call_later(0.1, stop.set)

    async with serving(bench, script) as stub:
        window = await measure(bench, replace(LIMITS, drain_s=hour), MODEL, stub.target, stop=stop, on_phase=on_phase)
    assert window.truncated
    assert "failed" not in {record.status for record in window.records}
    assert phases.names[-1] == ("warm" if phase == "warm" else "drain")
    inside = counted(window)
    if phase == "warm":
        assert window.seconds == 0 and not inside
    elif phase == "measuring":
        assert 0 < window.seconds < hour
        assert any(record.status == "ok" for record in inside)
    else:
        assert window.seconds == pytest.approx(0.1)
        assert {record.status for record in inside} >= {"truncated"}


async def test_an_open_loop_does_not_wait_for_the_service() -> None:
    """No answer is given before 12 requests wait for one: a closed loop would stand still."""
    bench = replace(BENCH, concurrency=None, request_rate=200.0)
    waiting, go = [0], asyncio.Event()

    async def together(answer: Answer) -> None:
        waiting[0] += 1
        if waiting[0] >= 12:
            go.set()
        await go.wait()
        await answer.whole()

    async with serving(bench, together) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target)
        assert stub.most >= 12
    assert {record.status for record in counted(window)} == {"ok"}
    assert len(counted(window)) == 200 * BENCH.window_s


async def test_the_cap_of_an_open_loop_holds_and_the_wait_is_recorded() -> None:
    bench = replace(BENCH, concurrency=2, request_rate=500.0)

    async def slowly(answer: Answer) -> None:
        await asyncio.sleep(0.02)
        await answer.whole()

    async with serving(bench, slowly) as stub:
        window = await measure(bench, replace(LIMITS, drain_s=60.0), MODEL, stub.target)
        assert stub.most == 2
    assert {record.status for record in counted(window)} == {"ok"}
    waits = [record.wait_s for record in _by_start(window)]
    assert waits[0] < min(waits[-5:]), "arrivals outrun the service, so the wait grows"
    figures = summarize(window, bench)
    assert figures["ttft_ms_p50"] > figures["wait_ms_p50"] > 20, "TTFT counts from the arrival"


@pytest.mark.parametrize("hold_load", [True, False])
async def test_a_client_that_is_late_at_the_end_of_a_window_loses_no_arrival_of_it(hold_load: bool) -> None:
    bench = replace(BENCH, concurrency=None, request_rate=400.0, hold_load=hold_load)

    def on_phase(name: str) -> None:
        if name == "measuring":  # the loop stands still over the last arrivals and the end
            asyncio.get_running_loop().call_later(bench.window_s - 0.05, time.sleep, 0.1)

    async with serving(bench, whole) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target, on_phase=on_phase)
    assert len(counted(window)) == 400 * BENCH.window_s


async def test_without_hold_load_what_has_come_to_an_open_loop_is_sent_and_no_more_comes() -> None:
    bench = replace(BENCH, concurrency=2, request_rate=400.0, hold_load=False)
    last = Last()

    async def slowly(answer: Answer) -> None:
        await asyncio.sleep(0.01)
        await last.script(answer)

    def on_phase(name: str) -> None:
        last.phases(name)
        if name == "drain":
            asyncio.get_running_loop().call_later(0.2, last.release.set)

    async with serving(bench, slowly) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target, on_phase=on_phase)
    assert last.chosen is not None
    assert max(record.wait_s for record in window.records) > 0.02, "there was a queue"
    assert any(record.start_s >= window.closed_s for record in counted(window)), "they were sent later"
    assert not [record for record in window.records if record.came_s > window.closed_s + 0.1]
    assert len(counted(window)) == 400 * BENCH.window_s
    assert {record.status for record in counted(window)} == {"ok"}


async def test_a_service_without_metrics_has_no_engine_tokens() -> None:
    async with serving(BENCH, whole) as stub:
        stub.generated = None
        window = await measure(BENCH, LIMITS, MODEL, stub.target)
        assert stub.scrapes >= 4, "before the first request, at both ends of the window, after the last request"
    assert window.engine_tokens == {}


async def test_the_first_page_of_counters_comes_before_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy service would count the first answers in it: usage would say more than the engines made."""
    sent: list[int] = []
    page = Stub.metrics

    async def busy(stub: Stub, request: web.Request) -> web.Response:
        for _ in range(2000):  # turns of the loop, in which requests arrive if any are sent
            await asyncio.sleep(0)
        sent.append(len(stub.seen))
        return await page(stub, request)

    monkeypatch.setattr(Stub, "metrics", busy)
    async with serving(BENCH, whole) as stub:
        await measure(BENCH, LIMITS, MODEL, stub.target)
    assert sent[0] == 0


async def test_a_first_page_that_still_tells_of_requests_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last window's have ended, and a busy service has not counted them yet: they are no strangers of this one."""
    monkeypatch.setattr(client, "PERIOD_S", 0.01)
    sent: list[int] = []
    page = Stub.metrics

    async def late(stub: Stub, request: web.Request) -> web.Response:
        sent.append(len(stub.seen))
        told = (await page(stub, request)).text or ""
        return web.Response(text=told + 'vllm:num_requests_waiting{engine="0"} 2\n' if len(sent) == 1 else told)

    monkeypatch.setattr(Stub, "metrics", late)
    async with serving(BENCH, whole) as stub:
        await measure(BENCH, LIMITS, MODEL, stub.target)
    assert sent[:2] == [0, 0], "the load waits for the second reading"


async def test_metrics_that_hang_do_not_hold_the_load_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_SCRAPE_S", 0.1)

    async def never(self: Stub, request: web.Request) -> web.Response:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    monkeypatch.setattr(Stub, "metrics", never)
    async with serving(BENCH, whole) as stub:
        window = await measure(BENCH, LIMITS, MODEL, stub.target)
    assert len(counted(window)) > 3
    assert window.engine_tokens == {}


async def test_cancelling_the_measurement_leaves_nothing_running() -> None:
    bench = replace(BENCH, warmup_s=3600.0)
    async with serving(bench, hang) as stub:
        task = asyncio.create_task(measure(bench, LIMITS, MODEL, stub.target))
        await stub.arrived.wait()
        before = asyncio.all_tasks()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not [t for t in before & asyncio.all_tasks() if "Load" in str(t.get_coro())]


async def test_a_load_without_concurrency_or_rate_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"bench\.concurrency"):
        await measure(replace(BENCH, concurrency=None), LIMITS, MODEL, Target("http://127.0.0.1:9", "stub"))


@pytest.mark.parametrize("load", [{"concurrency": 3}, {"concurrency": None, "request_rate": 200.0}])
async def test_a_fixed_number_of_requests_is_measured_whole(load: dict[str, float]) -> None:
    bench = replace(BENCH, num_requests=20, window_s=3600.0, **load)  # type: ignore[arg-type]
    phases: list[str] = []
    async with serving(bench, whole) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target, on_phase=phases.append)
        prompts = [tuple(asked["prompt"]) for asked in stub.seen]
    assert phases == ["warm", "measuring", "drain"]
    inside = counted(window)
    assert sorted(record.index for record in inside) == list(range(20))
    assert {record.status for record in inside} == {"ok"}
    assert len(window.records) > 20 and len(set(prompts)) == len(prompts), "the warm-up sent others"
    starts, ends = [r.start_s for r in inside], [r.end_s for r in inside]
    assert window.opened_s <= min(starts) and max(ends) <= window.closed_s
    assert all(r.end_s <= window.opened_s for r in window.records if not r.in_window)
    assert summarize(window, bench)["request_per_s"] == pytest.approx(20 / window.seconds)


async def test_of_a_fixed_number_what_never_ends_is_cut_off() -> None:
    async def third_hangs(answer: Answer) -> None:
        if answer.asked["prompt"][0] == 100 + 2 and answer.number > 5:
            await hang(answer)
        await answer.whole()

    bench = replace(BENCH, num_requests=4, concurrency=2)
    async with serving(bench, third_hangs) as stub:
        window = await measure(bench, replace(LIMITS, drain_s=0.3), MODEL, stub.target)
    assert Counter(record.status for record in counted(window)) == {"ok": 3, "truncated": 1}
    assert not window.truncated


async def test_a_fixed_number_that_goes_on_for_ever_is_cut_off_as_a_whole() -> None:
    """Answers come all the time, so that no request is ever late: only the limit of the window ends it."""
    bench = replace(BENCH, num_requests=10**6, concurrency=2, warmup_s=0.0)
    async with serving(bench, whole) as stub:
        window = await measure(bench, replace(LIMITS, window_s=0.3, drain_s=3600.0), MODEL, stub.target)
    assert window.late_s == 0.3
    assert not window.truncated
    assert any(record.status == "ok" for record in counted(window))
    case = Case(replace(config(), bench=bench), window, summarize(window, bench), trend(window, bench))
    reason, _ = judge(case)
    assert reason == "the requests of the window took longer than 0.3 s (limits.window_s)"


def test_the_usual_limit_of_a_fixed_number_grows_with_what_is_asked() -> None:
    assert usual_limit_s(16, 16, None) == 3660
    assert usual_limit_s(16_000, 16, None) == 3600 + 60_000
    assert usual_limit_s(10, None, (0.0, 7200.0)) == 3600 + 14_400


async def test_stop_ends_a_fixed_number_too() -> None:
    stop = asyncio.Event()

    async def stopping(answer: Answer) -> None:
        if answer.number > 10:
            stop.set()
            await hang(answer)
        await answer.whole()

    bench = replace(BENCH, num_requests=10**6, warmup_s=0.0)
    async with serving(bench, stopping) as stub:
        window = await measure(bench, replace(LIMITS, drain_s=3600.0), MODEL, stub.target, stop=stop)
    assert window.truncated and "failed" not in {record.status for record in window.records}


async def test_the_turns_of_a_conversation_are_sent_one_after_the_other() -> None:
    bench = replace(BENCH, workload="multi_turn", turns=3, concurrency=2, num_requests=12)
    async with serving(bench, whole) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target)
    by_index = {record.index: record for record in counted(window)}
    assert sorted(by_index) == list(range(12))
    for first in range(0, 12, 3):
        turns = [by_index[first + turn] for turn in range(3)]
        assert [turn.prompt_tokens for turn in turns] == [8, 20, 32] == [turn.asked_input for turn in turns]
        assert all(a.end_s <= b.start_s for a, b in pairwise(turns))


async def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    lines = [{"timestamp": 50 * i, "input_length": 5 + i, "output_length": 4} for i in range(6)]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    bench = replace(BENCH, workload="trace", dataset=str(path), concurrency=None, warmup_s=0.0)
    async with serving(bench, whole) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target)
    inside = sorted(counted(window), key=lambda record: record.index)
    assert [record.prompt_tokens for record in inside] == [5, 6, 7, 8, 9, 10]
    for i, record in enumerate(inside):
        assert record.start_s - window.opened_s >= 0.05 * i


async def test_the_service_is_watched_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "PERIOD_S", 0.05)
    async with serving(BENCH, whole) as stub:
        window = await measure(BENCH, LIMITS, MODEL, stub.target)
    inside = [sample for sample in window.series if window.opened_s <= sample.time_s < window.closed_s]
    assert len(inside) >= 2
    assert {sample.engine for sample in window.series} == {"0"}
    assert window.begun_s <= window.series[0].time_s and window.series[-1].time_s <= window.ended_s


async def test_the_window_opens_after_every_slot_has_had_an_answer() -> None:
    release = asyncio.Event()

    async def one_is_slow(answer: Answer) -> None:
        if answer.number == 1:
            await release.wait()
        if answer.number > 12:
            release.set()
        await answer.whole()

    bench = replace(BENCH, warmup_s=0.0)
    async with serving(bench, one_is_slow) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target)
    assert len([r for r in window.records if r.end_s <= window.opened_s]) >= 3
