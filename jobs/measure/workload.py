"""Prompts: the i-th request body is a pure function of (bench.seed, i), so the same at every concurrency.

Building one must not disturb the load: a body is one random draw and one look-up in a table of fixed-width
pieces of JSON, about 0.2 ms for 32,768 tokens (`benchmarks/client_overhead.py --bodies`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.config import Bench, Model
from jobs.measure.words import WORDS


def numbers(seed: int, index: int, count: int, low: int, high: int) -> NDArray[np.int32]:
    """Return prompt number `index`: `count` integers of [low, high), shape (count,).

    The first ones are the digits of `index`, lowest first, and the rest is random. So two prompts differ
    for certain, and already in their first numbers: no prefix cache can help (issue 2, Measure).
    """
    if count < 1 or high <= low:
        raise ValueError(f"no prompt of {count} numbers of [{low}, {high})")
    drawn = np.random.default_rng((seed, index)).integers(low, high, size=count, dtype=np.int32)
    base, rest, place = high - low, index, 0
    while place < count and (rest or place == 0):
        rest, digit = divmod(rest, base) if base > 1 else (0, 0)
        drawn[place] = low + digit
        place += 1
    return drawn


class Workload:
    """Request bodies of one point, as JSON bytes ready to send.

    endpoint=completions sends exactly `input_tokens` random token ids of the model's ordinary range;
    endpoint=chat sends one user message of `input_tokens` words (the engine counts its tokens itself).

    Args:
        bench: lengths, endpoint, sampling and seed.
        model: ordinary token ids.
        name: the value of "model" in each request.
    """

    def __init__(self, bench: Bench, model: Model, name: str) -> None:
        self._seed, self._count = bench.seed, bench.input_tokens
        self.path = "/v1/chat/completions" if bench.endpoint == "chat" else "/v1/completions"
        options = {
            "model": name,
            "max_tokens": bench.output_tokens,
            "temperature": bench.temperature,
            "ignore_eos": bench.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        head = json.dumps(options).removesuffix("}")
        if bench.endpoint == "chat":
            self._low, self._high = 0, len(WORDS)
            self._table = _table([word + " " for word in WORDS])
            head, tail = head + ', "messages": [{"role": "user", "content": "', '"}]}'
        else:
            self._low, self._high = model.shape.token_ids
            self._table = _table([f"{i}," for i in range(self._low, self._high)])
            head, tail = head + ', "prompt": [', "]}"
        self._head, self._tail = head.encode(), tail.encode()

    def body(self, index: int) -> bytes:
        """Return the body of request number `index`."""
        drawn = numbers(self._seed, index, self._count, self._low, self._high)
        pieces = self._table.take(drawn - self._low).tobytes()
        return self._head + pieces[:-1] + self._tail


def _table(pieces: Sequence[str]) -> NDArray[np.void]:
    """Return pieces of JSON as opaque items of one width; JSON allows the padding before a number."""
    width = max(map(len, pieces))
    return np.array([piece.rjust(width).encode() for piece in pieces], dtype=f"V{width}")
