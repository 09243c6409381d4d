"""Data sets: ShareGPT conversations and traces."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from measure_stub import tokenizer_service

from jobs.core.config import Bench
from jobs.core.errors import RunError
from jobs.measure import dataset
from jobs.measure.tokenizer import Tokenizer
from jobs.measure.wire import Connections


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def talk(*said: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(said)]}


def test_first_questions_and_answers_in_an_order_drawn_from_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    talks = [talk(f"question {i}", f"answer {i}", "more", "more") for i in range(20)]
    path.write_text(json.dumps([*talks, talk("alone"), talk("", "no question"), {"id": "empty"}]))
    pairs = dataset.read_sharegpt(path, 1)
    assert sorted(pairs) == sorted((f"question {i}", f"answer {i}") for i in range(20))
    assert pairs == dataset.read_sharegpt(path, 1) != dataset.read_sharegpt(path, 2)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "[]", '[{"conversations": [{"from": "human"}]}]'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(RunError, match=r"bench\.dataset"):
        dataset.read_sharegpt(path, 0)


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        {"timestamp": 3000, "input_length": 1100, "output_length": 7, "hash_ids": [0, 1, 2]},
        {"timestamp": 1000, "prompt": "hello", "output_length": 3},
        {"timestamp": 1500.0, "input_length": 5, "output_length": 1},
    )
    first, second, third = dataset.read_trace(path, 2.0, None)
    assert (first.at_s, first.text, first.input_tokens) == (0.0, "hello", None)
    assert (second.at_s, second.input_tokens, second.output_tokens) == (0.25, 5, 1)
    assert (third.at_s, third.blocks) == (1.0, (0, 1, 2))
    assert len(dataset.read_trace(path, 1.0, 2)) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"timestamp": 1}, "line 2: input_length is missing"),
        ({"timestamp": 1, "input_length": 5}, "line 2: output_length is missing"),
        ({"timestamp": 1, "input_length": 0, "output_length": 1}, "line 2: a length is below 1"),
        ({"timestamp": "soon", "input_length": 5, "output_length": 1}, "line 2: could not convert"),
        ({"timestamp": 1, "prompt": ["a"], "output_length": 1}, "line 2: prompt is no text"),
        ([1], "line 2"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: Any, words: str) -> None:
    path = write(tmp_path / "t.jsonl", {"timestamp": 0, "input_length": 5, "output_length": 1}, line)
    with pytest.raises(RunError, match=words):
        dataset.read_trace(path, 1.0, None)


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "No such file"), (write(tmp_path / "t.jsonl"), "no line")):
        with pytest.raises(RunError, match=words):
            dataset.read_trace(path, 1.0, None)


async def load(tmp_path: Path, tokenize: Any, wanted: int | None = None) -> list[Any]:
    """Load a ShareGPT file from a service that makes of a text so many tokens; None: it has no /tokenize."""
    path = tmp_path / "s.json"
    talks = [talk("q" * 40, "a" * 80), talk("q" * 8000, "a" * 40), talk("q" * 400, "aaa"), talk("量子" * 10, "答" * 9)]
    path.write_text(json.dumps(talks))
    bench = Bench(workload="sharegpt", dataset=str(path), num_requests=wanted)
    async with tokenizer_service(tokenize and (lambda text: [7] * tokenize(text))) as target:
        with closing(Connections(target.base_url, target.headers)) as connections:
            return await dataset.load(bench, Tokenizer(connections, target.model))


async def test_lengths_are_those_of_the_served_models_tokenizer(tmp_path: Path) -> None:
    items = await load(tmp_path, lambda text: len(text) // 2)
    assert sorted((len(item.text), item.output_tokens) for item in items) == [(20, 4), (40, 40)], (
        "too long a prompt and too short an answer are left out, as vllm bench serve does"
    )
    assert {item.input_tokens for item in items} == {None}
    assert len(await load(tmp_path, lambda text: len(text) // 2, wanted=1)) == 1


async def test_without_a_tokenizer_lengths_are_estimated(tmp_path: Path) -> None:
    items = await load(tmp_path, None)
    assert sorted((len(item.text), item.output_tokens) for item in items) == [(20, 9), (40, 20)]


async def test_a_page_that_fails_now_and_then_is_no_estimate(tmp_path: Path) -> None:
    def tokenize(text: str) -> int:
        if text.startswith("量"):
            raise ValueError("busy")  # HTTP 500
        return len(text) // 2

    with pytest.raises(RunError, match="HTTP 500"):
        await load(tmp_path, tokenize)


def test_a_sharegpt_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    said = []
    for words in ("first", "the second"):
        path.write_text(json.dumps([talk(words, "answer")]))
        said.append(dataset.read_sharegpt(path, 0)[0][0])
    assert said == ["first", "the second"]


def test_texts_with_other_ends_of_a_line_and_half_characters(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    line = {"timestamp": 0, "prompt": "one\u2028two\x85three", "output_length": 1}
    path.write_text("\ufeff" + json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert dataset.read_trace(path, 1.0, None)[0].text == line["prompt"]
    with pytest.raises(RunError, match=r"line 1: .*surrogates"):
        dataset.read_trace(write(path, line | {"prompt": "half \ud800"}), 1.0, None)
    write(tmp_path / "s.json", [talk("half \ud800", "answer"), talk("whole", "answer")])
    assert dataset.read_sharegpt(tmp_path / "s.json", 0) == (("whole", "answer"),)
