"""One line of a log: its level, the process that wrote it, its message, and whether it reads like an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_PROCESS = r"(?:\((?P<process>[A-Za-z]\w*)[^()]*pid=\d+[^()]*\) ?)"
_VLLM = re.compile(rf"{_PROCESS}*(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]{{8}} \[?[^\]\s]*:\d+\] ?")
"""vLLM's own prefix, `(Worker_TP0 pid=12) ERROR 11-24 22:51:48 [file.py:3] `; some program may have left out the
newline before it."""

_CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")
_REPORT = re.compile(r"\brank (?P<rank>\d+) \((?:head|headless)\): ")
"""How rank 0 reports the words of another rank (jobs/allocation/supervisor.py)."""

_PROCESS_ONLY = re.compile(rf"^{_PROCESS}+")
_TORCH_RANK = re.compile(r"^\[rank\d+\]: ?")
_MINOR = re.compile(r"(?:^\W{0,3}|\[|\| |- |^\w+ )(?:DEBUG|INFO|WARN|WARNING)(?=[\]:|( ]|$)")
_WARNING = re.compile(r"\b\w*Warning: |^\[?[WI]\d{3,4} \d\d:|^\[rank\d+\]:\[W\d")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)(?::|$)|Exception: ")
_PLAIN_ERROR = re.compile(
    r"^(?:\S+: )*(?:error|fatal error|FATAL ERROR|fatal|Error):\s|^\S+: error: |\[(?:ERROR|FATAL)\]"
    r"|: command not found$|: No such file or directory$|: Permission denied$|cannot open shared object file"
    r"|Segmentation fault|core dumped|^Fatal Python error|^Killed$"
)
_FRAME = re.compile(r'File "(?:[^"]*/)?(?P<file>[^"/]+)", line (?P<line>\d+), in (?P<function>\S+)')

_LAYERS = (("worker", 0), ("engine", 1), ("coordinator", 2), ("main", 3), ("api", 3))
_NO_PROCESS = 1


@dataclass(frozen=True)
class Parsed:
    """A line, taken apart as far as a diagnosis needs it."""

    raw: str

    @cached_property
    def report(self) -> re.Match[str] | None:
        """Where rank 0 says what another rank said: group `rank` and the place of the words."""
        return _REPORT.search(self.raw)

    @cached_property
    def _ours(self) -> bool:
        """Our own lines may quote an engine's, with its prefix; they are reports all the same."""
        return self.report is not None or _CLOCK.match(self.raw) is not None

    @cached_property
    def _vllm(self) -> re.Match[str] | None:
        return None if self._ours else _VLLM.search(self.raw, 0, 500)

    @cached_property
    def message(self) -> str:
        """The text without what loggers put before it."""
        prefix = self.report or self._vllm
        if prefix:
            return self.raw[prefix.end() :]
        return _TORCH_RANK.sub("", _PROCESS_ONLY.sub("", _CLOCK.sub("", self.raw)))

    @cached_property
    def minor(self) -> bool:
        """Whether the line itself says that it is no error (DEBUG, INFO, WARNING)."""
        if self._vllm:
            return self._vllm["level"] not in ("ERROR", "CRITICAL")
        return not self._ours and bool(_MINOR.search(self.raw, 0, 160) or _WARNING.search(self.raw, 0, 300))

    @cached_property
    def layer(self) -> int:
        """Order of trust by process: worker, engine core (or a log of no process), coordinator, API server."""
        prefix = self._vllm or _PROCESS_ONLY.match(self.raw)
        name = (prefix["process"] or "").lower() if prefix else ""
        return next((layer for part, layer in _LAYERS if part in name), _NO_PROCESS)

    @property
    def frame(self) -> str | None:
        """`file:line in function`, where this is such a line of a traceback."""
        match = _FRAME.search(self.raw)
        return f"{match['file']}:{match['line']} in {match['function']}" if match else None

    @property
    def quotes_code(self) -> bool:
        """Whether it is a line of source code in a traceback, which may name an error without being one."""
        return self.message.lstrip().startswith("raise ")

    @property
    def exception(self) -> bool:
        """Whether it names an exception, as the last line of a traceback does."""
        return _EXCEPTION.match(self.message) is not None

    @property
    def error(self) -> bool:
        """Whether it reads like an error and is not a line inside a traceback."""
        message = self.message
        if self.minor or message.startswith((" ", "\t", "Traceback ")) or not message.strip(" ^~"):
            return False
        return self._vllm is not None or self.exception or _PLAIN_ERROR.search(message) is not None
