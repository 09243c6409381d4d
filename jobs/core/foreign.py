"""The one loader for files that somebody else may have written: a colleague's sweep, a checkpoint, a hint beside ours.

What is opened is a regular file of a bounded size, through no link of a stranger; nothing here waits for a FIFO. JSON
and YAML are bounded in depth and hold no text that cannot be printed. Whoever reads a form names it, and gets that form
or a RunError with the reason: key is the path.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from jobs.core import masking
from jobs.core.errors import RunError

T = TypeVar("T")

SMALL = 1 << 20
"""Bytes of a record about one thing: a row, a config, a job."""

LARGE = 64 << 20
"""Bytes of a record about many: a plan of ten thousand points, the index of a checkpoint."""

HUGE = 4 << 30
"""Bytes of a set of prompts."""

DEEPEST = 60
"""Levels of lists and mappings in each other."""

REMEDY = "Is this the directory of a sweep?"

NOBODY = 65534
"""Owner of a file where a file system does not tell whose it is: NFS with root_squash, or without a map of ids."""


def is_ours(info: os.stat_result) -> bool:
    """Return whether a file is this user's own, or root's."""
    return info.st_uid in (os.geteuid(), 0)


def is_anothers(info: os.stat_result) -> bool:
    """Return whether a file is another user's for certain."""
    return not is_ours(info) and info.st_uid != NOBODY


@contextmanager
def regular(path: Path, *, ours: bool = False) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading; a link is followed only where its maker owns what it leads to, or is this user.

    Else a colleague's directory could hold a link to a file that only we may read, and have us publish it. That holds
    of links on the way to the file too, and of a second name that a file of somebody else was given. `ours`: refuse
    what is another user's.

    Raises:
        OSError: it cannot be opened, or is none of these.
    """
    handle, _ = _opened(path, ours=ours)
    with os.fdopen(handle, "rb") as file:
        yield file


_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def _opened(path: Path, *, ours: bool) -> tuple[int, os.stat_result]:
    """Open a file (see `regular`). Returns its descriptor, and what it is."""
    is_link = False
    try:
        handle = os.open(path, _FLAGS | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        handle, is_link = os.open(path, _FLAGS), True
    try:
        info = os.fstat(handle)
        _check(handle, info, path, is_link=is_link, ours=ours)
    except BaseException:
        os.close(handle)
        raise
    return handle, info


def _check(handle: int, info: os.stat_result, path: Path, *, is_link: bool, ours: bool) -> None:
    """Raise OSError where what was opened is not to be read: see `regular`."""
    if not stat.S_ISREG(info.st_mode):
        reason = os.strerror(errno.EISDIR) if stat.S_ISDIR(info.st_mode) else "it is no regular file"
        raise OSError(0, reason, str(path))
    if is_link:
        entry = path.lstat()
        if not stat.S_ISLNK(entry.st_mode):
            raise OSError(0, "it was replaced while it was opened", str(path))
        if not is_ours(entry) and entry.st_uid != info.st_uid:
            raise OSError(0, "it is a link of another user to what is not that user's", str(path))
    if info.st_nlink > 1 and (folder := path.parent.stat()).st_uid != info.st_uid and not is_ours(folder):
        raise OSError(0, "it is a second name that another user gave to a file", str(path))
    straight = (real := _real(handle)) == os.fspath(path) or real == str(path.absolute())
    if not straight and any(not is_ours(link) and link.st_uid != info.st_uid for link in _links(path)):
        raise OSError(0, "a link of another user leads to what is not that user's", str(path))
    if ours and is_anothers(info):
        raise OSError(0, "it belongs to another user", str(path))


def _real(handle: int) -> str:
    """Return the path of an open file without the links on the way to it; empty where it cannot be told."""
    try:
        return os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115 (at every file: a third of the time)
    except OSError:
        return ""


def _links(path: Path) -> Iterator[os.stat_result]:
    """The links on the way to an open file, those that links lead over too. OSError: the way was changed meanwhile."""
    way = path.absolute()
    todo, here = [*reversed(way.parts[1:])], Path("/")
    for _ in range(_MOST_STEPS):
        if not todo:
            return
        if (part := todo.pop()) == "..":
            here = here.parent
            continue
        info = (here / part).lstat()
        if not stat.S_ISLNK(info.st_mode):
            here /= part
            continue
        yield info
        target = (here / part).readlink()
        if target.is_absolute():
            here = Path("/")
        todo += [one for one in reversed(target.parts) if one != "/"]
    raise OSError(0, "the way to it has too many links", str(path))


_MOST_STEPS = 5000
"""The kernel follows 40 links; each has some directories."""


def load_bytes(path: Path, most: int = LARGE, *, ours: bool = False) -> bytes:
    """Return the content of a file.

    Raises:
        RunError: it cannot be read, is larger than `most` bytes, or is refused (see `regular`).
    """
    try:
        handle, info = _opened(path, ours=ours)
        try:
            content = _read(handle, info.st_size, most)
        finally:
            os.close(handle)
    except OSError as error:
        raise refused(path, error.strerror or str(error)) from None
    if len(content) > most:
        raise refused(path, f"it has more than {most >> 20} MiB")
    return content


def _read(handle: int, size: int, most: int) -> bytes:
    """Return what a file holds, or more than `most` bytes of it; a buffer of so many would cost more than all else.

    `size`: what it had when it was opened; one of /proc has none.
    """
    wanted = min(max(size, 4096), most) + 1
    content = os.read(handle, wanted)
    while len(content) != size and len(content) <= most and (more := os.read(handle, wanted)):
        content += more
    return content


def load_text(path: Path, most: int = LARGE, *, ours: bool = False) -> str:
    """Return the text of a file in UTF-8. Raises: see `load_bytes`."""
    try:
        return load_bytes(path, most, ours=ours).decode()
    except UnicodeDecodeError:
        raise refused(path, "it is no text in UTF-8") from None


def text_of(path: Path) -> str:
    """Return the text of a file that the user names, as large as a set of prompts may be.

    Raises:
        OSError, ValueError: it cannot be read, or is refused (see `regular`); it is no text in UTF-8.
    """
    with regular(path) as file:
        content = file.read(HUGE + 1)
    if len(content) > HUGE:
        raise OSError(0, f"it has more than {HUGE >> 30} GiB", str(path))
    return content.decode().replace("\r\n", "\n")


def load_json(path: Path, most: int = LARGE, *, ours: bool = False) -> Any:
    """Return the value of a JSON file. Raises: see `load_bytes`; RunError too where it is no JSON."""
    return _parsed(path, load_bytes(path, most, ours=ours))


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise refused(path, f"it is not JSON: {error}") from None


def form_of(kind: type[T]) -> TypeAdapter[T]:
    """Return what checks values of a type; made when it is first asked for, since that takes milliseconds."""
    found: TypeAdapter[T] = _form_of(kind)
    return found


_form_of: Any = functools.cache(TypeAdapter)


def load_form(path: Path, kind: type[T], most: int = LARGE, *, ours: bool = False) -> T:
    """Return what a JSON file holds, as a type has it, its texts made visible (jobs/core/masking.py).

    Raises:
        RunError: see `load_json`, or it has another form.
    """
    return checked(path, kind, load_visible(path, most, ours=ours))


def load_visible(path: Path, most: int = LARGE, *, ours: bool = False) -> Any:
    """Return the value of a JSON file with its texts made visible: they will be shown. Raises: see `load_json`."""
    content = load_bytes(path, most, ours=ours)
    value = _parsed(path, content)
    # What hides nothing as a whole need not be looked through text by text: most of the time of ten thousand rows.
    hides = (b"\\" in content and _HIDING.search(content)) or not _is_visible(content)
    return masking.all_visible(value) if hides else value


_HIDING = re.compile(rb"\\[ubfr]")
"""Escapes of JSON that may stand for what cannot be seen; the others are quotes, slashes, ends of lines and tabs."""


def _is_visible(content: bytes) -> bool:
    """Whether a text in UTF-8 hides nothing (see `masking.is_visible`); of plain letters this is told at once."""
    return not content.translate(None, _PLAIN) or masking.is_visible(content.decode())


_PLAIN = b"\n" + bytes(range(0x20, 0x7F))


def checked(path: Path, kind: type[T], value: Any) -> T:
    """Return a value that was read from a file, as a type has it.

    Raises:
        RunError: it has another form; the reason names the place.
    """
    try:
        return form_of(kind).validate_python(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise refused(path, f"it has another form: {place + ': ' if place else ''}{wrong['msg']}") from None


def load_yaml(path: Path, most: int = SMALL, *, ours: bool = False, visible: bool = False) -> Any:
    """Return the data of a YAML file; `visible`: with its texts made visible, since they will be shown.

    Raises:
        RunError: see `load_bytes`; it is no YAML, is too deep, or has aliases.
    """
    text = load_text(path, most, ours=ours)
    try:
        if "*" in text:  # without one there is no alias
            _refuse_aliases(text)
        value = yaml.load(text, Loader=_Bounded)
        hides = visible and ("\\" in text or not _is_visible(text.encode()))
        return masking.all_visible(value) if hides else value
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise refused(path, f"it is no YAML of ours: {' '.join(str(error).split())[:200]}") from None


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, it is too deep, or it has a text that cannot be written.
    """
    try:
        value = from_json(content)  # half the time of `json.loads`; it lets no surrogate through, nor 200 levels
    except ValueError as error:
        raise ValueError("it is too deep" if "recursion" in str(error) else str(error)) from None
    if len(content.translate(None, _NO_OPENING)) > DEEPEST and _is_too_deep(value):
        raise ValueError("it is too deep")
    return value


