"""Reader of a streamed completion (server-sent events), made to cost next to nothing per token.

Events are framed as the standard says (https://html.spec.whatwg.org/multipage/server-sent-events.html, 9.2.6): lines
end with LF, CRLF or CR, a blank line ends an event, a byte order mark may stand before the first, comments and unknown
fields are passed over, several `data` lines are one text, and an event that the stream cuts off is none. They are told
apart by their bytes; JSON is parsed only for those that say more than "one more token": the first and last chunk, usage
and errors. What is a success is decided here and nowhere else (faults: an engine that dies ends its streams with HTTP
200, an error event and [DONE]).
"""

from __future__ import annotations

import json
from array import array
from typing import Any

import numpy as np

from jobs.measure.records import Times

_BOM = b"\xef\xbb\xbf"
_RUNNING = b'"finish_reason":null'  # cannot occur inside a JSON string, where quotes are escaped
_DATA, _QUOTE = b'd"'
_NEVER = b"\n\n"  # in no event
_TEXTS = ("text", "content", "reasoning_content", "reasoning", "tool_calls")


class StreamParser:
    """The state of one answer.

    `chat`: chat chunks open with a role and no token; such a chunk is not a first token.

    Attributes:
        prompt_tokens, output_tokens: from usage; None until it came.
        error: first fault of the stream, in the service's words; None: no fault so far.
    """

    def __init__(self, *, chat: bool) -> None:
        self._opening = chat
        self._rest = b""
        self._fresh = self._careful = True  # nothing came yet; the next bytes have to be looked at
        self._times = array("d")
        self._empty: set[int] = set()  # numbers of the chunks without a word
        self._words, self._length = _NEVER, 0  # how the last chunk that was parsed began its words
        self._done = False
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.error: str | None = None

    @property
    def chunk_times(self) -> Times:
        """Arrival of every token chunk, shape (chunks,).

        A chunk without a word is neither the first nor the last: a gateway may open and end an answer with one. Engines
        send one too, for a token that is half a character or hidden. So each is a token where there are as many
        chunks as tokens, or where no chunk has a word; and none is where there are more chunks than tokens. Of several
        tokens a chunk the last one is one where it came in the engine's step.
        """
        begin, end = 0, len(self._times)
        if self.output_tokens != end and len(self._empty) < end:
            while begin in self._empty:
                begin += 1
            several = (self.output_tokens or 0) > end
            while end - 1 in self._empty and not (several and self._in_step(begin, end)):
                end -= 1
            if self.output_tokens and end - begin > self.output_tokens:
                return np.array([self._times[at] for at in range(begin, end) if at not in self._empty])
        return np.array(self._times[begin:end], dtype=np.float64)

    def _in_step(self, begin: int, end: int) -> bool:
        """Return whether the last chunk came as long after the one before as others do, to a half or twice of that."""
        gaps = np.diff(self._times[begin:end])
        return len(gaps) > 1 and bool(gaps[-1] < 2 * np.median(gaps[:-1]) < 4 * gaps[-1])

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes that arrived at `now`; events may be split over reads or share one."""
        if self._careful or b"\r" in data:
            data = self._plain(data)
        data = self._rest + data
        *events, self._rest = data.split(b"\n\n")
        for event in events:
            at = event.find(self._words)
            if (
                at > 0
                and event[at + self._length] != _QUOTE
                and event[0] == _DATA
                and _RUNNING in event
                and b"\n" not in event
            ):
                self._times.append(now)
            else:
                self._other(event, now)

    def fault(self, output_tokens: int | None) -> str | None:
        """Return why the ended stream is no success, or None.

        `output_tokens`: length that was asked for with ignore_eos; None: any length is right.
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

    def _plain(self, data: bytes) -> bytes:
        """Return the bytes with LF for every end of a line and without a byte order mark; reads may split both."""
        if self._fresh:
            data, self._rest = self._rest + data, b""
            if len(data) < len(_BOM) and _BOM.startswith(data):
                return data
            data, self._fresh = data.removeprefix(_BOM), False
        elif self._careful:
            data = data.removeprefix(b"\n")
        self._careful = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _other(self, event: bytes, now: float) -> None:
        if self._done:
            return  # nothing counts after [DONE]
        name, payload = _fields(event)
        if not payload:
            return
        if payload == b"[DONE]":
            self._done, self._words = True, _NEVER
            return
        try:
            message = json.loads(payload)
        except ValueError:
            message = None
        if name == b"error":
            self._fail(words_of(message) if isinstance(message, dict) else payload[:200].decode(errors="replace"))
        elif not isinstance(message, dict):
            if name in (b"", b"message"):  # another name: a sign of life of what stands between
                self._fail(f"unreadable event: {payload[:200].decode(errors='replace')}")
        elif message.get("error") or message.get("object") == "error":
            self._fail(words_of(message))
        else:
            try:
                self._read(message, now)
            except (AttributeError, TypeError):  # a list where an object belongs, or the like
                self._fail(f"unreadable event: {payload[:200].decode(errors='replace')}")

    def _read(self, message: dict[str, Any], now: float) -> None:
        if usage := message.get("usage"):
            self.prompt_tokens = _count(usage.get("prompt_tokens"))
            self.output_tokens = _count(usage.get("completion_tokens"))
        for choice in message.get("choices") or ():
            if choice.get("finish_reason") in ("abort", "error"):
                self._fail(f"finish_reason {choice['finish_reason']}")
            delta = choice.get("delta") or choice
            said = next((key for key in _TEXTS if delta.get(key)), None)
            if self._opening and "role" in delta and not said:
                continue
            self._opening = False
            if said:
                self._words = b'"%s":"' % said.encode()
                self._length = len(self._words)
            else:
                self._empty.add(len(self._times))
            self._times.append(now)

    def _fail(self, reason: str) -> None:
        self.error = self.error or reason


def _count(value: Any) -> int | None:
    """Return a number of tokens; None: it is none. Some gateways write 16.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fields(event: bytes) -> tuple[bytes, bytes]:
    """Return the name and the data of an event, both empty where it has none."""
    name, lines = b"", []
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            lines.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.strip()
    return name, b"\n".join(lines).strip()


def words_of(message: dict[str, Any]) -> str:
    """Return the words of an OpenAI error object: {"error": {"message"}}, {"error": text} or {"object": "error"}."""
    error = message.get("error") or message
    if isinstance(error, dict):
        error = error.get("message", error)
    return str(error)
