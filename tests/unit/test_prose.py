"""Prose of exact length: distinct prompts, by whatever tokenizer the service has."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core_help import checked, config
from measure_stub import tokenizer_service

from jobs.core.config import Bench, Model
from jobs.core.errors import ConfigError, RunError
from jobs.engines.simulator.answers import text_ids, text_tokens
from jobs.measure import dataset, prose
from jobs.measure.prose import Prose
from jobs.measure.records import Target
from jobs.measure.tokenizer import Tokenizer
from jobs.measure.wire import Connections
from jobs.measure.workload import Workload

BENCH = Bench(workload="text", concurrency=1, input_tokens=700, output_tokens=4)
BOS = 200_000


def by_character(text: str) -> list[int]:
    return [ord(one) for one in text]


def by_word(text: str) -> list[int]:
    """A word a token, ids by their order of appearance."""
    return [SEEN.setdefault(word, len(SEEN)) for word in re.findall(r"[A-Za-z]+|\S", text)]


SEEN: dict[str, int] = {}


async def loaded(tokens: Callable[[str], list[int]] | None, bench: Bench = BENCH, *, bos: bool = True) -> Prose:
    async with tokenizer_service(tokens, begin=[BOS] * bos) as target:
        return await asked(target, bench)


async def asked(target: Target, bench: Bench = BENCH, folder: Path | None = None) -> Prose:
    with closing(Connections(target.base_url, target.headers)) as connections:
        found = await dataset.load(bench, Tokenizer(connections, target.model, folder))
    assert isinstance(found, Prose)
    return found


def prompt(made: Workload, index: int) -> list[int]:
    body: dict[str, Any] = json.loads(made.body(index))
    ids: list[int] = body["prompt"]
    return ids


def workload(bench: Bench, found: Prose, offset: int = 0) -> Workload:
    return Workload(bench, Model(), "m", items=found, seed_offset=offset)


@pytest.mark.parametrize(
    ("tokens", "count"),
    [(by_word, 1), (by_word, 5), (text_ids, 17), (by_character, 700), (text_ids, 700), (by_word, 30_000)],
)
async def test_prompts_have_exactly_the_length_that_was_asked(tokens: Any, count: int) -> None:
    bench = replace(BENCH, input_tokens=count)
    made = workload(bench, await loaded(tokens, bench, bos=count > 1))
    assert {len(prompt(made, index)) for index in (0, 1, 2, 77, 12_345)} == {count}
    assert made.asked_input(3) == count
    drawn = replace(bench, lengths="lognormal", length_spread=1.0)
    varied = workload(drawn, await loaded(tokens, drawn))
    assert all(len(prompt(varied, index)) == varied.asked_input(index) for index in range(20))


async def test_prompts_are_a_pure_function_of_seed_and_number_and_begin_apart() -> None:
    found = await loaded(by_word)
    made, other = workload(BENCH, found), workload(BENCH, found, offset=3)
    every = [prompt(made, index) for index in range(300)] + [prompt(other, index) for index in range(300)]
    assert len({tuple(one[:16]) for one in every}) == 600, "no first block of a prefix cache is shared"
    apart = [prompt(other.apart(), index) for index in range(300)]
    assert not {tuple(one[:16]) for one in apart} & {tuple(one[:16]) for one in every}
    assert {one[0] for one in every} == {BOS}, "what the tokenizer puts before a text"
    assert every[7] == prompt(workload(BENCH, await loaded(by_word)), 7)
    seeded = replace(BENCH, seed=1)
    assert every[7] != prompt(workload(seeded, await loaded(by_word, seeded)), 7)


async def test_a_tokenizer_without_a_beginning() -> None:
    found = await loaded(by_character, bos=False)
    assert found.begin == ()
    text = "".join(map(chr, prompt(workload(BENCH, found), 42)))
    assert text.startswith("24/0. ")


async def test_prompts_read_as_prose_in_two_languages() -> None:
    made = workload(BENCH, await loaded(by_character))
    english, chinese = ("".join(map(chr, prompt(made, index)[1:])) for index in (0, 1))
    assert english.count(" the ") > 5
    assert english.count(". ") > 3
    assert "{" not in english + chinese
    assert chinese.count("。") > 5
    wide = sum(ord(one) > 0x2E80 for one in chinese)
    assert wide > 0.9 * len(chinese.split("\n", 1)[0])


def test_long_texts_hardly_repeat_themselves() -> None:
    for language in prose.LANGUAGES:
        whole = list(itertools.islice(prose.paragraphs(0, language), 500))
        assert len(set(whole)) == 500
        stop = "." if language == "en" else "。"
        sentences = [one for part in whole for one in part.split(stop)[:-1]]
        assert len(set(sentences)) > 0.95 * len(sentences)
        assert whole == list(itertools.islice(prose.paragraphs(0, language), 500))
        assert whole[0] != next(prose.paragraphs(1, language))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.txt", "\n\n".join(f"Paragraph number {i} of a text of its own." for i in range(400))),
        ("own.txt", "One long block without any blank line, " * 900),
        (
            "own.jsonl",
            "\n".join(json.dumps({"text": f"第{i}段，自己的文字。" * 20}, ensure_ascii=False) for i in range(200)),
        ),
    ],
)
async def test_a_text_of_the_user(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    bench = replace(BENCH, dataset=str(path))
    dataset.check(bench)
    made = workload(bench, await loaded(by_character, bench))
    ids = prompt(made, 5)
    assert len(ids) == 700
    said = "".join(map(chr, ids[1:])).partition(". ")[2]
    assert said[:20] in content


async def test_a_text_that_is_too_short_or_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Only this.")
    with pytest.raises(RunError, match="it has 12 tokens, and the longest prompt 700"):
        await loaded(by_character, replace(BENCH, dataset=str(path)))
    path.write_text("\n\n \n\n")
    with pytest.raises(RunError, match="there is no text in it"):
        dataset.check(replace(BENCH, dataset=str(path)))


def words(texts: list[str]) -> str:
    return "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)


ROWS = [f"row {number} of a text that somebody has written" for number in range(400)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("own.jsonl", '{"text": null}', 'line 1 has no "text"'),
        ("own.jsonl", '{"text": "right"}\n{"text": ["a", "b"]}', 'line 2 has no "text"'),
        ("own.jsonl", '{"text": "half of a \\ud800 character"}', 'line 1 has no "text"'),
        ("own.JSONL", '{"prompt": "words"}', 'line 1 has no "text"'),
        ("own.json", '[{"text": "all in one list"}]', "it is JSON"),
        ("own.txt", words(ROWS), "it is JSON"),
        ("own.txt", "\0" * 9000, "binary"),
        ("own.jsonl", '{"text": "a\\u0000b"}', "binary"),
    ],
)
async def test_what_is_no_prose_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=said):
        dataset.check(replace(BENCH, dataset=str(path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mark.jsonl", "\ufeff" + words(ROWS)),
        ("line.jsonl", words([row.replace(" of ", "\u2028of\x85 ") for row in ROWS])),
        ("upper.JSONL", words(ROWS)),
        ("blanks.txt", "\n \t\n".join(ROWS)),
        ("windows.txt", "\r\n\r\n".join(ROWS)),
    ],
)
def test_forms_of_a_text_that_are_right(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert len(prose.read(tmp_path / name, 0)) == len(ROWS)


async def test_rows_that_repeat_make_no_long_text(tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text(words(["The same row again and again."] * 900))
    with pytest.raises(RunError, match="it has 31 tokens, and the longest prompt 700"):
        await loaded(by_character, replace(BENCH, dataset=str(path)))


async def test_prompts_from_a_few_long_pieces_are_not_one_text(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(" ".join(ROWS))
    bench = replace(BENCH, dataset=str(path))
    made = workload(bench, await loaded(by_character, bench))
    assert len({tuple(prompt(made, index)[50:]) for index in range(100)}) > 90


async def test_a_file_that_changed_is_another_text(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    bench, said = replace(BENCH, dataset=str(path)), []
    for word in ("first", "second"):
        path.write_text("\n\n".join(f"{word} {row}" for row in ROWS))
        said.append("".join(map(chr, prompt(workload(bench, await loaded(by_character, bench)), 0)[1:])))
    assert ["first" in text for text in said] == [True, False]
    assert ["second" in text for text in said] == [False, True]


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("end", [(), (BOS + 1,)])
async def test_what_stands_around_a_text_stands_once_before_a_prompt(end: tuple[int, ...], always: bool) -> None:
    count = lambda text: len(text) + 2 + len(end)  # noqa: E731
    async with tokenizer_service(by_character, begin=[BOS, 7], end=end, always=always, counts=count) as target:
        made = workload(BENCH, await asked(target))
    for ids in (prompt(made, index) for index in range(20)):
        assert ids[:2] == [BOS, 7]
        assert len(ids) == 700
        assert not {BOS, BOS + 1} & set(ids[2:])


@pytest.mark.parametrize(
    ("encode", "counts", "said"),
    [
        (lambda text: [], None, "does not tell digits apart"),
        (lambda text: [5, 6, 7], None, "does not tell digits apart"),
        (lambda text: [9 if one.isdigit() else ord(one) for one in text], None, "does not tell digits apart"),
        (lambda text: [ord(one) for one in text if not one.isdigit()], None, "does not tell digits apart"),
        (lambda text: [-1] * len(text), None, "tells no token ids"),
        (by_character, lambda text: len(text.encode()) + 1, "is it that of another model"),
        (by_character, lambda text: len(text) + 9, "or with a chat template"),
        (by_character, lambda text: len(text), "the service counts"),  # what stands before a text is missing
    ],
)
async def test_a_tokenizer_that_cannot_be_the_services_is_refused(encode: Any, counts: Any, said: str) -> None:
    with pytest.raises(RunError, match=said):
        async with tokenizer_service(encode, begin=[BOS], counts=counts) as target:
            await asked(target, replace(BENCH, seed=9))


async def test_a_prompt_that_is_no_more_than_what_stands_before_it() -> None:
    with pytest.raises(RunError, match="a prompt of 1 tokens is what the tokenizer puts before every text"):
        await loaded(by_character, replace(BENCH, input_tokens=1))


def test_prompts_that_are_hardly_more_than_their_number_are_no_text() -> None:
    assert not dataset.is_text(replace(BENCH, input_tokens=31))
    assert dataset.is_text(replace(BENCH, input_tokens=32))
    assert dataset.is_text(replace(BENCH, workload="sharegpt", input_tokens=1))


def test_a_chat_has_no_exact_length() -> None:
    with pytest.raises(ConfigError, match="which a chat has not"):
        checked(config("engine=simulator", "bench.workload=text", "bench.endpoint=chat"))
    checked(config("engine=simulator", "bench.workload=text"))


def test_the_rehearsal_has_as_many_ids_as_tokens() -> None:
    for text in ("", "a", "the end of it", "潮水退了", "x" * 999):
        assert len(text_ids(text)) == text_tokens(text)
