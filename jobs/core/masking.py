"""One mask for secrets, and one form for text of others: what is written down, logged or printed passes here.

A secret is known by the name it is given to (HF_TOKEN=..., --api-key ...), by its form (a URL with a password, Bearer
...), or by its value: those of this process's environment, and of the configs that it has read. Of a config it may
stand in `engine.env` alone.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"

_PARTS = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_WORDS = frozenset(
    ("secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey", "authorization", "cookie")
)
_LAST = frozenset(("token", "pwd", "pass", "pat"))
"""At the end of a name alone: limits.first_token_s is a time. PWD by itself is a directory."""
_PAIRS = frozenset((one, "key") for one in ("api", "access", "secret", "private", "auth", "account", "signing", "ssh"))
_IN_URL = re.compile(r"(?<=://)([^\s/:@'\"]{0,500}):([^\s/'\"]{1,500})(?=@)")  # to the last @: a password may hold one
_IN_QUOTED_URL = re.compile(r"(?i)(?<=%3a%2f%2f)([^\s/:@'\"&%]{0,100})%3a([^\s/:@'\"&]{1,200}?)(?=%40)")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+(?!\$)([A-Za-z0-9._~+/=-]{4,})")
_HEADER = re.compile(
    r"(?i)\b(authorization|cookie)((?:\\*['\"]?\s{0,9}[:=]|\\*['\"]\s{0,9},)\s{0,9}\\*['\"]?)(?!\s*(?:\w+ )?[{$*])"
    r"([^'\"\\\r\n]{1,4000})"
)
_PARTS_OF_HEADERS = ("uthorization", "UTHORIZATION", "ookie", "OOKIE")
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|xox[abeprs]-[\w-]{10,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
    r"|(?<=PRIVATE KEY-----)[^-]{1,10000}|(?<=[?&]sig=)[^\s&'\"]+|(?<=[?&]X-Amz-Signature=)[^\s&'\"]+"
)
"""What tokens of hubs and clouds look like, the inside of a private key, the seal of a signed URL."""
_PARTS_OF_FORMS = (
    "hf_",
    "gho_",
    "ghp_",
    "ghr_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "xox",
    "sk-",
    "AKIA",
    "eyJ",
    "PRIVATE KEY",
    "sig=",
    "X-Amz-Signature=",
)
_WORD = r"[^\s,;'\"{}\[\])]"
_VALUE = (
    rf"(\$?'[^']*'{_WORD}*|\$?\"(?:[^\"\\]|\\.)*\"{_WORD}*|\\+\"[^\"\\]*\\*\"|\[[^\[\]]{{0,2000}}\]|\{{[^{{}}]{{0,2000}}\}}"
    rf"|\\*['\"][^\s'\"\\]+|{_WORD}+(?:(?<==)(?:'[^']*'|\"[^\"]*\"))?)"
)
"""In quotes, in those that JSON wrote before (\\"), a list, a mapping, behind a quote that a cut has left, a word."""
_NAME = r"[A-Za-z_][\w.-]{0,200}"
_GIVEN = re.compile(
    rf"(?<![\w.-])(-{{0,2}}{_NAME})(\s*:?=\s*|\\*['\"]\s*[:=]\s*|:(?=\S)|%3[AaDd])(?!\$(?!['\"])){_VALUE}"
    rf"|(?<![^\s'\"])(--[A-Za-z][\w-]{{0,100}})(\s+|\\+\s|\\*['\"]\s*,\s*)(?![-$]){_VALUE}"
    rf"|(?<![\w.-])([A-Za-z][A-Za-z0-9]{{0,60}}[_-][\w-]{{0,100}})(\s*:\s+(?:[|>][+-]?\s+)?)(?!\$){_VALUE}"
    rf"|(?<=[{{,])(\s*{_NAME})(:\s+)(?!\$){_VALUE}"  # a mapping as YAML and Hydra write it
)
_ENDS_WITH_NAME = re.compile(rf"{_NAME}$")
_LEAST = 6
"""Letters of a value that is looked for wherever it stands: shorter ones are words."""

_known: set[str] = set()


@functools.cache
def is_secret(name: str) -> bool:
    """Return whether a variable or a flag of this name holds a secret; `max_tokens` does not."""
    parts = [part.lower() for part in _PARTS.split(name) if part]
    pairs = itertools.pairwise(parts)
    if ("per" in parts and parts[-1] == "token") or parts[-1:] in (["file"], ["path"]):  # a rate; where a secret lies
        return False
    ends = parts[-1:] == ["token"] or (len(parts) > 1 and parts[-1] in _LAST) or parts[-1:] == ["pgpassword"]
    is_key = len(parts) > 1 and parts[-1] == "key" and name.isupper()  # OPENAI_KEY; sort_key is none
    return ends or is_key or bool(_WORDS & set(parts)) or any(pair in _PAIRS for pair in pairs)


def has_secret(value: str, values: Sequence[str] | None = None) -> bool:
    """Return whether a text holds a secret by its form, an assignment in it, or a value that is known (see `text`)."""
    return text(value, values) != value


def learn(values: Iterable[Any]) -> None:
    """Know these values from now on, wherever they stand."""
    for value in values:
        if isinstance(value, str) and len(value) >= _LEAST and value != MASK:
            _known.add(value)


def known() -> list[str]:
    """Return the values that are known, the longest first. Whoever looks at many texts asks once for all of them."""
    return _all_known(len(_known), tuple(os.environ))


@functools.cache
def _all_known(count: int, shell: tuple[str, ...]) -> list[str]:
    """Return what is known. `count` and the names in the shell tell when to look again."""
    of_shell = {value for name in shell for value in _secrets_in(name, os.environ[name]) if len(value) >= _LEAST}
    return sorted({form for value in _known | of_shell for form in _forms(value)}, key=len, reverse=True)


def _secrets_in(name: str, value: str) -> list[str]:
    """Return the secrets that a variable of the shell holds: the whole of it, or passwords of its URLs."""
    return [value] if is_secret(name) else [unquote(found[2]) for found in _IN_URL.finditer(value)]


def _forms(value: str) -> set[str]:
    """Return how a value may stand in a text: in JSON, in Python's quotes, in a URL."""
    return {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        quote(value, ""),
    }


def values_in(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that hold a secret."""
    return {
        name: value
        for name, value in env.items()
        if value is not None and not isinstance(value, bool) and (is_secret(name) or has_secret(str(value)))
    }


def known_away(words: str, values: Sequence[str] | None = None) -> str:
    """Return a text without the values that are known (`known`, asked here where they are not given)."""
    for value in known() if values is None else values:
        if value in words:
            words = words.replace(value, MASK)
    return words


def text(words: str, values: Sequence[str] | None = None) -> str:
    """Return a text without secrets; `values`: see `known_away`."""
    words = known_away(words, values)
    if "@" in words:
        words = _IN_URL.sub(rf"\1:{MASK}", words)
    if "%40" in words:
        words = _IN_QUOTED_URL.sub(rf"\1%3A{MASK}", words)
    if "Bearer" in words or "Basic" in words:
        words = _BEARER.sub(rf"\1 {MASK}", words)
    if any(part in words for part in _PARTS_OF_FORMS):
        words = _FORMS.sub(MASK, words)
    if any(part in words for part in _PARTS_OF_HEADERS):
        words = _HEADER.sub(rf"\1\2{MASK}", words)
    return _GIVEN.sub(_given, words) if any(part in words for part in ("=", ":", "--", "%3")) else words


def _given(match: re.Match[str]) -> str:
    name, between, value = (one for one in match.groups() if one is not None)
    if not is_secret(_last(name)):
        return f"{name}{between}{_inside(value)}" if "=" in value or ":" in value or "--" in value else match[0]
    if _is_place(value):
        return match[0]
    quote = value[0] if value[0] in "'\"" else ""
    return f"{name}{between}{quote}{MASK}{quote or value[len(value.rstrip(':')) :]}"


def _last(name: str) -> str:
    """Return the last part of a dotted name: of engine.env.X it is X."""
    return name.strip().rpartition(".")[2]


def _inside(value: str) -> str:
    """Return a value of what is no secret itself without the secrets in it: comment=A=1, [A=1], 'x A=1'."""
    if value[0] in "'\"[{":
        return _GIVEN.sub(_given, value[:-1]) + value[-1]
    parts = value.split("=")
    for at, part in enumerate(parts[:-1], 1):
        found = _ENDS_WITH_NAME.search(part[-200:])
        if found and is_secret(_last(found[0])) and not _is_place(parts[at]):
            return "=".join([*parts[:at], MASK])
    return value


def _is_place(value: str) -> bool:
    """Whether a value stands for one that comes later, or is none: `{api_key}`, auto, null; a colon may follow."""
    word = value.rstrip(":")
    return word in ("null", "None", "true", "false", "auto", MASK) or bool(re.fullmatch(r"\{\w+\}", word))


def mask(value: Any, name: str = "", values: Sequence[str] | None = None) -> Any:
    """Return plain data without secrets: of a mapping by the names of its keys, of an argv by the flags before.

    `values`: see `known_away`.
    """
    values = known() if values is None else values
    if isinstance(value, Mapping):
        return {key: mask(child, str(key), values) for key, child in value.items()}
    if isinstance(value, list | tuple):
        flags = [None, *value][: len(value)]
        return [
            MASK if isinstance(flag, str) and flag.startswith("--") and is_secret(flag) else mask(child, name, values)
            for flag, child in zip(flags, value, strict=True)
        ]
    if isinstance(value, str):
        return MASK if value and is_secret(name) and not _is_place(value) else text(value, values)
    return value


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def is_visible(words: str) -> bool:
    """Return whether a text has nothing that is to be shown (see `visible`)."""
    return words.replace("\n", "").isprintable() or _HIDDEN.search(words) is None  # the first is ten times as fast


def visible(words: str) -> str:
    """Return a text with its control characters, marks of direction and the like shown: \\x1b, \\u202e. Lines stay."""
    return words if is_visible(words) else _HIDDEN.sub(_shown, words)


def _shown(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x7F else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def all_visible(value: Any) -> Any:
    """Return plain data in which every text is visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(key) if isinstance(key, str) else key: all_visible(child) for key, child in value.items()}
    return [all_visible(child) for child in value] if isinstance(value, list | tuple) else value
