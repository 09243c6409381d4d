"""Requests: how long they are, and their prompts. When they come is in arrivals.py.

The i-th request of a workload is a pure function of (bench.seed, i), so the same at every concurrency.

    random         exactly so many random token ids; no two prompts begin alike
    shared_prefix  the first `prefix_share` of a prompt is that of its group (prompt number modulo `prefix_groups`)
    multi_turn     conversations: each request repeats all that was said before. The answers in it are drawn, not
                   the model's, so that the prompts are the same at every load; they are sent one after the other
    needle         a text with one fact at `needle_depth` and a question on it (needle.py)
    sharegpt       first question and answer of each conversation of a ShareGPT file, shuffled by the seed
    trace          lines of a JSONL file at their times (dataset.py)
    text           prose of exactly so many tokens, by the service's own tokenizer (prose.py, dataset.py)

**Prefix caches.** Two points on one service send the same prompts, and with caching on the second would find those
of the first. No endpoint that empties the cache is there on every release. So where caching is not off, each window
has a *seed offset*: it shifts one of a prompt's first numbers (or stands before its text), and since the key of a
cached block holds all blocks before it, nothing of another window is found. With caching off there is no offset and
the prompts are the same byte for byte. Whether it worked is seen in the engine's own counters (validity.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.core.config import Bench, Model
from jobs.core.load import turn_input
from jobs.measure.bodies import Writer
from jobs.measure.needle import haystack
from jobs.measure.prose import Prose

_PREFIXES = 1 << 40
"""Prefixes are prompts of these numbers and above, which no request has."""

_HASH_BLOCK = 512
"""Tokens of one `hash_ids` entry of a trace (Mooncake, FAST'25 release: FAST25-release/traces)."""

_LENGTHS = 2  # a branch of the seed of its own, apart from prompts and arrivals (arrivals.py: 1)
_FAR = 3.0
"""Lognormal lengths are cut at mean x (1 + 3 x spread), so that one can tell beforehand whether they fit."""


def drawn_lengths(bench: Bench, index: int) -> tuple[int, int]:
    """Return prompt and output length of request number `index`, each at least 1.

    uniform: whole numbers of [mean (1 - spread), mean (1 + spread)]. lognormal: `spread` is the standard
    deviation as a share of the mean, so sigma^2 = ln(1 + spread^2) and mu = ln(mean) - sigma^2 / 2.
    """
    means = (bench.input_tokens, bench.output_tokens)
    if bench.lengths == "fixed" or not bench.length_spread:
        return means
    random = np.random.default_rng(np.random.SeedSequence(bench.seed, spawn_key=(_LENGTHS, index)))
    first, second = (_drawn_length(random, bench, mean) for mean in means)
    return first, second


def _drawn_length(random: np.random.Generator, bench: Bench, mean: int) -> int:
    spread = bench.length_spread
    if bench.lengths == "uniform":
        return int(random.integers(max(1, math.ceil(mean * (1 - spread))), math.floor(mean * (1 + spread)) + 1))
    variance = math.log1p(spread * spread)
    value = random.lognormal(math.log(mean) - variance / 2, math.sqrt(variance))
    return min(max(1, round(value)), _longest_length(bench, mean))


def _longest_length(bench: Bench, mean: int) -> int:
    if bench.lengths == "fixed":
        return mean
    return math.floor(mean * (1 + bench.length_spread * (_FAR if bench.lengths == "lognormal" else 1.0)))


def longest_prompt(bench: Bench) -> int:
    """Return the tokens of the longest prompt of a workload whose lengths are drawn."""
    return _longest_length(bench, bench.input_tokens)


def longest_request(bench: Bench) -> int | None:
    """Return the tokens of the longest request, prompt and output; None where a data set decides."""
    if bench.workload in ("sharegpt", "trace"):
        return None
    if bench.workload == "multi_turn":
        return turn_input(bench, bench.turns - 1) + bench.output_tokens
    return longest_prompt(bench) + _longest_length(bench, bench.output_tokens)


def numbers(seed: int, index: int, count: int, low: int, high: int, seed_offset: int = 0) -> NDArray[np.int32]:
    """Return prompt number `index`: `count` integers of [low, high), shape (count,).

    The first ones are the digits of `index`, lowest first, and the rest is random. So two prompts differ
    for certain, and already in their first numbers: no prefix cache can help. `seed_offset` shifts the
    number after the digits.
    """
    if count < 1 or high <= low:
        raise ValueError(f"no prompt of {count} numbers of [{low}, {high})")
    drawn = np.random.default_rng((seed, index)).integers(low, high, size=count, dtype=np.int32)
    base, rest, place = high - low, index, 0
    while place < count and (rest or place == 0):
        rest, digit = divmod(rest, base) if base > 1 else (0, 0)
        drawn[place] = low + digit
        place += 1
    if seed_offset and place < count:
        drawn[place] = low + (drawn[place] - low + seed_offset) % base
    return drawn


@dataclass(frozen=True)
class Item:
    """One request of a data set.

    Attributes:
        at_s: when it arrives, from the first one; 0 where the data set has no times.
        text: of the prompt; None: random tokens.
        input_tokens: prompt length; None: that of the text.
        output_tokens: output length.
        blocks: contents of the prompt's blocks of 512 tokens, by number: equal numbers are equal tokens.
    """

    at_s: float = 0.0
    text: str | None = None
    input_tokens: int | None = None
    output_tokens: int = 1
    blocks: tuple[int, ...] = ()


class Workload:
    """Requests of one window.

    Args:
        bench: workload, lengths, endpoint, sampling and seed.
        model: ordinary token ids.
        name: the value of "model" in each request.
        items: of the data set, or the prose, where the workload has one.
        seed_offset: number that no other window on this service has, where its engine caches prefixes; else 0.

    Attributes:
        turns: requests that are sent one after the other: 1, or those of a conversation.
        arrivals: times of the requests in s, where the workload itself has them.
    """

    def __init__(
        self, bench: Bench, model: Model, name: str, *, items: Sequence[Item] | Prose = (), seed_offset: int = 0
    ) -> None:
        self._bench, self._source, self._seed_offset = bench, items, seed_offset
        self._model, self._name = model, name
        self._prose = items if isinstance(items, Prose) else None
        self._items: Sequence[Item] = () if isinstance(items, Prose) else items
        self._writer = Writer(bench, model, name)
        self.path = self._writer.path
        self.turns = bench.turns if bench.workload == "multi_turn" else 1
        self.arrivals = tuple(item.at_s for item in self._items) if bench.workload == "trace" else None

    def apart(self) -> Workload:
        """Return the same requests under another offset, where there is one: what they leave in a cache helps none."""
        return Workload(self._bench, self._model, self._name, items=self._source, seed_offset=-self._seed_offset)

    def body(self, index: int) -> bytes:
        """Return the body of request number `index`."""
        kind, output = self._bench.workload, self.asked_output(index)
        if kind == "needle":
            return self._writer.text(self._apart(self._haystack(index)), output)
        if kind in ("sharegpt", "trace"):
            item = self._item(index)
            if item.text is not None:
                return self._writer.text(self._apart(item.text), output)
            return self._writer.numbers(self._of_item(item, index), output)
        if kind == "multi_turn":
            return self._turn(*divmod(index, self.turns), output)
        count, _ = drawn_lengths(self._bench, index)
        if self._prose:
            return self._writer.ids(self._prose.prompt(self._bench.seed, index, count, self._seed_offset), output)
        if kind == "shared_prefix":
            return self._writer.numbers(self._with_prefix(index, count), output)
        return self._writer.numbers(self._numbers(index, count), output)

    def asked_input(self, index: int) -> int | None:
        """Return the prompt length of request number `index` in tokens; None where it cannot be told (texts)."""
        kind = self._bench.workload
        if self._writer.chat or kind == "needle":
            return None
        if kind in ("sharegpt", "trace"):
            return self._item(index).input_tokens
        if kind == "multi_turn":
            return turn_input(self._bench, index % self.turns)
        return drawn_lengths(self._bench, index)[0]

    def asked_output(self, index: int) -> int:
        """Return the output length of request number `index`, tokens."""
        if self._items:
            return self._item(index).output_tokens
        return self._bench.output_tokens if self.turns > 1 else drawn_lengths(self._bench, index)[1]

    def _item(self, index: int) -> Item:
        return self._items[index % len(self._items)]

    def _numbers(self, index: int, count: int) -> NDArray[np.int32]:
        writer = self._writer
        return numbers(self._bench.seed, index, count, writer.low, writer.high, self._seed_offset)

    def _with_prefix(self, index: int, count: int) -> NDArray[np.int32]:
        shared = round(self._bench.prefix_share * count)
        group = index % self._bench.prefix_groups
        parts = [self._numbers(_PREFIXES + group, shared)] if shared else []
        parts += [self._numbers(index, count - shared)] if shared < count else []
        return np.concatenate(parts)

    def _turn(self, conversation: int, turn: int, output: int) -> bytes:
        """A conversation is one row of numbers; its turns are longer and longer beginnings of it."""
        said = self._numbers(conversation, turn_input(self._bench, self.turns - 1))
        said = said[: turn_input(self._bench, turn)]
        if not self._writer.chat:
            return self._writer.numbers(said, output)
        step = self._bench.input_tokens + self._bench.output_tokens
        cuts = [cut for t in range(turn) for cut in (t * step + self._bench.input_tokens, (t + 1) * step)]
        return self._writer.turns(np.split(said, cuts), output)

    def _of_item(self, item: Item, index: int) -> NDArray[np.int32]:
        count = item.input_tokens or 1
        if not item.blocks:
            return self._numbers(index, count)
        blocks = [self._numbers(_PREFIXES + block, _HASH_BLOCK) for block in item.blocks]
        rest = count - _HASH_BLOCK * len(blocks)
        blocks += [self._numbers(index, rest)] if rest > 0 else []
        return np.concatenate(blocks)[:count]

    def _haystack(self, index: int) -> str:
        count, _ = drawn_lengths(self._bench, index)
        return haystack(self._bench.seed, index, count, self._bench.needle_depth).prompt

    def _apart(self, text: str) -> str:
        return f"[{self._seed_offset}] {text}" if self._seed_offset else text
