"""Data sets of people: ShareGPT conversations, traces of arrivals, prose."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jobs.core.config import Bench
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.foreign import regular, text_of
from jobs.measure import prose
from jobs.measure.prose import Paragraph, Prose
from jobs.measure.tokenizer import Tokenizer
from jobs.measure.workload import Item, longest_prompt

_SHUFFLE = 4  # a branch of the seed of its own
_MOST = 1000
"""Conversations that are taken from a ShareGPT file where `bench.num_requests` does not say; the article's number."""

_SHORTEST, _LONGEST_PROMPT, _LONGEST = 4, 1024, 2048
"""Tokens: the limits of `vllm bench serve` for ShareGPT (benchmarks/datasets.py, is_valid_sequence)."""

_AT_ONCE = 32


async def load(bench: Bench, tokenizer: Tokenizer) -> Sequence[Item] | Prose:
    """Return the items of the point's data set, or its prose; empty where its workload has none.

    Raises:
        RunError: the file cannot be read, or holds nothing of use; nobody tells tokens (workload=text).
    """
    if bench.workload == "text":
        return await _prose(bench, tokenizer)
    if bench.workload == "trace":
        return read_trace(_path(bench), bench.trace_speed, bench.num_requests)
    if bench.workload == "sharegpt":
        pairs = read_sharegpt(_path(bench), bench.seed)
        return await _sized(pairs, bench.num_requests or _MOST, tokenizer)
    return []


def _path(bench: Bench) -> Path:
    """A relative path is taken from the project's root, as `model.path`: ranks may run in another directory."""
    return Path(from_root(bench.dataset or ""))


def digest(bench: Bench) -> str | None:
    """Return a short digest of the point's file, whose content may change under its name; None: there is none to read.

    Rows of another content did other work.
    """
    if not bench.dataset:
        return None
    try:
        about = (path := _path(bench)).stat()
        return _digest(path, about.st_size, about.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    with regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


TEXTS = ("text", "sharegpt")
"""Workloads whose prompts are text that people write."""


def is_text(bench: Bench) -> bool:
    """Return whether prompts are such text; a trace that cannot be read is taken for one."""
    if bench.workload != "trace":
        return bench.workload in TEXTS
    try:
        return all(item.text is not None for item in read_trace(_path(bench), bench.trace_speed, bench.num_requests))
    except RunError:  # a finding of its own
        return True


def check(bench: Bench) -> None:
    """Read the point's file for nothing but its errors: an engine start takes long, and this a second.

    Raises:
        RunError: as `load`.
    """
    if bench.workload == "trace":
        read_trace(_path(bench), bench.trace_speed, bench.num_requests)
    elif bench.workload == "sharegpt":
        read_sharegpt(_path(bench), bench.seed)
    elif bench.workload == "text" and bench.dataset:
        prose.read(_path(bench), bench.seed)


_PROSE: dict[tuple[Any, ...], Prose] = {}
"""Prose of this process by tokenizer and length: windows of one service share it."""

_LEAST, _SPARE, _UNITS = 8192, 1.25, 256
"""Tokens of a language at least; its tokens for each one of the longest prompt, so that not all prompts are one text;
the pieces of the longest prompt, for which the service is asked one by one."""


async def _prose(bench: Bench, tokenizer: Tokenizer) -> Prose:
    tokens = tokenizer.tokens
    plain, marked = await tokens(_PROBE), await tokens(_PROBE, special=True)
    longest = longest_prompt(bench)
    key = (plain, marked, bench.seed, longest, bench.dataset)
    if key not in _PROSE:
        begin = marked[: len(marked) - len(plain)] if marked[len(marked) - len(plain) :] == plain else ()
        digits = await asyncio.gather(*map(tokens, (*"0123456789", "/", ". ")))
        if bench.dataset:
            sources: list[Iterator[str]] = [iter(prose.read(_path(bench), bench.seed))]
        else:
            sources = [prose.paragraphs(bench.seed, language) for language in prose.LANGUAGES]
        languages = [await _paragraphs(source, longest, tokens) for source in sources]
        _PROSE[key] = Prose(begin, tuple(digits), tuple(languages))
    return _PROSE[key]


_PROBE = "The tide was out, and the boats lay on the sand. 潮水退了，船停在沙滩上。"


async def _paragraphs(
    source: Iterator[str], longest: int, tokens: Callable[[str], Awaitable[tuple[int, ...]]]
) -> tuple[Paragraph, ...]:
    """Return enough paragraphs for the longest prompt, several of them in one piece where it is very long."""
    found: list[Paragraph] = []
    have, together, wanted = 0, 1, max(_LEAST, _SPARE * longest)
    while have < wanted and any(texts := ["".join(itertools.islice(source, together)) for _ in range(_AT_ONCE)]):
        pieces = await asyncio.gather(*(tokens(text) for text in texts if text))
        found += [Paragraph.of(ids) for ids in pieces if ids]
        have = sum(len(one.ids) for one in found)
        together = max(together, round(longest / _UNITS * len(found) / max(1, have)))
    if have < longest:
        reason = f"it has {have} tokens, and the longest prompt {longest}"
        raise RunError("bench.dataset", "(text)", reason, "Use a longer text, or leave bench.dataset out.")
    return tuple(found)


@lru_cache(maxsize=1)
def read_sharegpt(path: Path, seed: int) -> tuple[tuple[str, str], ...]:
    """Return first question and first answer of every conversation that has both, in an order drawn from the seed.

    The file is large (the usual one 670 MB) and the same for every window: it is read once.

    Raises:
        RunError: no such file, or not in the form of ShareGPT_V3_unfiltered_cleaned_split.json.
    """
    try:
        talks = json.loads(text_of(path))
        pairs = [pair for talk in talks if (pair := _first_pair(talk))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError("bench.dataset", path, f"no ShareGPT file: {error}", _SHAREGPT_FORM) from None
    if not pairs:
        raise RunError("bench.dataset", path, "no conversation in it has a question and an answer", _SHAREGPT_FORM)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SHUFFLE,))).permutation(len(pairs))
    return tuple(pairs[i] for i in order)


