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

from jobs.core import hidden, ways
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


def _opened(path: Path, *, ours: bool) -> tuple[int, os.stat_result]:
    """Open a file (see `regular`). Returns its descriptor, and what it is."""
    handle, info = ways.opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if stat.S_ISREG(info.st_mode) and not (ours and ways.is_anothers(info)):
        return handle, info
    os.close(handle)
    is_folder, is_file = stat.S_ISDIR(info.st_mode), stat.S_ISREG(info.st_mode)
    reason = os.strerror(errno.EISDIR) if is_folder else "it belongs to another user" if is_file else _NO_FILE
    raise OSError(0, reason, str(path))


_NO_FILE = "it is no regular file"


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
    return content.decode("utf-8-sig").replace("\r\n", "\n")


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
    """Return what a JSON file holds, as a type has it, its texts made visible (jobs/core/hidden.py).

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
    return hidden.all_visible(value) if hides else value


_HIDING = re.compile(rb"\\[ubfr]")
"""Escapes of JSON that may stand for what cannot be seen; the others are quotes, slashes, ends of lines and tabs."""


def _is_visible(content: bytes) -> bool:
    """Whether a text of JSON or YAML that was parsed hides nothing (see `hidden.is_visible`).

    Of plain letters this is told at once: neither form has control characters of ASCII, but for DEL, in its texts.
    """
    return (content.isascii() and b"\x7f" not in content) or hidden.is_visible(content.decode())


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


def load_yaml(path: Path, *, ours: bool = False, visible: bool = False) -> Any:
    """Return the data of a YAML file; `visible`: with its texts made visible, since they will be shown.

    Raises:
        RunError: see `load_bytes`; it is no YAML, is too deep, or has aliases.
    """
    text = load_text(path, SMALL, ours=ours)
    try:
        if "*" in text:  # without one there is no alias
            _refuse_aliases(text)
        value = yaml.load(text, Loader=_Bounded)
        hides = visible and ("\\" in text or not _is_visible(text.encode()))
        return hidden.all_visible(value) if hides else value
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, RecursionError, AttributeError) as error:
        # The last three are PyYAML's own for `!!bool maybe` and the like.
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
    is_flat = b"[" not in content and content.rfind(b"{") <= 0  # so is a row, and asked like this it costs nothing
    if not is_flat and len(content.translate(None, _NO_OPENING)) > DEEPEST and _is_too_deep(value):
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


_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset(f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null"))


@functools.lru_cache(4096)
def _value_of(tag: str, value: str) -> Any:
    """Return the value of a text of a plain type. ValueError: it has none."""
    return _LOADER("").construct_object(yaml.ScalarNode(tag, value))


def _is_plain(pair: tuple[yaml.Node, yaml.Node]) -> bool:
    """Whether the key of a pair is a text or a number."""
    return pair[0].tag in _PLAIN


class _Bounded(_Loader):
    """The same for text of others: it counts the levels, where PyYAML would look for types by place; it has none.

    Since such a text refers to nothing in itself, its values are made in one pass, where PyYAML needs two.
    """

    _levels = 0

    def construct_document(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN and len(node.value) < _WORD:
            return _value_of(node.tag, node.value)
        make = self.construct_document
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [make(child) for child in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map" and all(map(_is_plain, node.value)):
            return {make(key): make(value) for key, value in node.value}
        return self.construct_object(node, deep=True)  # lists as keys, merged mappings, types of other programs

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
