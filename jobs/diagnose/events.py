"""Lines of a log -> events: one grammar (forms.yaml) for all programs that write such logs. Pure.

A line is read from the outside in: envelopes (what journalctl, kubectl, a log shipper, `srun --label`, torch or vLLM
put before every line), then headers of loggers, then the words. A line without a header of its own continues the event
that its channel has open; a channel is one process, so that interleaved ranks do not mix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from jobs.core.foreign import from_yaml
from jobs.diagnose.times import When

ERROR = 40


@cache
def forms() -> dict[str, Any]:
    """Return forms.yaml, with its parts put in."""
    text = (Path(__file__).parent / "forms.yaml").read_text(encoding="utf-8")
    for name, part in from_yaml(text)["parts"].items():
        text = text.replace(name, part)
    return dict(from_yaml(text))


_ENVELOPES = tuple(map(re.compile, forms()["envelopes"]))
_HEADERS = tuple(map(re.compile, forms()["headers"]))
_LEVELS: dict[str, int] = forms()["levels"]
_INSIDE = re.compile("|".join(form.replace("?P<level>", "?:") for form in forms()["headers"][:3]))
"""Headers that may stand behind something that ended without a newline, such as a progress bar."""

_SOON = 600
"""Characters within which such a header is looked for."""

_CANN, _OPENS_CANN, _ADVICE, _EXCEPTION, _NATIVE, _PLAIN_ERROR, _PLAIN_WORDS, _WARNING, _IMPORTING = (
    re.compile(forms()[name])
    for name in (
        "cann",
        "opens_cann",
        "advice",
        "exception",
        "native",
        "plain_error",
        "plain_words",
        "warning",
        "importing",
    )
)
_FRAME, _FOREIGN, _CLIENT, _ENGINE, _ASIDE, _TRACED, _RAISED, _SOURCE = (
    re.compile(forms()[name])
    for name in ("frame", "foreign", "client", "engine", "aside", "traced", "raised", "source")
)
_FAILS_ONLY = ("docker", "podman")
"""Programs that put their names only before what went wrong."""

_INNER = re.compile(r"/vllm(?:_ascend)?/(?P<inner>(?!vllm)(?:\w{1,60}/){2,6})$")
"""Directories below the engine's own packages: any of them may name the feature that code is for."""

_CHAIN = "The above exception was the direct cause of the following"
_DURING = "During handling of the above exception, another"
_CARRIED = 4
"""Escaped newlines that make a line one that carries a log."""

_FRAME_INDENT = 2
"""Spaces by which Python puts a frame further in than its exception."""

_FRAMES = 40
"""Innermost frames of a traceback that are kept."""

_WORDS = re.compile(r"[A-Za-z]{2,30} \S{0,60} ?[A-Za-z]{2}")

_PYDANTIC = "[type="
_NAME = re.compile(r"[\w.\[\]-]{1,80}")
"""A line of pydantic, and the name of the field on the line before it."""

_CLOCK = re.compile(r"\d\d:\d\d:\d\d ")
_REPORT = re.compile(r"\brank (?P<rank>\d+) \((?:head|headless)\): ")
"""How rank 0 reports the words of another rank (jobs/allocation/supervisor.py)."""

_LAYERS = (("worker", 0), ("engine", 1), ("coordinator", 2), ("main", 3), ("api", 3))
_NO_PROCESS = 1


@dataclass(frozen=True)
class Event:
    """One line that says something, with what its channel knows of it.

    Attributes:
        number: of the line, from 1.
        raw: the whole line.
        text: its words, without envelopes and headers; of a bare exception with the frame that raised it.
        when: its time.
        level: as of Python's logging; inside an error's block that of the block; None: it tells none.
        process: vLLM's name of it, in lower case.
        code: a code of CANN's error manager.
        rank: the rank that the line itself is about: of `srun --label`, or of a report of rank 0.
        report: rank 0 says what another rank said.
        exception: it is the last line of a traceback.
        inside: it continues a block of CANN, so that it may be the reason for what stands above it.
        chained: an exception that another one, before it, was turned into.
        frames: of an exception, and of what CANN says below it, the `directory/file:function` of the traceback,
            outermost first, each followed by a space; those of a client begin with its package.
        place: of an exception, `file:line in function` of the innermost frame that is not Python's or PyTorch's.
        bare: it has no header that tells a level, and is no exception or crash: by its words alone it may be an error.
        wordless: an exception without a message of its own; that may stand below.
        during: the line of the exception that was being handled when this one came up.
        alien: an exception of no process of an engine, whose traceback passed no file of one or of what it is built on.
    """

    number: int
    raw: str
    text: str
    when: When
    level: int | None = None
    process: str = ""
    code: str | None = None
    rank: int | None = None
    report: bool = False
    exception: bool = False
    inside: bool = False
    chained: bool = False
    frames: str = ""
    place: str = ""
    bare: bool = False
    wordless: bool = False
    during: int | None = None
    alien: bool = False

    @property
    def minor(self) -> bool:
        """Whether it says itself that it is no error."""
        return self.level is not None and self.level < ERROR

    @property
    def layer(self) -> int:
        """Order of trust by process: worker, engine core (or a log of no process), coordinator, API server."""
        return next((layer for part, layer in _LAYERS if part in self.process), _NO_PROCESS)

    @property
    def says(self) -> bool:
        """Whether it has words, and is no headline."""
        return _WORDS.search(self.text) is not None and "---" not in self.text and not self.text.endswith(":")

    @property
    def error(self) -> bool:
        """Whether it reads like an error."""
        return not self.minor and (self.level is not None or self.exception)


