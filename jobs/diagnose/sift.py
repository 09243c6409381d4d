"""Lines of a log that may matter, found in one pass with bounded memory: a flood of a gigabyte is no obstacle."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby
from typing import Protocol

from jobs.diagnose.events import forms
from jobs.diagnose.signatures import signatures
from jobs.diagnose.times import has_stamp

Line = tuple[int, str]
"""Line number (from 1) and text."""


@cache
def _markers() -> tuple[str, ...]:
    """Return all words of which a line needs one, those of the rule book too, that contain no shorter one.

    Not those of stages, whose progress bars would hide what stands behind them: a few stand among the markers.
    """
    book = [signature for signature in signatures() if signature.kind != "stage"]
    known = {*forms()["markers"], *forms()["chinese"]}.union(*(signature.words for signature in book))
    return tuple(sorted(word for word in known if not any(other != word and other in word for other in known)))


@cache
def _finders() -> tuple[re.Pattern[bytes], ...]:
    """One for each first letter: `re` looks for a single first letter some fifty times as fast as for one of many."""
    return tuple(
        re.compile("|".join(map(re.escape, group)).encode())
        for _, group in groupby(_markers(), key=lambda marker: marker[0])
    )


class Stream(Protocol):
    """What a log is read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none: the end."""


_CHUNK = 1 << 20
_LONGEST = 2000
"""Bytes of a line that are kept."""

_SAME = 300
"""Bytes of a line, without the letters of numbers, that make it the same message as another."""

_REPEATS = 3
_MESSAGES = 4000
_RECENT = 1000
_TAIL = 3
_BACK = 64
"""Lines that are searched for the time of one without."""

_JSON = (
    ("log", "message", "msg", "event", "text"),
    ("level", "levelname", "severity", "lvl"),
    ("time", "timestamp", "asctime", "ts", "@timestamp"),
)
"""Keys of a line of JSON: its words, its level, its time."""

_NAMED_ABOVE = b"[type="
"""In a line of pydantic, which has the name of the field on the line before it."""

_FRAME = b'", line '
_NUMBERS = b"0123456789abcdef"
_LINE = re.compile(r"(?:第 ?|行 ?)(\d{1,6})(?: ?行)?[:：]")
"""How a shell names a line of a script in Chinese."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def plain(text: str) -> str:
    """Return a line without terminal colours; one of JSON (docker, loguru, structlog) as a line of Python's logging.

    What a shell or the system says in Chinese is turned into its English words.
    """
    text = _COLOUR.sub("", text)
    if not text.isascii():
        text = _LINE.sub(r"line \1:", text)
        for said, english in forms()["chinese"].items():
            text = text.replace(said, english)
    if not (text.startswith("{") and text.endswith("}")):
        return text
    try:
        data = json.loads(text)
    except ValueError:
        return text
    said, level, time = (next((data[key] for key in keys if isinstance(data.get(key), str)), "") for keys in _JSON)
    if isinstance(why := data.get("error"), str) and why not in said:
        said = f"{said}: {why}"
    head = f"{time} - json - {level.upper()} - " if level else f"{time} " if time else ""
    return f"{head}{said.rstrip()}" if said else text


def sift(stream: Stream, enough: Callable[[], bool] = bool) -> tuple[Line, ...]:
    """Return the lines of a log that may matter, in order.

    Of one message (numbers aside) the first three and the last are kept, of at most 4000 messages, and the last 1000
    lines of all others. A line without a time comes with the nearest lines before and after it that have one. The last
    three lines of the log are always there.

    Args:
        stream: binary, read once in chunks of 1 MiB; any size, any line length.
        enough: whether the time for it is over; the rest of the log is then left out.
    """
    kept = _Kept()
    number, rest = 1, b""
    while not enough() and (chunk := stream.read(_CHUNK)):
        block = rest + chunk
        cut = block.rfind(b"\n") + 1
        if not cut:  # a line without end: its beginning says enough
            rest = block[:_LONGEST]
            continue
        number = kept.scan(block[:cut], number)
        rest = block[cut:]
    if rest:
        kept.scan(rest + b"\n", number)
    return kept.lines()


