"""Data sets of people: ShareGPT conversations, traces of arrivals, prose."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jobs.core.config import Bench
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.foreign import regular, text_of
from jobs.core.waiting import aside
from jobs.measure import prose
from jobs.measure.paragraphs import written
from jobs.measure.prose import Prose
from jobs.measure.tokenizer import NoTokenizer, Tokenizer
from jobs.measure.workload import Item

_SHUFFLE = 4  # a branch of the seed of its own
_MOST = 1000
"""Conversations that are taken from a ShareGPT file where `bench.num_requests` does not say; the article's number."""

_SHORTEST, _LONGEST_PROMPT, _LONGEST = 4, 1024, 2048
"""Tokens: the limits of `vllm bench serve` for ShareGPT (benchmarks/datasets.py, is_valid_sequence)."""


async def load(bench: Bench, tokenizer: Tokenizer) -> Sequence[Item] | Prose:
    """Return the items of the point's data set, or its prose; empty where its workload has none.

    Raises:
        RunError: the file cannot be read, or holds nothing of use; nobody tells tokens (workload=text).
    """
    if bench.workload == "text":
        if not bench.dataset:
            return await written(bench, tokenizer, None, None)
        return await written(bench, tokenizer, _path(bench), await aside(digest, bench))
    if bench.workload == "trace":
        return read_trace(_path(bench), bench.trace_speed, bench.num_requests)
    if bench.workload == "sharegpt":
        pairs = await aside(read_sharegpt, _path(bench), bench.seed)
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


LEAST_TEXT = 32
"""Tokens of a prompt below which workload=text holds hardly more than the number that keeps prompts apart."""


def is_text(bench: Bench) -> bool:
    """Return whether prompts are such text; a trace that cannot be read is taken for one."""
    if bench.workload != "trace":
        return bench.workload in TEXTS and (bench.workload != "text" or bench.input_tokens >= LEAST_TEXT)
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


_AT_ONCE = 32


def read_sharegpt(path: Path, seed: int) -> tuple[tuple[str, str], ...]:
    """Return first question and first answer of every conversation that has both, in an order drawn from the seed.

    The file is large (the usual one 670 MB) and the same for every window: it is read once, and again once it changed.

    Raises:
        RunError: no such file, or not in the form of ShareGPT_V3_unfiltered_cleaned_split.json.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise RunError("bench.dataset", path, f"no ShareGPT file: {error}", _SHAREGPT_FORM) from None
    return _read_sharegpt(path, seed, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=1)
def _read_sharegpt(path: Path, seed: int, size: int, changed_ns: int) -> tuple[tuple[str, str], ...]:
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
    question, answer = said[0]["value"], said[1]["value"]
    return (
        (question, answer)
        if all(isinstance(one, str) and one and _is_whole(one) for one in (question, answer))
        else None
    )


def _is_whole(text: str) -> bool:
    """Return whether a text can be sent: half of a character (a lone surrogate) is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    except NoTokenizer:
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
        for line in text_of(path).split("\n"):  # a text may hold other ends of a line
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
    (text or "").encode()  # half a character is none
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
