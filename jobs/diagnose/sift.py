"""Lines of a log that may matter, found in one pass with bounded memory: a flood of a gigabyte is no obstacle."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from itertools import groupby
from typing import BinaryIO

from jobs.diagnose.times import has_stamp

Line = tuple[int, str]
"""Line number (from 1) and text."""

_MARKERS = (
    "Error", "error", "ERR", "FATAL", "CRITICAL", "CANCELLED", "Exception", "Interrupt", "Failed", "failed", "failure",
    "FAIL", "Fail", "fail ", "fatal", "Fatal", "fault", "Bus ", "Killed", "killed", "died", "dumped", "EI00", "EJ00",
    "EZ99", "EL00", "oom", "OOM", "Out Of Memory", "OUT_OF_MEMORY", "out of memory", "timed out", "times out",
    "timeout", "TIMEOUT", "DUE TO", "PREEMPTED", "Waiting ", "No such", "No space", "No available", "No module",
    "No package", "annot ", "not found", "denied", "refused", "nvalid", "already", "is gone", "is lost",
    "sign of life", "in time", "connection to rank", "usage: 9", "usage: 100", "startup complete", "ready after", "Exited",
    "exited", "ended", "ABORTING", "ignoring --", "inconsistent", "did not ", "Did not ", "is invalid", "SIGTERM",
    "SIGUSR2", "SIGINT", "left something", "service ", "shutdown trigger", "trigger received", '", line ',
)  # fmt: skip
"""Some word of every signature (signatures.py checks it) and of every line that reads like an error."""

_MAY_MATTER = re.compile("|".join(map(re.escape, _MARKERS)))
_FINDERS = tuple(
    re.compile("|".join(map(re.escape, group)).encode())
    for _, group in groupby(sorted(_MARKERS), key=lambda marker: marker[0])
)
"""One for each first letter: `re` looks for a single first letter some fifty times as fast as for one of many."""

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
"""Lines that are searched backwards for the time of one without."""

_NUMBERS = b"0123456789abcdef"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def may_matter(line: str) -> bool:
    """Return whether a line has a word that could make it part of a diagnosis."""
    return _MAY_MATTER.search(line) is not None


def plain(text: str) -> str:
    """Return a line or text without terminal colours."""
    return _COLOUR.sub("", text)


def sift(stream: BinaryIO) -> tuple[Line, ...]:
    """Return the lines of a log that may matter, in order.

    Of one message (numbers aside) the first three and the last are kept, of at most 4000 messages, and the last 1000
    of all others. A line without a time comes with the nearest line before it that has one. The last three lines
    of the log are always there.

    Args:
        stream: binary, read once in chunks of 1 MiB; any size, any line length.
    """
    kept = _Kept()
    number, rest = 1, b""
    while chunk := stream.read(_CHUNK):
        block = rest + chunk
        cut = block.rfind(b"\n") + 1
        if not cut:  # a line without end: its beginning says enough
            rest = block[:_LONGEST]
            continue
        body, rest = block[:cut], block[cut:]
        _scan(body, number, kept)
        number += body.count(b"\n")
    if rest:
        _scan(rest + b"\n", number, kept)
    return kept.lines()


def _scan(body: bytes, number: int, kept: _Kept) -> None:
    last = 0
    for found, end in _hits(body):
        start = body.rfind(b"\n", 0, found) + 1
        number += body.count(b"\n", last, start)
        last = start
        begin = max(start, body.rfind(b"\r", start, found) + 1)  # progress bars write over their own line
        begin = max(begin, found - _LONGEST // 2)
        kept.add(number, body[begin : min(end, begin + _LONGEST)], body, start)
    kept.close_block(body, number + body.count(b"\n", last))


def _hits(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield (first marker, end of line) of every line with a marker; `body` ends with a line."""
    ahead = [(found.start(), finder) for finder in _FINDERS if (found := finder.search(body))]
    while ahead:
        first = min(position for position, _ in ahead)
        end = body.index(b"\n", first)
        yield first, end
        passed = [finder for position, finder in ahead if position < end]
        ahead = [(position, finder) for position, finder in ahead if position > end]
        ahead += [(found.start(), finder) for finder in passed if (found := finder.search(body, end + 1))]


class _Kept:
    """What is kept of one log."""

    def __init__(self) -> None:
        self._first: dict[int, bytes] = {}
        self._seen: dict[bytes, int] = {}
        self._last: dict[bytes, tuple[int, bytes]] = {}
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT)
        self._stamped: tuple[int, bytes] | None = None
        self._tail: deque[tuple[int, bytes]] = deque(maxlen=_TAIL)

    def add(self, number: int, line: bytes, body: bytes, start: int) -> None:
        """Keep a line that may matter; it begins at `start` of `body`."""
        message = line[:_SAME].translate(None, _NUMBERS)
        seen = self._seen.get(message, 0)
        if not seen and len(self._seen) >= _MESSAGES:
            self._recent.append((number, line))
        elif seen >= _REPEATS:
            self._last[message] = (number, line)
        else:
            self._seen[message] = seen + 1
            self._first[number] = line
            if not has_stamp(_text(line)):
                stamped = _stamped_before(body, start, number) or self._stamped
                if stamped:
                    self._first[stamped[0]] = stamped[1]

    def close_block(self, body: bytes, after: int) -> None:
        """Remember the end of a block; `after` is the number of the line after it."""
        self._stamped = _stamped_before(body, len(body), after) or self._stamped
        lines = body[-_TAIL * _LONGEST : -1].split(b"\n")[-_TAIL:]
        self._tail.extend((after - len(lines) + i, line[-_LONGEST:]) for i, line in enumerate(lines))

    def lines(self) -> tuple[Line, ...]:
        """Return everything that was kept, in order."""
        everything = self._first | dict(self._last.values()) | dict(self._recent) | dict(self._tail)
        return tuple((number, plain(_text(everything[number]))) for number in sorted(everything))


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


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
