"""The window client when the service breaks: failed in the service's words, and never flooded."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web
from measure_stub import MODEL, Answer, event, serving, token

from jobs.core.config import Bench
from jobs.core.sweep_settings import Limits
from jobs.measure.client import measure
from jobs.measure.records import RequestRecord, Target, Window
from jobs.measure.statistics import summarize

BENCH = Bench(concurrency=3, input_tokens=8, output_tokens=4, warmup_s=0.05, window_s=0.25)
LIMITS = Limits(drain_s=20.0)


def counted(window: Window) -> list[RequestRecord]:
    return [record for record in window.records if record.in_window]


async def refuse_json(answer: Answer) -> None:
    answer.response = web.json_response({"error": {"message": "too long", "code": 400}}, status=400)  # type: ignore[assignment]


async def refuse_text(answer: Answer) -> None:
    answer.response = web.Response(text="Internal Server Error" + "x" * 5000, status=500)


async def error_event(answer: Answer) -> None:
    await answer.open()
    await answer.tokens(2)
    await answer.send({"error": {"message": "EngineCore encountered an issue", "code": 500}})
    await answer.response.write(b"data: [DONE]\n\n")


async def reset(answer: Answer) -> None:
    await answer.open()
    await answer.tokens(2)
    answer.reset()


async def error_then_reset(answer: Answer) -> None:
    await answer.open()
    await answer.send(token(), {"error": {"message": "engine is dead"}})
    answer.reset()


async def no_done(answer: Answer) -> None:
    await answer.open()
    await answer.tokens(4)


async def too_short(answer: Answer) -> None:
    await answer.open()
    await answer.tokens(3)
    await answer.end(3)


async def no_usage(answer: Answer) -> None:
    await answer.open()
    await answer.response.write(event(token()) * 4 + b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (refuse_json, "HTTP 400: too long"),
        (refuse_text, "HTTP 500: Internal Server Errorxxx"),
        (error_event, "EngineCore encountered an issue"),
        (reset, "connection closed before the end of the answer"),
        (error_then_reset, "engine is dead"),
        (no_done, "the stream ended without [DONE]"),
        (too_short, "3 tokens instead of 4"),
        (no_usage, "the stream held no usage with completion_tokens"),
    ],
)
async def test_a_broken_answer_is_failed_in_the_services_words_and_in_no_latency(
    broken: Callable[[Answer], Awaitable[None]], words: str
) -> None:
    async def every_third(answer: Answer) -> None:
        await (broken(answer) if answer.number % 3 == 2 else answer.whole())

    async with serving(BENCH, every_third) as stub:
        window = await measure(BENCH, LIMITS, MODEL, stub.target)
    failed = [record for record in counted(window) if record.status == "failed"]
    assert failed
    assert all(record.error is not None and record.error.startswith(words) for record in failed)
    assert all(record.error is not None and len(record.error) < 600 for record in failed)
    figures = summarize(window, BENCH)
    assert figures["failed"] == len(failed)
    assert figures["completed"] == len(counted(window)) - len(failed) > 0


async def test_without_ignore_eos_a_shorter_answer_is_a_success() -> None:
    bench = replace(BENCH, ignore_eos=False)
    async with serving(bench, too_short) as stub:
        window = await measure(bench, LIMITS, MODEL, stub.target)
    assert {(r.status, r.output_tokens) for r in counted(window)} == {("ok", 3)}


async def test_a_dead_service_is_not_flooded() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = Target(f"http://127.0.0.1:{closed.getsockname()[1]}", "stub")
        window = await measure(replace(BENCH, window_s=0.5), LIMITS, MODEL, target)
    # Pauses of 0.05, 0.1, 0.2, ... s: at most four requests of a worker begin in the first 0.55 s and the drain.
    assert {record.status for record in window.records} <= {"failed", "truncated"}
    assert 3 <= len(window.records) <= 3 * 5
    assert window.seconds == pytest.approx(0.5), "slots that all failed end the warm-up"
    assert window.engine_tokens == {}
    assert not window.truncated
    assert all(
        "refused" in (record.error or "") or "Connect call failed" in (record.error or "") for record in counted(window)
    )
