"""Which steps a closed loop makes an engine take, whatever they last: vLLM's V1 scheduler on all ranks together. Pure.

A step gives every sequence that makes tokens its next ones, then reads prompts in order of arrival within what is left
of `batched` tokens and `slots` sequences (vllm/v1/core/sched/scheduler.py; jobs/engines/simulator/scheduler.py acts it
out with blocks and clocks). Ranks with experts in common step together. A request that has ended is followed by the
next one at once. All begin at once, but an engine is at work on the first when it hears of the others. So the order of
steps follows from counts alone: it is worked out once, and any constants then give its times (`figures`). Steps in
which nothing begins or ends are one segment.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

ROUNDS = 3
"""Requests of each slot; those of the first are not counted: all of them began at once."""


@dataclass(frozen=True)
class Loop:
    """A closed loop: `steps` that one request takes to make its tokens after the first, `checked` tokens in each.

    `spread`: the slots begin one after the other, evenly over those steps, as where a rate brings their requests; else
    the first alone, then all others at once, and those whose prompts are read together go on together.
    """

    ranks: int
    concurrency: int
    prompt: int
    steps: int
    checked: int
    batched: int
    slots: int
    spread: bool = False


@dataclass(frozen=True)
class Schedule:
    """The segments of a loop, one after the other; arrays are [segment] or [rank, segment].

    Attributes:
        count: steps of a segment.
        prompt, making, pairs, context: of one step of each rank: prompt tokens, tokens made or checked, (query,
            context) pairs, tokens of context.
        born, first, ended: of each request that counts: before which segment it came, got its first token, ended.
    """

    count: Floats
    prompt: Floats
    making: Floats
    pairs: Floats
    context: Floats
    born: Places
    first: Places
    ended: Places


@dataclass(slots=True, eq=False)
class _Sequence:
    born: int
    left: int
    done: int = 0
    first: int = 0
    steps: int = 0


class _Rank:
    """The queue and the running sequences of one rank."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.waiting: deque[_Sequence] = deque()
        self.running: list[_Sequence] = []

    def chunks(self) -> list[tuple[_Sequence, int]]:
        """Admit what there is room for; return the prompt tokens that the next step reads of each."""
        loop = self._loop
        making = sum(one.left == 0 for one in self.running)
        budget, found = max(1, loop.batched - making * loop.checked), []
        for one in self.running:
            if one.left and budget > 0:
                found.append((one, min(one.left, budget)))
                budget -= found[-1][1]
        while self.waiting and budget > 0 and len(self.running) < loop.slots:
            one = self.waiting.popleft()
            self.running.append(one)
            found.append((one, min(one.left, budget)))
            budget -= found[-1][1]
        return found

    def work(self, chunks: list[tuple[_Sequence, int]], count: int) -> tuple[float, float, float, float]:
        """Return what one step of a segment is, in the middle of it."""
        making = [one for one in self.running if not one.left]
        context = float(sum(one.done for one in making)) + len(making) * (count - 1) / 2
        prompt = float(sum(tokens for _, tokens in chunks))
        pairs = sum(tokens * (one.done + tokens / 2) for one, tokens in chunks)
        read = sum(one.done + tokens for one, tokens in chunks)
        checked = self._loop.checked
        return prompt, float(len(making) * checked), pairs + context * checked, context + read

    def advance(self, chunks: list[tuple[_Sequence, int]], count: int, now: int) -> list[_Sequence]:
        """Carry a segment out; return the sequences that ended."""
        loop = self._loop
        gained = (loop.checked + 1) / 2 if loop.checked > 1 else 1
        for one in self.running:
            if not one.left:
                one.steps += count
                one.done += round(count * gained)
        for one, tokens in chunks:
            one.left -= tokens
            one.done += tokens
            if not one.left:
                one.first = now
        ended = [one for one in self.running if not one.left and one.steps >= loop.steps]
        self.running = [one for one in self.running if one.left or one.steps < loop.steps]
        return ended

    def alone(self) -> int:
        """Return for how many steps nothing begins or ends."""
        if any(one.left for one in self.running):
            return 1
        return min((self._loop.steps - one.steps for one in self.running), default=1 << 30)


@lru_cache(maxsize=4096)
def schedule(loop: Loop) -> Schedule:
    """Return the steps of a loop."""
    ranks = [_Rank(loop) for _ in range(loop.ranks)]
    apart = loop.steps / loop.concurrency
    begins = deque(slot * apart if loop.spread else min(slot, 1) for slot in range(loop.concurrency))
    elapsed, slot = 0, 0
    counts: list[int] = []
    works: list[list[tuple[float, float, float, float]]] = []
    done: list[_Sequence] = []
    places: list[int] = []
    while len(done) < loop.concurrency * ROUNDS:
        if begins and not any(one.running or one.waiting for one in ranks):
            elapsed = max(elapsed, math.ceil(begins[0]))
        while begins and begins[0] <= elapsed:
            begins.popleft()
            ranks[slot % loop.ranks].waiting.append(_Sequence(len(counts), loop.prompt))
            slot += 1
        chunks = [one.chunks() for one in ranks]
        count = 1 if any(chunks) else min(one.alone() for one in ranks)
        if begins:
            count = max(1, min(count, math.ceil(begins[0] - elapsed)))
        elapsed += count
        works.append([one.work(part, count) for one, part in zip(ranks, chunks, strict=True)])
        counts.append(count)
        now = len(counts)
        for one, part in zip(ranks, chunks, strict=True):
            for ended in one.advance(part, count, now):
                done.append(ended)
                places.append(now)
                one.waiting.append(_Sequence(now, loop.prompt))
    counted = slice(loop.concurrency, None)
    table = np.array(works, dtype=np.float64)
    prompt, making, pairs, context = (np.ascontiguousarray(table[:, :, k].T) for k in range(4))
    return Schedule(
        count=np.array(counts, dtype=np.float64),
        prompt=prompt,
        making=making,
        pairs=pairs,
        context=context,
        born=np.array([one.born for one in done[counted]], dtype=np.int64),
        first=np.array([one.first for one in done[counted]], dtype=np.int64),
        ended=np.array(places[counted], dtype=np.int64),
    )


def making_steps(output: int, acceptance: float, drafted: int) -> int:
    """Return the steps in which a request makes its tokens after the first: so many tokens does one give on average."""
    kept = sum(acceptance**n for n in range(drafted + 1))
    return math.ceil((output - 1) / kept)