@dataclass
class _Channel:
    """What one process has open: a traceback, a block of CANN, a chain of exceptions, the words of one, an import.

    `aside`: the next exception is one that Python itself says it passes over. `margin`: spaces before the open
    traceback, which another program may have put there (pip).
    """

    frame: str | None = None
    place: str = ""
    code_follows: bool = False
    cann: bool = False
    chained: bool = False
    frames: list[str] = field(default_factory=list)
    last: str = ""
    field: str = ""
    exception: int | None = None
    handling: int | None = None
    said: bool = False
    importing: bool = False
    aside: bool = False
    margin: int = 0
    engine: bool = False

    def ends(self, event: Event) -> Event:
        """Return the exception at the end of a traceback, with what is known of it."""
        during, self.handling, self.exception = self.handling, None, event.number
        chained, self.chained, self.frame, self.said = self.chained, False, None, True
        alien = bool(self.frames) and not self.engine and not event.process
        self.last, place = self.where(), self.place
        self.begin()
        level, self.aside = _LEVELS["warning"] if self.aside else event.level, False
        event = replace(event, level=level, chained=chained, frames=self.last, during=during)
        return replace(event, place=place, alien=alien)

    def begin(self) -> None:
        """Forget the frames of the traceback before."""
        self.frames.clear()
        self.place, self.engine = "", False

    def passes(self, frame: re.Match[str]) -> None:
        """Take up one more frame of the open traceback, one further inside."""
        self.frame = f"{frame['file']}:{frame['line']} in {frame['function']}"
        path = frame["path"] or ""
        client = _CLIENT.search(path)
        self.engine = self.engine or not path or _ENGINE.search(path) is not None
        inner = _INNER.search(path)
        last = inner["inner"] if inner else path.rstrip("/").rpartition("/")[2] + "/" if path else ""
        folder = f"{client['client']}/" if client else last
        self.frames.append(f"{folder}{frame['file']}:{frame['function']} ")
        if path and not _FOREIGN.search(path):
            self.place = self.frame

    def where(self) -> str:
        """Return the innermost frames of the open traceback."""
        return "".join(self.frames[-_FRAMES:])


@dataclass
class _Line:
    """A line while it is taken apart."""

    rest: str
    level: int | None = None
    process: str = ""
    component: str = ""
    rank: int | None = None
    channel: str = ""
    report: bool = False
    headed: bool = False
    ours: bool = False

    def unwrap(self) -> None:
        """Take off envelopes and headers, of which the innermost tells the level."""
        self.ours = _CLOCK.match(self.rest) is not None
        if report := _REPORT.search(self.rest):
            self.rest, self.rank, self.report = self.rest[report.end() :], int(report["rank"]), True
            return
        if self.ours:
            self.rest = self.rest[9:]
            return
        if inside := _INSIDE.search(self.rest, 0, _SOON):
            before = self.rest[: inside.start()]
            self._envelopes(before + " " if before else "")
            self.rest = self.rest[inside.start() :]
        for _ in range(4):
            self.rest = self._envelopes(self.rest)
            match = next((found for form in _HEADERS if (found := form.match(self.rest))), None)
            if match is None:
                return
            named = match.groupdict()
            self.headed = True
            self.component = self.component or named.get("component") or ("apptainer" if named.get("apptainer") else "")
            if word := named.get("level"):
                self.level = _LEVELS.get(word.lower().rstrip("0123456789"), self.level)
            self.rest = self.rest[match.end() :]

    def comes_in(self, carrier: _Line) -> None:
        """Take over whose line it is from the line that carries it."""
        self.rank = carrier.rank if self.rank is None else self.rank
        self.process = self.process or carrier.process
        self.channel = carrier.channel + self.channel

    def _envelopes(self, text: str) -> str:
        for _ in range(6):
            match = next((found for form in _ENVELOPES if (found := form.match(text)) and found.end()), None)
            named = match.groupdict() if match else {}
            if match is None or (self.headed and named.get("task")):  # behind a header a number is a part of the words
                break
            if named.get("task"):
                self.rank = int(named["task"])
            if named.get("step") is not None:
                self.component = "slurmstepd"
            if named.get("process"):
                self.process = named["process"].lower()
            if named.get("process") or named.get("task") or match.group().startswith("[rank"):
                self.channel += match.group().strip()
            text = text[match.end() :]
        return text


