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

_GENERAL = (
    "Error", "error", "ERR", "FATAL", "CRITICAL", "CANCELLED", "Exception", "exception", "Interrupt", "Fail",
    "fail", "FAIL", "fatal", "Fatal", "fault", "Killed", "killed", "died", "dumped", "Exited", "exited", "ended",
    "out of memory", "Out Of Memory", "imed out", "times out", "timeout", "No such", "no such", "annot ",
    "not found", "denied", "refused", "nvalid", "is invalid", "did not ", "Did not ", "couldn", "ould not ",
    "not exist", "not support", "Unable to ", "[Errno ", "by peer", '", line ',
)  # fmt: skip
"""Words of lines that read like an error, and of tracebacks."""

_SPECIAL = (
    "EI00", "EJ00", "EL00", "EZ99", "EE99", "EH99", "hcclRet", "GetRootInfo", "BUFFSIZE", "MTE instruction",
    "inconsistent", "listening", "AllocComResource", "AclmdlRI", "available streams", "stream resource",
    "runtime result", "aicore", "aivec", "only support", "queries per kv", "graph batch", "torchair_cache",
    "kv_cache_bytes", "larger than the", "less than desired", "No available", "usage: 9", "usage: 100",
    "scheduler is enabled", "batched_tokens (", "max_model_len (", "eager mode", "mismatch", "Not enough",
    "World size", "divisible by", "quantization method", "trust_remote_code=", "Repo id", "not appear",
    "OfflineMode", "No module", "No package", "undefined symbol", "requires NumPy", "in use", "EADDRINUSE",
    "No space", "quota", "Read-only", "Stale file", "Too many", "Bus ", "exit code", "oom", "OOM", "OUT_OF_MEMORY",
    "memory limit", "Zero Bytes", "DUE TO", "PREEMPTED", "TIMEOUT", "aborted", "Terminat", "curl: (", "SQUASHFS",
    "corruption", "ABORTING", "already", "source path", "enroot-", "unrecognized", "not permitted",
    "required plugin", "ignoring --", "encountered", "Dumping ", "Process ", "Waiting ", "is gone", "is lost",
    "sign of life", "no new line", "in time", "connection to rank", "left something", "service ", "ready after",
    "startup complete", "shutdown trigger", "trigger received", "SIGTERM", "SIGUSR2", "SIGINT", "SystemExit",
    "time limit", "invaild", "SUMM-",
)  # fmt: skip
"""Some word of every signature that has none of the above (a test sees to it), and of what classify.py looks for."""

_MARKERS = _GENERAL + _SPECIAL

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
    lines of all others. A line without a time comes with the nearest line before it that has one. The last three
    lines of the log are always there.

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
        number = kept.scan(block[:cut], number)
        rest = block[cut:]
    if rest:
        kept.scan(rest + b"\n", number)
    return kept.lines()


def _hits(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield (first marker, end of line) of every line with a marker; `body` ends with a line."""
    ahead = [(found.start(), finder) for finder in _FINDERS if (found := finder.search(body))]
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
            message = line[:_SAME].translate(None, _NUMBERS)
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
        if not has_stamp(_text(line)):
            stamped = _stamped_before(body, start, number) or self._stamped
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


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")
