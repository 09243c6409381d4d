"""Prompts: exact lengths, distinct, a pure function of seed and index."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jobs.core.config import Bench, Model
from jobs.core.service_config import Shape
from jobs.measure.bodies import VOCABULARY
from jobs.measure.needle import haystack
from jobs.measure.workload import Item, Workload, drawn_lengths, longest_request, numbers


def made(items: list[Item] | None = None, seed_offset: int = 0, **bench: object) -> Workload:
    model = Model(shape=Shape(token_ids=(100, 1000)))
    return Workload(Bench(**bench), model, "m", items=items or [], seed_offset=seed_offset)  # type: ignore[arg-type]


def prompt(workload: Workload, index: int) -> list[int]:
    ids: list[int] = json.loads(workload.body(index))["prompt"]
    return ids


def common(one: list[int], other: list[int]) -> int:
    """Return how many tokens two prompts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
    words = [VOCABULARY[i] for i in numbers(4, 5, 40, 0, len(VOCABULARY))]
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
    assert len(set(VOCABULARY)) == len(VOCABULARY) > 400
    assert {len(word) for word in VOCABULARY} == {5}
    assert all(word.isascii() and word.islower() for word in VOCABULARY)


@given(
    mean=st.integers(1, 5000),
    spread=st.floats(0, 1),
    kind=st.sampled_from(["fixed", "uniform", "lognormal"]),
    index=st.integers(0, 10**6),
)
def test_drawn_lengths_are_pure_in_range_and_exact_in_the_body(mean: int, spread: float, kind: str, index: int) -> None:
    bench = Bench(input_tokens=mean, output_tokens=mean, lengths=kind, length_spread=spread)
    one, two = drawn_lengths(bench, index)
    assert (one, two) == drawn_lengths(bench, index)
    longest = longest_request(bench)
    assert longest is not None and min(one, two) >= 1 and one + two <= longest
    if kind == "uniform":
        assert mean * (1 - spread) - 1 <= one <= mean * (1 + spread)


def test_lengths_have_the_mean_and_the_spread_that_were_asked() -> None:
    for kind, deviation in (("uniform", 400 / 3**0.5), ("lognormal", 400.0)):
        bench = Bench(input_tokens=1000, output_tokens=10, lengths=kind, length_spread=0.4)
        drawn = [drawn_lengths(bench, index)[0] for index in range(3000)]
        assert np.mean(drawn) == pytest.approx(1000, rel=0.03)
        assert np.std(drawn) == pytest.approx(deviation, rel=0.1)
        sigma = math.log1p(0.4**2) ** 0.5
        right = {
            "uniform": scipy.stats.uniform(600, 800),
            "lognormal": scipy.stats.lognorm(s=sigma, scale=1000 / math.exp(sigma**2 / 2)),
        }
        assert scipy.stats.kstest(drawn, right[kind].cdf).pvalue > 0.01


def test_drawn_lengths_reach_the_body() -> None:
    workload = made(input_tokens=50, output_tokens=9, lengths="uniform", length_spread=0.9)
    seen = set()
    for index in range(40):
        asked = json.loads(workload.body(index))
        assert len(asked["prompt"]) == workload.asked_input(index)
        assert asked["max_tokens"] == workload.asked_output(index)
        seen.add((len(asked["prompt"]), asked["max_tokens"]))
    assert len(seen) > 20


@given(st.integers(0, 10**6), st.integers(1, 899), st.integers(1, 899))
def test_a_salt_changes_one_of_the_first_numbers_and_no_other(index: int, one: int, other: int) -> None:
    plain, first, second = (numbers(3, index, 64, 100, 1000, seed_offset) for seed_offset in (0, one, other))
    assert (plain != first).sum() == 1 and (plain != first)[:4].any()
    assert first.min() >= 100 and first.max() < 1000
    assert ((first != second).sum() == 1) == (one != other)


