"""Continuous batching of one data-parallel rank, without clock or network: vLLM's V1 scheduler in short.

A step gives the running sequences their next tokens first, then admits waiting ones in order of arrival, within
`max_num_batched_tokens`, `max_num_seqs` and the free KV cache blocks. A running sequence that gets no block preempts
the youngest, which begins again from the front of the queue (vllm/v1/core/sched/scheduler.py). Without chunked
prefill a prompt goes into one step whole, and steps with prompts hold nothing else (vllm_ascend/core/scheduler.py).

With speculative decoding (`Drafting`) a sequence that makes tokens drafts some more, of which a step keeps those up to
the first that is not accepted (vllm/v1/sample/rejection_sampler.py).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from jobs.engines.steptime import Work


@dataclass(slots=True, eq=False)
class Request:
    """One sequence in an engine.

    Attributes:
        key: its number, chosen by the front end.
        prompt: prompt tokens.
        limit: tokens to make.
        reason: finish reason once they are made: length or stop.
        hashes: one for each whole block of the prompt; empty without prefix caching.
        computed: tokens whose KV cache is there.
        made: tokens made so far.
        blocks: KV cache blocks held.
    """

    key: int
    prompt: int
    limit: int
    reason: str = "length"
    hashes: Sequence[int] = ()
    computed: int = 0
    made: int = 0
    blocks: int = 0


@dataclass
class Drafting:
    """Speculative decoding as it is pretended.

    Attributes:
        tokens: drafted for each sequence and step.
        acceptance: probability that a drafted token is accepted, if those before it were, at a length of 0.
        half_length: tokens of context at which that probability is half as large; None: it does not fall.
        random: decides.
        counted: drafts so far, and those whose first, second, ... token was accepted.
    """

    tokens: int
    acceptance: float
    half_length: float | None
    random: Random
    counted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counted = [0] * (1 + self.tokens)

    def accepted(self, length: int, most: int) -> int:
        """Draft once for a sequence of this length; return how many tokens are kept, at most `most`."""
        probability = self.acceptance * (0.5 ** (length / self.half_length) if self.half_length else 1.0)
        self.counted[0] += 1
        kept = 0
        while kept < self.tokens and self.random.random() < probability:
            kept += 1
            self.counted[kept] += 1
        return min(kept, most)


@dataclass
class Batch:
    """One planned step: how many tokens of each request, and the work that makes."""

    items: list[tuple[Request, int]] = field(default_factory=list)
    work: Work = field(default_factory=lambda: Work(0, 0, 0.0, 0))


class Figures(NamedTuple):
    """What a scheduler shows: requests, the share of the KV cache held (0 to 1), and counts since its start."""

    running: int = 0
    waiting: int = 0
    usage: float = 0.0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    drafts: tuple[int, ...] = ()
    """`Drafting.counted`; empty without speculative decoding."""


class Scheduler:
    """The queue, the running sequences and the KV cache of one data-parallel rank.

    Args:
        blocks, block_size: KV cache blocks in all; tokens of one.
        max_tokens, max_seqs: of one step.
        chunked: a prompt may be cut over several steps.
        drafting: speculative decoding; None: it is off.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        max_tokens: int,
        max_seqs: int,
        *,
        chunked: bool = True,
        drafting: Drafting | None = None,
    ) -> None:
        self._drafting = drafting
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._preemptions = self._prefix_queries = self._prefix_hits = 0
        self._size, self._max_tokens, self._max_seqs, self._chunked = block_size, max_tokens, max_seqs, chunked
        self._blocks = self._free = blocks
        self._known: OrderedDict[int, None] = OrderedDict()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.waiting)

    @property
    def figures(self) -> Figures:
        """What there is now, and what has been counted."""
        usage = 1 - self._free / self._blocks
        counted = (self._preemptions, self._prefix_queries, self._prefix_hits)
        drafts = tuple(self._drafting.counted) if self._drafting else ()
        return Figures(len(self.running), len(self.waiting), usage, *counted, drafts)

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue."""
        self.waiting.append(request)

    def abort(self, keys: Iterable[int]) -> None:
        """Forget requests, wherever they are; unknown keys are passed over."""
        gone = set(keys)
        for request in [r for r in self.running if r.key in gone]:
            self.running.remove(request)
            self._release(request)
        self.waiting = deque(r for r in self.waiting if r.key not in gone)

    def plan(self) -> Batch:
        """Choose the next step and take the blocks it needs."""
        batch = Batch()
        if self._chunked:
            budget, preempted = self._continue(batch, self._max_tokens)
            if not preempted:
                self._admit(batch, budget)
        else:
            self._admit(batch, self._max_tokens)
            if not batch.items:
                self._continue(batch, self._max_tokens)
        batch.work = _work(batch.items)
        return batch

    def commit(self, batch: Batch) -> tuple[list[int], list[Request]]:
        """Carry a step out.

        Returns the keys of the requests that got a token, once for each, and the requests that are now complete.
        """
        got: list[int] = []
        done: list[Request] = []
        for request, tokens in batch.items:
            if request.blocks == 0:  # aborted while the step ran
                continue
            request.computed += tokens
            if request.computed < request.prompt + request.made:
                continue
            more = self._drafted(request) if request.made and tokens == 1 else 0
            request.computed += more
            request.made += 1 + more
            got += [request.key] * (1 + more)
            if request.made == 1:
                self._remember(request.hashes)
            if request.made >= request.limit:
                done.append(request)
                self.running.remove(request)
                self._release(request)
        return got, done

    def _drafted(self, request: Request) -> int:
        """Return how many drafted tokens a step gives a sequence beside its own."""
        if self._drafting is None:
            return 0
        return self._drafting.accepted(request.prompt + request.made, request.limit - request.made - 1)

    def _continue(self, batch: Batch, budget: int) -> tuple[int, bool]:
        """Give running sequences their next tokens; return what is left of the budget and whether one was preempted."""
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            tokens = min(request.prompt + request.made - request.computed, budget)
            while not self._hold(request, request.computed + tokens):
                victim = self.running.pop()
                self._release(victim)
                victim.computed = 0
                self.waiting.appendleft(victim)
                self._preemptions += 1
                preempted = True
                if victim is request:
                    return budget, True
            batch.items.append((request, tokens))
            budget -= tokens
            index += 1
        return budget, preempted

    def _admit(self, batch: Batch, budget: int) -> None:
        """Take waiting requests in, in order of arrival, while there is room."""
        while self.waiting and budget > 0 and len(self.running) < self._max_seqs:
            request = self.waiting[0]
            hits = self._hits(request)
            needed = request.prompt + request.made - hits
            tokens = min(needed, budget) if self._chunked else needed
            if tokens > budget or not self._hold(request, hits + tokens):
                return
            self.waiting.popleft()
            self.running.append(request)
            request.computed = hits
            if request.hashes:
                self._prefix_queries += request.prompt
                self._prefix_hits += hits
            batch.items.append((request, tokens))
            budget -= tokens

    def _hold(self, request: Request, tokens: int) -> bool:
        """Let a request hold the blocks of `tokens` tokens; False where they are not free."""
        missing = -(-tokens // self._size) - request.blocks
        if missing > self._free:
            return False
        self._free -= max(0, missing)
        request.blocks += max(0, missing)
        return True

    def _release(self, request: Request) -> None:
        self._free += request.blocks
        request.blocks = 0

    def _hits(self, request: Request) -> int:
        """Return the prompt tokens that earlier prompts left in the cache; the last token is always computed."""
        count = 0
        for block in request.hashes:
            if block not in self._known:
                break
            count += 1
        return min(count * self._size, (request.prompt - 1) // self._size * self._size)

    def _remember(self, hashes: Sequence[int]) -> None:
        for block in hashes:
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > self._blocks:
            self._known.popitem(last=False)


def _work(items: Sequence[tuple[Request, int]]) -> Work:
    prompt = new = context = 0
    pairs = 0.0
    for request, tokens in items:
        context += request.computed + tokens
        pairs += tokens * (request.computed + tokens / 2)
        if request.made and tokens == 1:
            new += 1
        else:
            prompt += tokens
    return Work(prompt, new, pairs, context)
