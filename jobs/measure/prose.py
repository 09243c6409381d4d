"""Prose for workload=text: written by a small grammar in English and Chinese (prose.yaml), or taken from a file.

A prompt is made of token ids of the service's own tokenizer, so its length is exact: whole paragraphs in an order of
its own, the last one cut. It begins with its number and the window's, digit by digit, so that no two prompts of a
service share the first block of a prefix cache. Even numbers are English, odd ones Chinese; a file is one language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jobs.core.errors import RunError
from jobs.core.foreign import from_yaml, text_of

LANGUAGES = ("en", "zh")

_PARAGRAPHS, _ORDERS = 5, 6  # branches of the seed of their own
_SENTENCES = (4, 8)
FEW = 64
"""Paragraphs that are too few for each prompt to begin with another one; a file without blank lines has pieces."""

_LONGEST = 4000
"""Characters of a piece of a file without blank lines."""


@dataclass(frozen=True, eq=False)
class Paragraph:
    """Token ids, and the same as JSON text."""

    ids: tuple[int, ...]
    text: bytes

    @classmethod
    def of(cls, ids: Sequence[int]) -> Paragraph:
        """Return a paragraph of these token ids."""
        return cls(tuple(ids), _json(ids))


@dataclass(frozen=True, eq=False)
class Prose:
    """What prompts are made of.

    Attributes:
        begin: tokens that the tokenizer puts before every text; may be empty.
        digits: tokens of "0" to "9", then those that stand between two numbers and those after them.
        languages: the paragraphs of each.
    """

    begin: tuple[int, ...]
    digits: tuple[tuple[int, ...], ...]
    languages: tuple[tuple[Paragraph, ...], ...]

    def prompt(self, seed: int, index: int, count: int, seed_offset: int = 0) -> bytes:
        """Return prompt number `index`: exactly `count` token ids as JSON text without brackets.

        It is a pure function of `seed`, `index`, the window's `seed_offset` (which may be negative) and the paragraphs.
        So no window has the texts of another: an engine that drafts from what it has answered before would find them.
        """
        opening = [*self.begin, *self._number(index), *self.digits[10]]
        opening += [*self._number(window := 2 * abs(seed_offset) + (seed_offset < 0)), *self.digits[11]]
        paragraphs = self.languages[index % len(self.languages)]
        order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_ORDERS, index, window)))
        out, left = [_json(opening[:count])], max(0, count - len(opening))
        for number, place in enumerate(order.permutation(len(paragraphs))):
            if not left:
                break
            one = paragraphs[place]
            beyond = len(one.ids) - left
            # Of few paragraphs, each longer than a prompt, each prompt has another part.
            start = int(order.integers(beyond + 1)) if not number and len(paragraphs) < FEW and beyond > 0 else 0
            out.append(one.text if beyond <= 0 else _json(one.ids[start : start + left]))
            left -= min(left, len(one.ids))
        return b",".join(out)

    def _number(self, value: int) -> list[int]:
        """Return the tokens of a number, the last digit first: it is the one in which neighbours differ."""
        return [token for digit in reversed(str(value)) for token in self.digits[int(digit)]]


def _json(ids: Sequence[int]) -> bytes:
    return ",".join(map(str, ids)).encode()


def paragraphs(seed: int, language: str) -> Iterator[str]:
    """Yield paragraphs of one of LANGUAGES for ever, a pure function of the seed."""
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PARAGRAPHS, LANGUAGES.index(language))))
    spoken = _grammar()[language]
    words = spoken["words"]
    while True:
        fixed = {kind: _choose(random, words[kind]) for kind in ("person", "place", "thing")}
        sentences = [_sentence(random, spoken, fixed) for _ in range(int(random.integers(*_SENTENCES)))]
        yield spoken["between"].join(sentences) + "\n\n"


def _sentence(random: np.random.Generator, spoken: dict[str, Any], fixed: dict[str, str]) -> str:
    form = "".join(_choose(random, spoken[part]) for part in ("openings", "clauses", "endings"))
    drawn = {kind: _choose(random, choices) for kind, choices in spoken["words"].items()}
    # Now and then the talk is of another one than the paragraph's own.
    said = form.format(**(drawn | (fixed if random.random() < _STAYS else {})))
    return said[0].upper() + said[1:] + str(spoken["stop"])


_STAYS = 0.6


def _choose(random: np.random.Generator, choices: Sequence[str]) -> str:
    return str(choices[int(random.integers(len(choices)))])


@cache
def _grammar() -> dict[str, Any]:
    found: dict[str, Any] = from_yaml(Path(__file__).with_name("prose.yaml").read_text(encoding="utf-8"))
    return found


def read(path: Path, seed: int) -> list[str]:
    """Return the paragraphs of a text file (blank lines between them) or of a JSONL file ("text"), in a drawn order.

    Each is there once: what a file repeats makes no two prompts unlike.

    Raises:
        RunError: it cannot be read, or holds no text.
    """
    try:
        whole = text_of(path)
        texts = list(_texts(whole)) if path.suffix.lower() == ".jsonl" else [whole]
        if texts == [whole] and _JSON.match(whole):
            raise ValueError("it is JSON, so its name has to end in .jsonl, and each line to have a text")
        if any("\0" in text for text in texts):
            raise ValueError("it holds binary data")
    except (OSError, ValueError, RecursionError) as error:
        remedy = 'A text file in UTF-8, or JSONL with a "text" in each line.'
        raise RunError("bench.dataset", path, f"no text: {error}", remedy) from None
    blocks = (block.strip() for text in texts for block in _BLANK.split(text))
    found = list(dict.fromkeys(part for block in blocks if block for part in _parts(block)))
    if not found:
        raise RunError("bench.dataset", path, "there is no text in it", "Use another file.")
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PARAGRAPHS,))).permutation(len(found))
    return [found[place] + "\n\n" for place in order]


_BLANK = re.compile(r"\n[^\S\n]*\n")
_JSON = re.compile(r'\s*[\[{]\s*["\[{]')


def _texts(whole: str) -> Iterator[str]:
    """Yield the texts of JSONL. ValueError: a line has none, with its number."""
    for number, line in enumerate(whole.split("\n"), 1):  # a text may hold other ends of a line
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()  # half a character is none
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'line {number} has no "text": {error}') from None
        yield text


def _parts(block: str) -> list[str]:
    return [block[start : start + _LONGEST] for start in range(0, len(block), _LONGEST)]
