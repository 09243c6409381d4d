"""Whose tokenizer counts: the service's own, and where it has no page for that, that of the model's directory."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from measure_stub import tokenizer_service
from test_prose import BENCH, asked, by_character, prompt, workload

from jobs.core.errors import RunError
from jobs.measure.tokenizer import Tokenizer
from jobs.measure.wire import Connections

BEGIN = "<begin>"


def folder(path: Path, **settings: Any) -> Path:
    """Write a tokenizer of bytes, one a token, as a model's directory has it."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Library(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([BEGIN])
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


async def tokens(text: str, where: Path | None, *, special: bool = True, status: int = 404) -> tuple[int, ...]:
    async with tokenizer_service(None, status=status) as target:
        with closing(Connections(target.base_url, target.headers)) as connections:
            return await Tokenizer(connections, target.model, where).tokens(text, special=special)


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
async def test_without_the_page_the_directory_tells(tmp_path: Path, status: int) -> None:
    found = await tokens("the tide 潮水", folder(tmp_path), status=status)
    assert len(found) == len("the tide 潮水".encode())


async def test_prompts_have_their_exact_length_then_too(tmp_path: Path) -> None:
    where = folder(tmp_path, bos_token=BEGIN, add_bos_token=True)
    async with tokenizer_service(None) as target:
        found = await asked(target, folder=where)
    every = [prompt(workload(BENCH, found), index) for index in range(50)]
    assert {len(one) for one in every} == {BENCH.input_tokens}
    assert len({tuple(one[:16]) for one in every}) == 50
    assert len({one[0] for one in every}) == 1, "what stands before a text, which tokenizer.json alone does not say"


@pytest.mark.parametrize("token", [BEGIN, {"content": BEGIN, "lstrip": False}])
async def test_what_stands_before_a_text(tmp_path: Path, token: Any) -> None:
    where = folder(tmp_path, bos_token=token, add_bos_token=True)
    plain, marked = [await tokens("a", where, special=special) for special in (False, True)]
    assert (len(plain), marked[1:]) == (1, plain)
    without = folder(tmp_path / "other", bos_token=token)
    assert await tokens("a", without) == plain


async def test_no_padding_and_no_end_of_what_it_was_trained_with(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    path = folder(tmp_path) / "tokenizer.json"
    made = Library.from_file(str(path))
    made.enable_padding(length=64)
    made.enable_truncation(80)
    made.save(str(path))
    assert [len(await tokens("a" * count, tmp_path)) for count in (1, 500)] == [1, 500]


async def test_the_services_own_page_comes_first(tmp_path: Path) -> None:
    async with tokenizer_service(by_character) as target:
        with closing(Connections(target.base_url, target.headers)) as connections:
            found = await Tokenizer(connections, target.model, folder(tmp_path)).tokens("潮水")
    assert found == tuple(map(ord, "潮水"))


async def test_a_page_that_fails_is_no_missing_page(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"tells no token ids \(HTTP 500"):
        await tokens("a", folder(tmp_path), status=500)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("{", "EOF while parsing"), ('{"model": 11}', "tokenizer.json"), ("\xff", "")],
)
async def test_one_error_names_the_file_and_the_remedy(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError) as caught:
        await tokens("a", tmp_path)
    said = str(caught.value)
    assert "tells no token ids (HTTP 404" in said
    assert words in said
    assert str(tmp_path / "tokenizer.json") in said
    assert "pip install tokenizers" in said
    assert "\n" not in said


async def test_without_the_library_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RunError, match="the library tokenizers is not installed here"):
        await tokens("a", folder_of_nothing(tmp_path))
    with pytest.raises(RunError, match="HTTP 404"):
        await tokens("a", None)


def folder_of_nothing(path: Path) -> Path:
    (path / "tokenizer.json").write_text("{}")
    return path


def test_the_library_costs_nothing_where_it_is_not_used() -> None:
    code = "import sys, jobs.measure.point; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
