"""How jobs/core/rundir.py writes down its file names: a table of paths, of which the documentation is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, Protocol


class Place(PosixPath):
    """A path in a directory that may be another user's: asked whether it is there it raises nothing.

    What is closed to us counts as there, so that whoever reads it is told why it cannot be read.
    """

    def exists(self, **more: bool) -> bool:
        """Return whether it is there, or cannot be seen."""
        try:
            return super().exists(**more)
        except OSError:
            return True

    def is_dir(self, **more: bool) -> bool:
        """Return whether it is a directory that can be seen."""
        with suppress(OSError):
            return super().is_dir(**more)
        return False

    def is_file(self, **more: bool) -> bool:
        """Return whether it is a file that can be seen."""
        with suppress(OSError):
            return super().is_file(**more)
        return False


class Folder(Protocol):
    """A directory of the run."""

    @property
    def path(self) -> Path: ...  # noqa: D102


@dataclass(frozen=True)
class File:
    """A file or directory that a directory of the run holds: `command = File("command.json", "what is in it")`."""

    name: str
    holds: str

    def __get__(self, folder: Folder, owner: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class Files:
    """The same for files of a kind: `stdout = Files("stdout-<rank>.log", "output of one task")`, then `stdout(0)`.

    `own`: its directory belongs to one user, and another one has another (`files.own_folder`, which gives it).
    """

    name: str
    holds: str
    own: Callable[[Path, str], Path] | None = None

    def __get__(self, folder: Folder, owner: type) -> Callable[[Any], Path]:
        first, _, name = self.name.rpartition("/")
        before, _, rest = name.partition("<")
        top, _, below = first.partition("/")
        where = self.own(folder.path, top) / below if self.own else folder.path / first
        return lambda which: where / f"{before}{which}{rest.partition('>')[2]}"


def files_of(folder: type) -> Iterator[File | Files]:
    """Return what a kind of directory holds."""
    return (item for item in vars(folder).values() if isinstance(item, File | Files))
