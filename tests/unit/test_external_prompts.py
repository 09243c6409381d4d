"""Texts that the service reads as exactly the length that was asked for."""

from __future__ import annotations

import ast
import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from core_help import check_golden, config
from measure_stub import tokenizer_service

from jobs.core.config import Config
from jobs.measure.clients import ais_bench, prompts
from jobs.measure.clients.ais_bench import AisBench
from jobs.measure.records import Target

BEGIN = 1


def point(*overrides: str) -> Config:
    words = ("cluster=local", "engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1", "model.path=/models/tiny")
    asked = ("bench.client=ais_bench", "bench.concurrency=8", "bench.input_tokens=64", "bench.output_tokens=32")
    return config(*words, *asked, *overrides)


def encoded(text: str) -> list[int]:
    return [max(0, ord(character) - 0x100) for character in text]


def decoded(tokens: list[int]) -> str:
    """An odd token is a text of two even ones: what is decoded and encoded again is longer."""
    return "".join(chr(0x100 + token - token % 2) * (1 + token % 2) for token in tokens)


def tokenizer(*, pages: bool = True) -> AbstractAsyncContextManager[Target]:
    return tokenizer_service(encoded if pages else None, decoded if pages else None, begin=[BEGIN])


async def written(path: Path, one: Config, count: int = 40) -> list[dict[str, Any]]:
    async with tokenizer() as target:
        assert await prompts.write(one, target, path, count)
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_prompt_is_read_as_the_length_that_was_asked(tmp_path: Path) -> None:
    lines = await written(tmp_path / "p.jsonl", point())
    assert {len([BEGIN, *encoded(line["question"])]) for line in lines} == {64}
    assert {line["max_tokens"] for line in lines} == {32}
    assert len({line["question"] for line in lines}) == len(lines) == 40


async def test_prompts_are_those_of_the_seed(tmp_path: Path) -> None:
    one, again = [await written(tmp_path / name, point(), 3) for name in ("a", "b")]
    other = await written(tmp_path / "c", point("bench.seed=1"), 3)
    assert one == again
    assert not {line["question"] for line in one} & {line["question"] for line in other}


async def test_a_service_without_a_tokenizer_leaves_it_to_the_client(tmp_path: Path) -> None:
    async with tokenizer(pages=False) as target:
        assert not await prompts.write(point(), target, tmp_path / "p.jsonl", 3)
        assert not (tmp_path / "p.jsonl").exists()
        await AisBench().write(point(), target, tmp_path, 3)
    assert "SyntheticDataset" in (tmp_path / ais_bench.CONFIG).read_text()


async def test_ais_bench_is_told_of_the_file(tmp_path: Path) -> None:
    async with tokenizer() as target:
        await AisBench().write(point(), target, tmp_path, 3)
    assert str(tmp_path / ais_bench.PROMPTS) in (tmp_path / ais_bench.CONFIG).read_text()
    text = ais_bench.config_text(point(), Target("http://127.0.0.1:8123", "r1"), 100, tmp_path / ais_bench.PROMPTS)
    ast.parse(text)
    check_golden("client_ais_bench_prompts.txt", text.replace(str(tmp_path), "/client"), tmp_path)


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_the_shortest_prompts(length: int, tmp_path: Path) -> None:
    lines = await written(tmp_path / "p", point(f"bench.input_tokens={length}"), 2)
    assert {len(encoded(line["question"])) for line in lines} == {max(1, length - 1)}
