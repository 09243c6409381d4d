"""The prose of a service: paragraphs as token ids of its own tokenizer, which is looked at before it is believed.

A prompt is put together of pieces, each asked for alone. So what a tokenizer puts around every text is taken off the
pieces, the digits that keep prompts apart have to be told apart, and the service itself has to count as many tokens in
a text as its tokenizer gives: one of another model, or with a chat template around, is refused.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.core.config import Bench
from jobs.core.errors import RunError
from jobs.core.waiting import aside
from jobs.measure import prose
from jobs.measure.prose import Paragraph, Prose
from jobs.measure.tokenizer import Tokenizer
from jobs.measure.workload import longest_prompt

Ids = tuple[int, ...]

_PROSE: dict[tuple[Any, ...], Prose] = {}
"""Prose of this process by tokenizer, length and content: windows of one service share it."""

_LEAST, _SPARE, _UNITS = 32_768, 1.25, 256
"""Tokens of a language at least; its tokens for each one of the longest prompt, so that not all prompts are one text;
the pieces of the longest prompt, for which the service is asked one by one."""

_AT_ONCE = 32

_REMEDY = "Serve the model with its own tokenizer, or choose bench.workload=random."


async def written(bench: Bench, tokenizer: Tokenizer, path: Path | None, content: str | None) -> Prose:
    """Return the prose of a point: the tool's own, or that of the file `path` with the digest `content`.

    Raises:
        RunError: nobody tells tokens, those that are told cannot be right, or the text is too short.
    """
    texts = (_probe(), *"0123456789", "/", ". ")
    told = await asyncio.gather(*map(tokenizer.tokens, texts))
    marked = await tokenizer.tokens(texts[0], special=True)
    longest = longest_prompt(bench)
    key = (tuple(told), marked, bench.seed, longest, path, content)
    if key in _PROSE:
        return _PROSE[key]
    before = _alike(told)
    after = _alike([one[before:][::-1] for one in told])

    def bare(ids: Ids) -> Ids:
        return ids[before : len(ids) - after]

    async def tokens(text: str) -> Ids:
        return bare(await tokenizer.tokens(text))

    probe, *digits = map(bare, told)
    _check_digits(digits[:-1])
    await _check_count(tokenizer, texts[0], len(marked))
    begin = _before(probe, marked)
    if longest <= len(begin):
        reason = f"a prompt of {longest} tokens is what the tokenizer puts before every text"
        raise RunError("bench.input_tokens", bench.input_tokens, reason, "Ask for longer prompts.")
    if path is not None:
        sources: list[Iterator[str]] = [iter(await aside(prose.read, path, bench.seed))]
    else:
        sources = [prose.paragraphs(bench.seed, language) for language in prose.LANGUAGES]
    languages = [await _paragraphs(source, longest, tokens) for source in sources]
    _PROSE[key] = Prose(begin, tuple(digits), tuple(languages))
    return _PROSE[key]


def _probe() -> str:
    """Return a text that two tokenizers will hardly read alike."""
    own = (next(prose.paragraphs(0, language)) for language in prose.LANGUAGES)
    return "".join(("The tide was out, and the boats lay on the sand. 潮水退了，船停在沙滩上。", *own))


def _alike(pieces: Sequence[Ids]) -> int:
    """Return how many tokens all of them begin with."""
    same = itertools.takewhile(lambda some: len(set(some)) == 1, zip(*pieces, strict=False))
    return sum(1 for _ in same)


def _before(text: Ids, marked: Ids) -> Ids:
    """Return what the service puts before a text, by the same text with it."""
    places = range(len(marked) - len(text) + 1)
    return marked[: next((at for at in places if marked[at : at + len(text)] == text), 0)]


def _check_digits(digits: Sequence[Ids]) -> None:
    """Raise RunError where numbers would not keep prompts apart: one digit, or the mark between two, begins another."""
    pairs = itertools.permutations(digits, 2)
    if not all(digits) or any(other[: len(one)] == one for one, other in pairs):
        reason = "the tokenizer does not tell digits apart, by which each prompt is another"
        raise RunError("bench.workload", "text", reason, _REMEDY)


async def _check_count(tokenizer: Tokenizer, text: str, count: int) -> None:
    """Raise RunError where the service counts otherwise than its tokenizer; one that takes no texts is not asked."""
    counted = await tokenizer.counted(text)
    if counted is not None and counted != count:
        reason = (
            f"the service counts {counted} tokens in a text of which its tokenizer makes {count}: is it that of"
            " another model, or with a chat template?"
        )
        raise RunError("bench.workload", "text", reason, _REMEDY)


async def _paragraphs(
    source: Iterator[str], longest: int, tokens: Callable[[str], Awaitable[Ids]]
) -> tuple[Paragraph, ...]:
    """Return enough paragraphs for the longest prompt, several of them in one piece where it is very long."""
    found: list[Paragraph] = []
    have, together, wanted = 0, 1, max(_LEAST, _SPARE * longest)
    while have < wanted and any(texts := ["".join(itertools.islice(source, together)) for _ in range(_AT_ONCE)]):
        pieces = await asyncio.gather(*(tokens(text) for text in texts if text))
        if not any(pieces):
            break
        found += [Paragraph.of(ids) for ids in pieces if ids]
        have = sum(len(one.ids) for one in found)
        together = max(together, round(longest / _UNITS * len(found) / have))
    if have < longest:
        reason = f"it has {have} tokens, and the longest prompt {longest}"
        raise RunError("bench.dataset", "(text)", reason, "Use a longer text, or leave bench.dataset out.")
    return tuple(found)