def test_a_shared_prefix_is_that_of_the_group_and_salted() -> None:
    bench = {"workload": "shared_prefix", "input_tokens": 100, "prefix_share": 0.6, "prefix_groups": 2}
    workload = made(**bench)
    prompts = [prompt(workload, index) for index in range(4)]
    assert {len(ids) for ids in prompts} == {100}
    assert common(prompts[0], prompts[2]) == 60 == common(prompts[1], prompts[3])
    assert common(prompts[0], prompts[1]) < 4
    assert common(prompt(made(seed_offset=1, **bench), 0), prompts[0]) < 8, "no block of another window is found"
    assert prompt(workload.apart(), 0) == prompts[0], "without a salt there is nothing to keep apart"
    salted = made(seed_offset=5, **bench)
    assert common(prompt(salted.apart(), 0), prompt(salted, 0)) < 8


def test_a_conversation_repeats_all_that_was_said() -> None:
    workload = made(workload="multi_turn", turns=3, input_tokens=10, output_tokens=4)
    assert workload.turns == 3
    first, second, third, other = (prompt(workload, index) for index in range(4))
    assert [len(first), len(second), len(third)] == [10, 24, 38] == [workload.asked_input(i) or 0 for i in range(3)]
    assert second[:10] == first and third[:24] == second
    assert common(first, other) < 4
    assert longest_request(Bench(workload="multi_turn", turns=3, input_tokens=10, output_tokens=4)) == 42


def test_a_chat_conversation_has_messages_in_turn() -> None:
    workload = made(workload="multi_turn", turns=3, input_tokens=3, output_tokens=2, endpoint="chat")
    messages = json.loads(workload.body(2))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert [len(message["content"].split()) for message in messages] == [3, 2, 3, 2, 3]
    before = json.loads(workload.body(1))["messages"]
    assert messages[:3] == before


def test_a_needle_prompt_is_a_text_with_its_fact_at_the_depth() -> None:
    for endpoint, depth in (("chat", 0.0), ("completions", 0.5), ("chat", 1.0)):
        workload = made(workload="needle", needle_depth=depth, input_tokens=600, endpoint=endpoint)
        asked = json.loads(workload.body(7))
        text = asked["messages"][0]["content"] if endpoint == "chat" else asked["prompt"]
        assert 590 <= len(text.split()) <= 610
        place = text.index("The secret number of") / len(text)
        assert place == pytest.approx(depth, abs=0.1)
        assert workload.asked_input(7) is None
        assert text == haystack(0, 7, 600, depth).prompt


@pytest.mark.parametrize("kind", ["recall", "choose", "larger"])
def test_questions_have_one_right_answer(kind: str) -> None:
    question = haystack(1, 2, 400, 0.3, kind)
    secrets = re.findall(r"secret number of (\w+) is (\d+)\.", question.prompt)
    names = re.findall(r"(?:of|that of) (\w+)(?=[ ?])", question.prompt.rpartition("Question:")[2])
    known = dict(secrets)
    assert len(secrets) == {"recall": 1, "choose": 4, "larger": 2}[kind]
    right = max(known.values()) if kind == "larger" else known[names[0]]
    assert question.answer == right
    assert question.right(f"It is {right}.") and question.right(f"<think>maybe 7</think> {int(right):,}")
    wrong = [secret for secret in known.values() if secret != right]
    assert not question.right("I do not know") and not any(map(question.right, wrong))
    assert not question.right(f"<think>{right}</think> 7"), "what was only thought is no answer"


def test_items_of_a_data_set_are_sent_as_they_are() -> None:
    items = [
        Item(text='say "hi"', output_tokens=5),
        Item(0.5, input_tokens=1100, output_tokens=2, blocks=(7, 8, 9)),
        Item(0.7, input_tokens=600, output_tokens=2, blocks=(7, 5)),
        Item(0.9, input_tokens=20, output_tokens=3),
    ]
    workload = made(items, workload="trace")
    assert workload.arrivals == (0.0, 0.5, 0.7, 0.9)
    text = json.loads(workload.body(0))
    assert (text["prompt"], text["max_tokens"]) == ('say "hi"', 5)
    two, three = prompt(workload, 1), prompt(workload, 2)
    assert (len(two), len(three), len(prompt(workload, 3))) == (1100, 600, 20)
    assert common(two, three) == 512, "equal hash ids are equal tokens"
    assert json.loads(workload.body(4))["prompt"] == 'say "hi"', "a data set begins again at its end"
    assert json.loads(made(items, workload="trace", seed_offset=3).body(0))["prompt"] == '[3] say "hi"'
