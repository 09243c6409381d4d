"""The one gate for names that come from outside: what an index, a message, a scheduler or another user's file says.

A name that becomes a path or a word of a command line passes here first, one function a kind. Each returns the name as
it is, or raises ValueError with the reason. Nothing is mended: whoever writes such a name is not to be helped.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import urlsplit

LONGEST = 255
"""Bytes of a file's name on every file system that is in use (NAME_MAX)."""

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9_])){0,252}")
_PLACE = rf"{_HOST.pattern}:[0-9]{{1,5}}"
_API = re.compile(rf"http://{_PLACE}/v1")
_TUNNEL = re.compile(rf"ssh -N(?: -L [0-9]{{1,5}}:{_PLACE})+ [\w.@\\+-]{{1,100}}@{_HOST.pattern}")
_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_JOB = re.compile(r"[0-9]{1,19}(?:_[0-9]{1,10})?(?:[+][0-9]{1,10})?(?:\.[0-9]{1,10})?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")


def text(value: Any) -> str:
    """Return a text without a character that ends a line, moves a cursor or turns the writing round."""
    if not isinstance(value, str):
        raise ValueError(f"it is no text but {type(value).__name__}")
    if any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in value):
        raise ValueError("it has a control character")
    return value


def host(value: Any) -> str:
    """Return the name or the IPv4 address of a host: letters, digits, `-`, `_` and single dots (RFC 1123, and `_`)."""
    return _fits(_HOST, value, "the name of a host has letters, digits, `-`, `_` and dots")


def identity(value: Any) -> str:
    """Return the id of a point or a service, or another word that becomes the name of a directory."""
    return _fits(_IDENTITY, value, "an id has letters, digits, `-`, `_` and dots")


def job_id(value: Any) -> str:
    """Return the id of a job of Slurm (with a task of an array, a component or a step), or of a process."""
    return _fits(_JOB, value, "the id of a job is a number")


def number(value: Any) -> int:
    """Return the number that a directory has for its name."""
    return int(_fits(_NUMBER, value, "it is no number of a directory"))


def file_name(value: Any) -> str:
    """Return the name of a file that lies in a directory we know: one component, no link to above, not hidden."""
    name = text(value)
    if not name or "/" in name or name.startswith(".") or name != name.strip():
        raise ValueError("it is not the plain name of a file")
    if len(name.encode()) > LONGEST:
        raise ValueError(f"a name has at most {LONGEST} bytes")
    return name


def file_below(value: Any) -> str:
    """Return the name of a file below a directory we know: plain names, joined by single slashes."""
    for part in text(value).split("/"):
        file_name(part)
    return str(value)


def module(value: Any) -> str:
    """Return the file of a module that an `auto_map` names as `module.Class`: it lies beside the file that says so."""
    name = text(value).split(".")[0]
    if not name.isidentifier():
        raise ValueError("it does not name a module beside it")
    return file_name(f"{name}.py")


def url(value: Any) -> str:
    """Return an http(s) URL: with a host, without a password, which would stand in every record."""
    found = urlsplit(text(value))  # ValueError: it is none
    if found.scheme not in ("http", "https") or not found.hostname or " " in value:
        raise ValueError("it is no http(s) URL")
    if found.password is not None:
        raise ValueError("it has a password in it")
    return str(value)


def api(value: Any) -> str:
    """Return the URL of an API that `describe` made: http://HOST:PORT/v1. It becomes a word of a line for a shell."""
    return _fits(_API, value, "it is not http://HOST:PORT/v1")


def tunnel(value: Any) -> str:
    """Return the command line of a tunnel to such an API."""
    return _fits(_TUNNEL, value, "it is not ssh -N -L PORT:HOST:PORT ... USER@HOST")


def _fits(pattern: re.Pattern[str], value: Any, reason: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(reason)
    return value
