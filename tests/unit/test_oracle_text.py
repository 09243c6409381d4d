"""Prose of exact length, measured: what the service read is what the row says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from oracle import Seen, Stub, measure, steady

BOS = 3
TEXT = ("bench.workload=text", "bench.concurrency=4", "bench.output_tokens=16")
SERVICE = steady(0.2, 0.05)


def bytes_of(text: str, special: bool) -> list[int]:
    """A byte a token; a Chinese character is three."""
    return [*([BOS] if special else []), *(10 + byte for byte in text.encode())]


def merging(text: str, special: bool) -> list[int]:
    """Pairs of letters a token: what two texts make together is not what each makes alone."""
    data = text.encode()
    return [BOS] * special + [
        300 + 256 * data[at] + (data[at + 1 : at + 2] or b"\0")[0] for at in range(0, len(data), 2)
    ]


def prompts(seen: Seen) -> list[tuple[int, ...]]:
    return [tuple(answer.asked["prompt"]) for answer in seen.answers]


@pytest.mark.parametrize("tokenizer", [bytes_of, merging])
@pytest.mark.parametrize("length", [64, 1000])
def test_prompts_are_as_long_as_the_row_says_and_all_unlike(tokenizer, length: int) -> None:  # type: ignore[no-untyped-def]
    seen = measure(
        SERVICE, *TEXT, f"bench.input_tokens={length}", "bench.repeats=2", "bench.window_s=20", "bench.warmup_s=2",
        "parallel.enable_prefix_caching=true", tokenizer=tokenizer, counts=lambda text: len(tokenizer(text, True)),
    )  # fmt: skip
    assert seen.reason is None
    assert seen.figures["input_tokens_mean"] == length
    assert {len(one) for one in prompts(seen)} == {length}
    assert {one[0] for one in prompts(seen)} == {BOS}
    assert not any(BOS in one[1:] for one in prompts(seen))
    assert len({one[:16] for one in prompts(seen)}) == len(seen.answers) > 60, "no first block of a cache is shared"


@pytest.mark.parametrize("speculates", [False, True])
def test_with_speculation_no_window_repeats_the_texts_of_another(speculates: bool) -> None:
    """An engine may draft from its own earlier answers; without it equal bytes keep windows pairs."""
    asked = "engine.args.speculative_config={method:suffix,num_speculative_tokens:4}"
    options = ("bench.input_tokens=200", "bench.repeats=2", "bench.window_s=20", "bench.warmup_s=2")
    seen = measure(
        SERVICE, *TEXT, *options, *([asked] if speculates else []), "parallel.enable_prefix_caching=false",
        tokenizer=bytes_of,
    )  # fmt: skip
    assert len({one[40:] for one in prompts(seen)}) == len(seen.answers) // (1 if speculates else 2)


@pytest.mark.parametrize("counts", [lambda text: len(text.split()), lambda text: len(text.encode()) + 8])
def test_the_tokenizer_of_another_model_is_refused_before_the_load(counts) -> None:  # type: ignore[no-untyped-def]
    seen = measure(SERVICE, *TEXT, "bench.input_tokens=64", "bench.seed=4", tokenizer=bytes_of, counts=counts)
    assert "the service counts" in (seen.reason or "")
    assert not seen.answers


def test_a_tokenizer_that_never_answers_keeps_nobody_from_stopping() -> None:
    ended: list[float] = []

    async def stopping(stub: Stub) -> None:
        await asyncio.sleep(5)
        stub.stop.set()
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(stub.now)

    def silent(text: str, special: bool) -> Sequence[int] | None:
        return None

    seen = measure(SERVICE, *TEXT, "bench.input_tokens=64", "bench.seed=5", tokenizer=silent, beside=stopping)
    assert "the window never opened" in (seen.reason or "")
    assert ended[0] < 1007, "the clock began at 1000"


def test_known_questions_stand_among_prose_too() -> None:
    options = (*TEXT, "bench.input_tokens=64", "bench.canary=sane", "bench.check_share=0.1", "bench.window_s=30")
    seen = measure(SERVICE, *options, tokenizer=bytes_of)
    assert seen.reason is None
    assert seen.figures["checks"] > 3
    assert seen.figures["checks_wrong_share"] == 0
    wrong = measure(
        SERVICE, *options, tokenizer=bytes_of, says=lambda busy: "!!!!" if busy else "量子纠缠是两个粒子。" * 3
    )
    assert "known questions" in (wrong.reason or "")
