"""How jobs/core/rundir.py writes down its file names: a table of paths, of which the documentation is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, overload


class Folder(Protocol):
    """A directory of the run."""

    @property
    def path(self) -> Path: ...  # noqa: D102


class File:
    """A file or directory that a directory of the run holds: `command = File("command.json", "what is in it")`."""

    def __init__(self, name: str, holds: str) -> None:
        self.name, self.holds = name, holds

    @overload
    def __get__(self, folder: None, owner: type) -> File: ...
    @overload
    def __get__(self, folder: Folder, owner: type) -> Path: ...
    def __get__(self, folder: Folder | None, owner: type) -> File | Path:
        return self if folder is None else folder.path / self.name


class Files:
    """The same for files of a kind: `stdout = Files("stdout-{rank}.log", "output of one task")`, then `stdout(0)`."""

    def __init__(self, name: str, holds: str) -> None:
        self.name, self.holds = name, holds
        self._before, _, rest = name.partition("{")
        self._after = rest.partition("}")[2]

    @overload
    def __get__(self, folder: None, owner: type) -> Files: ...
    @overload
    def __get__(self, folder: Folder, owner: type) -> Callable[[Any], Path]: ...
    def __get__(self, folder: Folder | None, owner: type) -> Files | Callable[[Any], Path]:
        return self if folder is None else lambda which: folder.path / f"{self._before}{which}{self._after}"


def files_of(folder: type) -> Iterator[tuple[str, str]]:
    """Return the name of each file of a kind of directory, and what it holds."""
    for item in vars(folder).values():
        if isinstance(item, File | Files):
            yield item.name.replace("{", "<").replace("}", ">"), item.holds