_NO_OPENING = bytes(set(range(256)) - set(b"[{"))


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        if not (level := [child for one in level if isinstance(one, dict | list) for child in _children(one)]):
            return False
    return True


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def from_yaml(text: str) -> Any:
    """Return the data of a YAML text, read by libyaml where PyYAML has it: ten times as fast.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_LOADER):  # type: ignore[misc]
    """PyYAML's safe loader, which asks once for the type of a text and not wherever it stands: half of its time."""

    def resolve(self, kind: type, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and len(value) < _WORD:
            return _type_of(value)
        return super().resolve(kind, value, implicit)


_WORD = 64


@functools.lru_cache(4096)
def _type_of(value: str) -> Any:
    """Return the type that YAML gives to a plain text: number, truth, text."""
    return _LOADER("").resolve(yaml.ScalarNode, value, (True, False))


class _Bounded(_Loader):
    """The same for text of others: it counts the levels, where PyYAML would look for types by place; it has none."""

    _levels = 0

    def descend_resolver(self, parent: Any, index: Any) -> None:
        self._levels += 1
        if self._levels > DEEPEST + 1:  # what stands in the deepest list or mapping is a level here
            raise ValueError("it is too deep")

    def ascend_resolver(self) -> None:
        self._levels -= 1


def _refuse_aliases(text: str) -> None:
    """Raise ValueError where a YAML text repeats itself: a few lines then stand for gigabytes."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_LOADER)):
        raise ValueError("it has an alias")


def refused(path: Path, reason: str) -> RunError:
    """Return the error of a file that is not read."""
    return RunError(str(path), "(read)", reason, REMEDY)