_SHAREGPT_FORM = 'It is a list of {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}.'


def _first_pair(talk: Mapping[str, Any]) -> tuple[str, str] | None:
    said = talk.get("conversations") or talk.get("conversation") or []
    if len(said) < 2:
        return None
    question, answer = str(said[0]["value"]), str(said[1]["value"])
    return (question, answer) if question and answer else None


async def _sized(pairs: Sequence[tuple[str, str]], wanted: int, tokenizer: Tokenizer) -> list[Item]:
    """Return items with the lengths that the served model's own tokenizer gives, as `vllm bench serve` chooses them."""
    items: list[Item] = []
    for start in range(0, len(pairs), _AT_ONCE):
        some = pairs[start : start + _AT_ONCE]
        sizes = await asyncio.gather(*(count_tokens(tokenizer, text) for pair in some for text in pair))
        for number, (question, _) in enumerate(some):
            prompt, output = sizes[2 * number : 2 * number + 2]
            if min(prompt, output) >= _SHORTEST and prompt <= _LONGEST_PROMPT and prompt + output <= _LONGEST:
                items.append(Item(text=question, output_tokens=output))
        if len(items) >= wanted:
            return items[:wanted]
    if not items:
        reason = f"no conversation in it fits {_LONGEST_PROMPT} prompt tokens and {_LONGEST} in all"
        raise RunError("bench.dataset", "(sharegpt)", reason, "Use another file.")
    return items


async def count_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Return the length of a text in tokens; an estimate where nobody tells.

    The estimate: four characters a token, but one for each character beyond Latin scripts.
    """
    try:
        return len(await tokenizer.tokens(text, special=True))
    except RunError:
        pass
    wide = sum(ord(character) >= 0x2E80 for character in text)
    return max(1, wide + (len(text) - wide) // 4)


def read_trace(path: Path, speed: float, most: int | None) -> list[Item]:
    """Return the lines of a trace in order of time, at most `most`.

    One JSON object a line: `timestamp` in ms; `input_length` and `output_length` in tokens; `hash_ids`, one for
    each 512 tokens of the prompt, equal where two prompts begin alike (the form of Mooncake's traces). A `prompt`
    may stand instead of `input_length`.

    Raises:
        RunError: no such file, or a line of another form, with its number.
    """
    items: list[Item] = []
    number = 0
    try:
        lines = text_of(path).splitlines()
        for line in lines:
            number += 1
            if line.strip():
                items.append(_traced(json.loads(line), speed))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        where = f"line {number}: " if number else ""
        detail = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise RunError("bench.dataset", path, f"no trace: {where}{detail}", "See jobs/measure/dataset.py.") from None
    if not items:
        raise RunError("bench.dataset", path, "the trace has no line", "See jobs/measure/dataset.py.")
    items.sort(key=lambda item: item.at_s)
    first = items[0].at_s
    return [Item(i.at_s - first, i.text, i.input_tokens, i.output_tokens, i.blocks) for i in items][:most]


def _traced(line: object, speed: float) -> Item:
    if not isinstance(line, dict):
        raise ValueError("it is no JSON object")
    text = line.get("prompt")
    if text is not None and not isinstance(text, str):
        raise ValueError("prompt is no text")
    length = None if text is not None else _length(line["input_length"])
    output = _length(line["output_length"])
    at_s = float(line["timestamp"]) / 1e3 / speed
    if not math.isfinite(at_s):
        raise ValueError("timestamp is no moment")
    return Item(at_s, text, length, output, tuple(int(block) for block in line.get("hash_ids", ())))


def _length(value: Any) -> int:
    length = int(value)
    if length != float(value):
        raise ValueError("a length is no whole number")
    if length < 1:
        raise ValueError("a length is below 1")
    return length
