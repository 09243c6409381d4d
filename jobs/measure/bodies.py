"""Request bodies as JSON bytes.

Writing one must not disturb the load: drawn numbers become JSON by one look-up in a table of fixed-width pieces,
about 0.2 ms for 32,768 tokens (`benchmarks/client_overhead.py --bodies`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.core.foreign import from_yaml

if TYPE_CHECKING:
    from jobs.core.config import Bench, Model

VOCABULARY = tuple(from_yaml(Path(__file__).with_name("vocabulary.yaml").read_text(encoding="utf-8"))["words"].split())
"""Of text prompts. All have five letters, so that a prompt is one look-up in a fixed-width table."""


class Writer:
    """Writes the bodies of one point to its endpoint's `path`; `name` is the value of "model" in each request.

    `low`, `high`: the numbers that stand for tokens (completions) or words (chat) are of [low, high).
    """

    def __init__(self, bench: Bench, model: Model, name: str) -> None:
        self.chat = bench.endpoint == "chat"
        self.path = "/v1/chat/completions" if self.chat else "/v1/completions"
        options = {
            "model": name,
            "temperature": bench.temperature,
            "ignore_eos": bench.ignore_eos,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._head = json.dumps(options).removesuffix("}") + ', "max_tokens": '
        if self.chat:
            self.low, self.high = 0, len(VOCABULARY)
            self._table = _table([word + " " for word in VOCABULARY])
        else:
            self.low, self.high = model.shape.token_ids
            self._table = _table([f"{i}," for i in range(self.low, self.high)])

    def numbers(self, drawn: NDArray[np.int32], max_tokens: int) -> bytes:
        """Return a request whose prompt are these token ids, or whose one user message are these words."""
        pieces = self._pieces(drawn)
        if self.chat:
            return self._open(max_tokens, '"messages": [{"role": "user", "content": "') + pieces + b'"}]}'
        return self.ids(pieces, max_tokens)

    def ids(self, pieces: bytes, max_tokens: int) -> bytes:
        """Return a request whose prompt are these token ids, JSON text without brackets."""
        return self._open(max_tokens, '"prompt": [') + pieces + b"]}"

    def turns(self, parts: Sequence[NDArray[np.int32]], max_tokens: int) -> bytes:
        """Return a chat request whose messages are, in turn, of the user and of the assistant."""
        said = [
            b'{"role": "%s", "content": "%s"}' % (b"assistant" if turn % 2 else b"user", self._pieces(part))
            for turn, part in enumerate(parts)
        ]
        return self._open(max_tokens, '"messages": [') + b", ".join(said) + b"]}"

    def text(self, text: str, max_tokens: int) -> bytes:
        """Return a request with this text as its prompt or its one user message."""
        quoted = json.dumps(text).encode()
        if self.chat:
            return self._open(max_tokens, '"messages": [{"role": "user", "content": ') + quoted + b"}]}"
        return self._open(max_tokens, '"prompt": ') + quoted + b"}"

    def _open(self, max_tokens: int, begin: str) -> bytes:
        return f"{self._head}{max_tokens}, {begin}".encode()

    def _pieces(self, drawn: NDArray[np.int32]) -> bytes:
        return self._table.take(drawn - self.low).tobytes()[:-1]


def _table(pieces: Sequence[str]) -> NDArray[np.void]:
    """Return pieces of JSON as opaque items of one width; JSON allows the padding before a number."""
    width = max(map(len, pieces))
    return np.array([piece.rjust(width).encode() for piece in pieces], dtype=f"V{width}")