def read_events(lines: Iterable[tuple[int, str]], times: Iterable[When]) -> Iterator[Event]:
    """Yield what the lines of one log say, in their order; source code inside tracebacks says nothing.

    A log that ends inside a traceback says so at its end: something failed.

    Args:
        lines: (number, text) in order, of one file.
        times: of each line.
    """
    channels: dict[str, _Channel] = {}
    carrier = _Line("")
    parts = ((number, *part, when) for (number, raw), when in zip(lines, times, strict=True) for part in _parts(raw))
    for number, carried, raw, when in parts:
        line = _Line(raw.rsplit("\r", 1)[-1] if "\r" in raw.rstrip("\r") else raw)
        line.unwrap()
        if carried:
            line.comes_in(carrier)
        else:
            carrier = line
        channel = channels.setdefault(line.channel, _Channel())
        event = _event(number, raw, when, line, channel)
        if event is not None:
            yield event
        last = (number, raw, when, line, channel)
    if channels and last[4].code_follows and (last[3].level or ERROR) >= ERROR:
        number, raw, when, line, channel = last
        words = f"a traceback stops here, before its Exception [{channel.frame}]" if channel.frame else raw.strip()
        frames, place = channel.where(), channel.place
        yield Event(number, raw, words, when, ERROR, line.process, rank=line.rank, frames=frames, place=place)


def _parts(raw: str) -> Iterable[tuple[int, str]]:
    """Yield a line as it is, or the lines of the log that it carries, with escaped newlines, in its words."""
    inner = raw.split("\\n")
    return enumerate(inner if len(inner) >= _CARRIED else [raw])


def _event(number: int, raw: str, when: When, line: _Line, channel: _Channel) -> Event | None:
    text = line.rest
    words = text.strip()
    if _TRACED.match(text) or (_SOURCE.match(text) and not channel.cann):
        return None
    if frame := _FRAME.match(text):
        channel.passes(frame)
        channel.margin = max(0, len(text) - len(text.lstrip()) - _FRAME_INDENT)
        channel.code_follows, channel.cann = True, False
        return None
    inner = text[:1] in (" ", "\t") and len(text) - len(text.lstrip()) > channel.margin
    if channel.code_follows and inner:
        return None
    ends, channel.code_follows = channel.code_follows and channel.frame is not None, False
    if not words.strip("^~- ") or words.startswith(("Traceback ", "raise ")):
        if words.startswith("Traceback "):
            channel.code_follows, channel.cann = True, False
            channel.begin()
        return None
    if words.startswith((_CHAIN, _DURING)):
        channel.chained = words.startswith(_CHAIN)
        channel.handling = None if channel.chained else channel.exception
        return None
    raised = _EXCEPTION.match(words) is not None or (ends and _RAISED.match(words) is not None)
    level, code, exception = line.level, None, raised and (text[:1] != " " or (ends and not inner))
    inside = not exception and ("[FUNC:" in text or (channel.cann and text[:1] in (" ", "\t")))
    if cann := _CANN.match(words):
        level, code = max(level or 0, ERROR), cann["one"] or cann["two"]
    elif inside:
        level = ERROR if level is None or level >= ERROR else level
    elif level is None:
        level = _bare(words, text, line, exception)
    opened = code is not None or inside or _OPENS_CANN.search(raw) is not None
    warned = line.level is None and level is not None and level < ERROR
    channel.cann = opened or (channel.cann and not (line.headed or warned))
    channel.said = channel.said and text[:1] in (" ", "\t")
    if channel.said and not (opened or _NATIVE.match(text)):
        level = None  # the words of an exception go on
    channel.importing = _IMPORTING.search(words) is not None or (
        channel.importing and not (line.component or (line.headed and not raw.startswith("[")))
    )
    if inside and _ADVICE.match(text):
        return None
    if _PYDANTIC in words and channel.field:
        words = f"{channel.field}: {words}"
    channel.field = words if _NAME.fullmatch(words) else ""
    wordless = exception and words.rstrip(": ").find(":") < 0
    if wordless and channel.frame:
        words = f"{words} [{channel.frame}]"
    if component := line.component or ("enroot" if channel.importing and not exception else ""):
        words = f"{component}: {words}" if component.islower() else words
    about = (line.process, code, line.rank, line.report)
    frames = channel.last if code or inside else ""
    bare = line.level is None and not (exception or code or inside or _NATIVE.match(text))
    event = Event(
        number, raw, words, when, level, *about, exception, inside, frames=frames, bare=bare, wordless=wordless
    )
    if not exception:
        channel.aside = _ASIDE.match(words) is not None
    return channel.ends(event) if exception else event


def _bare(words: str, text: str, line: _Line, exception: bool) -> int | None:
    """Return the level of a line whose header, if any, tells none."""
    if exception:
        return ERROR
    if _WARNING.search(text, 0, 300) and not line.ours:
        return _LEVELS["warning"]
    if text[:1] in (" ", "\t") and not _NATIVE.match(text):
        return None
    plain = _NATIVE.match(text) or _PLAIN_ERROR.match(words) or _PLAIN_WORDS.search(words)
    return ERROR if plain or line.component in _FAILS_ONLY else None
