"""Times in log lines. Most loggers leave something out: vLLM the year, our own lines the day."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

_CLOCK = r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"

_FORMS = tuple(
    re.compile(form)
    for form in (
        # journalctl: Nov 24 22:51:48 host
        rf"^(?P<name>[A-Z][a-z]{{2}}) (?P<day>[ \d]\d) {_CLOCK} ",
        # Slurm 2026-11-24T22:51:48, CANN 2025-09-12-10:00:00.123.456, Python's logging 2026-11-24 23:25:49,921
        rf"(?<!\d)(?P<year>20\d\d)-(?P<month>\d\d)-(?P<day>\d\d)[T -]{_CLOCK}(?:[.,](?P<f>\d{{1,6}}(?:\.\d{{3}})?))?",
        # dmesg -T: [Thu Jun 17 10:03:11 2027]
        rf"^\[[A-Z][a-z]{{2}} (?P<name>[A-Z][a-z]{{2}}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>20\d\d)\]",
        # AISBench 11/24 22:51:48 - AISBench
        rf"(?<![\d/])(?P<month>\d\d)/(?P<day>\d\d) {_CLOCK} - ",
        # vLLM: INFO 11-24 22:51:48 [file.py:123]
        rf"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<month>\d\d)-(?P<day>\d\d) {_CLOCK}",
        # PyTorch: [W1124 23:26:10.236264913 file.cpp:207]; the month has one digit or two
        rf"(?:^|[\[ (])[EWIF](?P<month>\d{{1,2}})(?P<day>\d\d) {_CLOCK}\.(?P<f>\d{{1,9}})",
        # ours: 22:51:48 text
        rf"^{_CLOCK} ",
    )
)

_MONTHS = " JanFebMarAprMayJunJulAugSepOctNovDec"

_WITHIN = 200
"""Characters of a line in which its time stands; dates further on are part of the text."""

_DISORDER = timedelta(hours=1)
"""How far a line may be before its predecessor, in a log without days, before it is taken for the next day; and how
far behind the end of its log, whose time another clock may have given."""

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class _Stamp:
    year: int | None
    month: int | None
    day: int | None
    clock: tuple[int, int, int, int]


@dataclass(frozen=True)
class When:
    """When a line was written.

    Attributes:
        time: None: nothing is known.
        own: the line itself says so; else it has the time of the line before, or of the log's end.
        by: the time of the next line that tells one; None: none does.
    """

    time: datetime | None
    own: bool
    by: datetime | None = None

    @property
    def latest(self) -> datetime | None:
        """When it was written at the latest; None: nothing after it tells."""
        return self.time if self.own else self.by


def has_stamp(line: str) -> bool:
    """Return whether a line says when it was written."""
    return any(form.search(line, 0, _WITHIN) for form in _FORMS)


def timeline(logs: Sequence[tuple[Iterable[str], datetime | None]]) -> list[list[When]]:
    """Return the time of every line of every log.

    What a line leaves out comes from the line before it, and at first from the newest full date in all logs. Of a log
    without any date the last line is placed, just before its end, and the days roll back from there: its beginning may
    be days ago. A line without a time has that of the line before; a log without any has the time of its end, where
    that is known. All clocks are taken to be of one time zone.

    Args:
        logs: for each log its lines and the time of its end (modification of the file), if known.
    """
    stamps = [[_stamp(line) for line in lines] for lines, _ in logs]
    anchor = _anchor(stamps, [end for _, end in logs])
    dated = [_dates(log, anchor) for log in stamps]
    newest = max((time for log in dated for time in log), default=None)
    return [
        _walk(own, end, dates[0]) if dates else _back_from_end(own, end, newest, anchor)
        for own, dates, (_, end) in zip(stamps, dated, logs, strict=True)
    ]


def _dates(stamps: Sequence[_Stamp | None], near: datetime) -> list[datetime]:
    """Return the times of the lines that tell the day, full dates first."""
    told = [(stamp.year is None, time) for stamp in stamps if stamp and stamp.month and (time := _make(stamp, near))]
    return [time for _, time in sorted(told, key=lambda one: one[0])]


def _stamp(line: str) -> _Stamp | None:
    for form in _FORMS:
        if match := form.search(line, 0, _WITHIN):
            part = match.groupdict()
            micro = int((part.get("f") or "0").replace(".", "").ljust(6, "0")[:6])
            year, month, day = (int(part[key]) if part.get(key) else None for key in ("year", "month", "day"))
            month = month or _MONTHS.find(part.get("name") or "?") // 3 + 1
            return _Stamp(year, month or None, day, (int(part["h"]), int(part["m"]), int(part["s"]), micro))
    return None


def _anchor(stamps: Sequence[Sequence[_Stamp | None]], ends: Sequence[datetime | None]) -> datetime:
    full = [time for log in stamps for stamp in log if stamp and stamp.year and (time := _make(stamp, datetime.min))]
    known = [end for end in ends if end]
    return max(full or known or [datetime(2000, 1, 1)])


def _walk(stamps: Sequence[_Stamp | None], end: datetime | None, first: datetime) -> list[When]:
    now: datetime | None = None
    out: list[When] = []
    for stamp in stamps:
        time = _make(stamp, now or first, after=now) if stamp else None
        now = time or now
        out.append(When(now, time is not None))
    if now is None:
        return [When(end, False) for _ in stamps]
    after: datetime | None = None
    for at in range(len(out) - 1, -1, -1):
        after = out[at].time if out[at].own else after
        out[at] = replace(out[at], by=after)
    return out


def _back_from_end(
    stamps: Sequence[_Stamp | None], end: datetime | None, newest: datetime | None, anchor: datetime
) -> list[When]:
    """Return the times of a log that tells no day. The file of a copy is far newer than anything that logs tell."""
    out = _walk(stamps, end, anchor)
    last = out[-1].time if out else None
    if last is None or not any(when.own for when in out):
        return out
    if end and (newest is None or end - newest <= _DAY):
        days = (end + _DISORDER - last) // _DAY
    else:
        days = round(((newest or anchor) - last) / _DAY)
    return [replace(when, time=_plus(when.time, days), by=_plus(when.by, days)) for when in out]


def _plus(time: datetime | None, days: int) -> datetime | None:
    return time + days * _DAY if time else None


def _make(stamp: _Stamp, near: datetime, after: datetime | None = None) -> datetime | None:
    """Complete a stamp; None where it is no time at all (month 13, 25 o'clock)."""
    try:
        if stamp.year and stamp.month and stamp.day:
            return datetime(stamp.year, stamp.month, stamp.day, *stamp.clock)
        if stamp.month and stamp.day:
            return min(_in_years(stamp.month, stamp.day, stamp.clock, near.year), key=lambda time: abs(time - near))
        today = datetime(near.year, near.month, near.day, *stamp.clock)
    except (ValueError, OverflowError):
        return None
    if after is not None:
        return today + timedelta(days=1) if today < after - _DISORDER else today
    return min((today + timedelta(days=n) for n in (-1, 0, 1)), key=lambda time: abs(time - near))


def _in_years(month: int, day: int, clock: tuple[int, int, int, int], year: int) -> list[datetime]:
    """Return a day of the year before, of this one and of the next; 29 February exists in some only."""
    found = []
    for candidate in (year - 1, year, year + 1):
        with contextlib.suppress(ValueError):
            found.append(datetime(candidate, month, day, *clock))
    return found
