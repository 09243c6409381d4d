"""Reader of a streamed completion (server-sent events), made to cost next to nothing per token.

Events are told apart by their bytes; JSON is parsed only for those that say more than "one more token": the first
and last chunk, usage and errors. What is a success is decided here and nowhere else (faults:
an engine that dies ends its streams with HTTP 200, an error event and [DONE]).
"""

from __future__ import annotations

import json
from array import array
from typing import Any

import numpy as np

from jobs.measure.records import Times

_CHOICE = b'"choices":[{'  # cannot occur inside a JSON string, where quotes are escaped
_RUNNING = b'"finish_reason":null'
_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")


class StreamParser:
    """The state of one answer.

    Args:
        chat: chat chunks open with a role and no token; such a chunk is not a first token.

    Attributes:
        prompt_tokens: from usage; None until it came.
        output_tokens: from usage; None until it came.
        error: first fault of the stream, in the service's words; None: no fault so far.
    """

    def __init__(self, *, chat: bool) -> None:
        self._opening = chat
        self._rest = b""
        self._times = array("d")
        self._done = False
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.error: str | None = None

    @property
    def chunk_times(self) -> Times:
        """Arrival of every token chunk, shape (chunks,)."""
        return np.array(self._times, dtype=np.float64)

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes that arrived at `now`; events may be split over reads or share one."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if _CHOICE in event and _RUNNING in event and not self._opening:
                self._times.append(now)
            else:
                self._other(event, now)

    def fault(self, output_tokens: int | None) -> str | None:
        """Return why the ended stream is no success, or None.

        Args:
            output_tokens: length that was asked for with ignore_eos; None: any length is right.
        """
        if self.error:
            return self.error
        if not self._done:
            return "the stream ended without [DONE]"
        if not self._times:
            return "the stream held no token"
        if not self.output_tokens:
            return "the stream held no usage with completion_tokens"
        if output_tokens is not None and self.output_tokens != output_tokens:
            return f"{self.output_tokens} tokens instead of {output_tokens}"
        return None

    def _other(self, event: bytes, now: float) -> None:
        line = event.strip()
        if not line.startswith(b"data:"):
            return  # a comment or another field of the SSE format
        payload = line.removeprefix(b"data:").strip()
        if payload == b"[DONE]":
            self._done = True
            return
        try:
            message = json.loads(payload)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._fail(f"unreadable event: {payload[:200].decode(errors='replace')}")
        elif message.get("error") or message.get("object") == "error":
            self._fail(words_of(message))
        else:
            self._read(message, now)

    def _read(self, message: dict[str, Any], now: float) -> None:
        if usage := message.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens")
            self.output_tokens = usage.get("completion_tokens")
        for choice in message.get("choices", ()):
            if choice.get("finish_reason") in ("abort", "error"):
                self._fail(f"finish_reason {choice['finish_reason']}")
            if self._opening and _opens_only(choice.get("delta") or {}):
                continue
            self._opening = False
            self._times.append(now)

    def _fail(self, reason: str) -> None:
        self.error = self.error or reason


def _opens_only(delta: dict[str, Any]) -> bool:
    return "role" in delta and not any(delta.get(key) for key in _TEXTS)


def words_of(message: dict[str, Any]) -> str:
    """Return the words of an OpenAI error object: {"error": {"message"}}, {"error": text} or {"object": "error"}."""
    error = message.get("error") or message
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)