def _hits(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield (first marker, end of line) of every line with a marker; `body` ends with a line."""
    ahead = [(found.start(), finder) for finder in _finders() if (found := finder.search(body))]
    while len(ahead) > 1:
        first = min(position for position, _ in ahead)
        end = body.index(b"\n", first)
        yield first, end
        passed = [finder for position, finder in ahead if position < end]
        ahead = [(position, finder) for position, finder in ahead if position > end]
        ahead += [(found.start(), finder) for finder in passed if (found := finder.search(body, end + 1))]
    for first, finder in ahead:
        end = body.index(b"\n", first)
        yield first, end
        while found := finder.search(body, end + 1):
            end = body.index(b"\n", found.end())
            yield found.start(), end


class _Kept:
    """What is kept of one log."""

    def __init__(self) -> None:
        self._first: dict[int, bytes] = {}
        self._seen: dict[bytes, int] = {}
        self._last: dict[bytes, tuple[int, bytes]] = {}
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT)
        self._tail: deque[tuple[int, bytes]] = deque(maxlen=_TAIL)
        self._stamped: tuple[int, bytes] | None = None

    def scan(self, body: bytes, number: int) -> int:
        """Keep what matters of some whole lines, of which the first is line `number`. Returns the number after."""
        numbers = _Numbers(body, number)
        repeated: dict[bytes, tuple[int, bytes]] = {}
        recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT)
        for found, end in _hits(body):
            start = body.rfind(b"\n", 0, found) + 1
            line = body[start:end] if end - start < _LONGEST else _cut(body, start, found, end)
            message = _message(line)
            seen = self._seen.get(message, 0)
            if seen >= _REPEATS:
                repeated[message] = (start, line)
            elif not seen and len(self._seen) >= _MESSAGES:
                recent.append((start, line))
            else:
                self._seen[message] = seen + 1
                self._keep(numbers.of(start), line, body, start)
        later = _Numbers(body, number)
        for start, message, line in sorted((start, message, line) for message, (start, line) in repeated.items()):
            self._last[message] = (later.of(start), line)
        later = _Numbers(body, number)
        self._recent.extend((later.of(start), line) for start, line in recent)
        return self._close(body, numbers.of(len(body)))

    def _keep(self, number: int, line: bytes, body: bytes, start: int) -> None:
        self._first[number] = line
        if _NAMED_ABOVE in line and start:
            begin = body.rfind(b"\n", 0, start - 1) + 1
            self._first.setdefault(number - 1, body[begin : min(start - 1, begin + _LONGEST)])
        if not has_stamp(_text(line)):
            for stamped in (_stamped_before(body, start, number) or self._stamped, _stamped_after(body, start, number)):
                if stamped:
                    self._first.setdefault(*stamped)

    def _close(self, body: bytes, after: int) -> int:
        """Remember the end of a block, for the lines of the next one and as the end of the log."""
        self._stamped = _stamped_before(body, len(body), after) or self._stamped
        lines = body[-_TAIL * _LONGEST : -1].split(b"\n")[-_TAIL:]
        self._tail.extend((after - len(lines) + i, line[-_LONGEST:]) for i, line in enumerate(lines))
        return after

    def lines(self) -> tuple[Line, ...]:
        """Return everything that was kept, in order."""
        everything = dict(self._tail) | dict(self._recent) | dict(self._last.values()) | self._first
        return tuple((number, plain(_text(everything[number]))) for number in sorted(everything))


class _Numbers:
    """Line numbers of ascending positions in a block."""

    def __init__(self, body: bytes, first: int) -> None:
        self._body, self._number, self._counted = body, first, 0

    def of(self, start: int) -> int:
        """Return the number of the line that begins at `start`."""
        self._number += self._body.count(b"\n", self._counted, start)
        self._counted = start
        return self._number


def _message(line: bytes) -> bytes:
    """Return what makes a line the same message as another: a frame of a traceback, only in one process."""
    of = max(0, line.find(b")", line.find(b"pid=", 0, _SAME) + 1, _SAME)) if _FRAME in line else 0
    return line[:of] + line[of:_SAME].translate(None, _NUMBERS)


def _cut(body: bytes, start: int, found: int, end: int) -> bytes:
    """Return the part of a long line around its first marker. Progress bars write over their own line."""
    begin = max(start, body.rfind(b"\r", start, found) + 1, found - _LONGEST // 2)
    return body[begin : min(end, begin + _LONGEST)]


def _stamped_before(body: bytes, start: int, number: int) -> tuple[int, bytes] | None:
    """Return the nearest line with a time before `start`, which is the beginning of line `number`."""
    end = start - 1
    for back in range(1, _BACK + 1):
        if end <= 0:
            return None
        begin = body.rfind(b"\n", 0, end) + 1
        line = body[begin : min(end, begin + _LONGEST)]
        if has_stamp(_text(line)):
            return number - back, line
        end = begin - 1
    return None


def _stamped_after(body: bytes, start: int, number: int) -> tuple[int, bytes] | None:
    """Return the nearest line with a time below line `number`, which begins at `start`: that programs went on."""
    begin = body.find(b"\n", start) + 1
    for further in range(1, _BACK + 1):
        end = body.find(b"\n", begin)
        if not begin or end < 0:
            return None
        line = body[begin : min(end, begin + _LONGEST)]
        if has_stamp(_text(line)):
            return number + further, line
        begin = end + 1
    return None


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
