"""Prompts: exact lengths, distinct, a pure function of seed and index."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import Bench, Model, Shape
from jobs.measure.words import WORDS
from jobs.measure.workload import Workload, numbers


def body(index: int, *, ids: tuple[int, int] = (100, 1000), name: str = "m", **bench: object) -> dict[str, object]:
    made = Workload(Bench(**bench), Model(shape=Shape(token_ids=ids)), name).body(index)  # type: ignore[arg-type]
    decoded: dict[str, object] = json.loads(made)
    return decoded


@given(
    seed=st.integers(0, 2**32),
    index=st.integers(0, 2**31),
    count=st.integers(1, 300),
    low=st.integers(0, 5000),
    width=st.integers(1, 130_000),
)
def test_numbers_are_exact_in_range_and_pure(seed: int, index: int, count: int, low: int, width: int) -> None:
    drawn = numbers(seed, index, count, low, low + width)
    assert drawn.shape == (count,)
    assert drawn.min() >= low and drawn.max() < low + width
    assert (drawn == numbers(seed, index, count, low, low + width)).all()


@given(st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, 9))
def test_two_prompts_differ_within_the_first_numbers(one: int, other: int, seed: int) -> None:
    heads = [tuple(numbers(seed, index, 64, 100, 1000)[:3].tolist()) for index in (one, other)]
    assert (heads[0] == heads[1]) == (one == other)


def test_successive_prompts_differ_in_the_first_number() -> None:
    firsts = [int(numbers(0, index, 8, 100, 1000)[0]) for index in range(900)]
    assert len(set(firsts)) == 900


def test_another_seed_gives_another_rest() -> None:
    one, other = numbers(0, 7, 64, 100, 1000), numbers(1, 7, 64, 100, 1000)
    assert one[0] == other[0]
    assert (one[1:] != other[1:]).sum() > 50


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0, 10), (5, 10, 10), (5, 10, 9)])
def test_an_impossible_prompt_is_an_error(count: int, low: int, high: int) -> None:
    with pytest.raises(ValueError, match="no prompt of"):
        numbers(0, 0, count, low, high)


@pytest.mark.parametrize("ids", [(100, 1000), (0, 12), (7, 120_000)])
@pytest.mark.parametrize("tokens", [1, 2, 1000])
def test_completions_body_holds_exactly_the_token_ids(ids: tuple[int, int], tokens: int) -> None:
    made = body(3, ids=ids, input_tokens=tokens, output_tokens=17, temperature=0.5, name='a "b"')
    assert made == {
        "model": 'a "b"',
        "prompt": numbers(0, 3, tokens, *ids).tolist(),
        "max_tokens": 17,
        "temperature": 0.5,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_chat_body_holds_one_user_message_of_that_many_words() -> None:
    made = body(5, endpoint="chat", input_tokens=40, output_tokens=9, ignore_eos=False, seed=4)
    words = [WORDS[i] for i in numbers(4, 5, 40, 0, len(WORDS))]
    assert made == {
        "model": "m",
        "messages": [{"role": "user", "content": " ".join(words)}],
        "max_tokens": 9,
        "temperature": 0.0,
        "ignore_eos": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_path_follows_the_endpoint() -> None:
    paths = [Workload(Bench(endpoint=endpoint), Model(), "m").path for endpoint in ("completions", "chat")]
    assert paths == ["/v1/completions", "/v1/chat/completions"]


def test_words_are_distinct_and_of_one_length() -> None:
    assert len(set(WORDS)) == len(WORDS) > 400
    assert {len(word) for word in WORDS} == {5}
    assert all(word.isascii() and word.islower() for word in WORDS)
