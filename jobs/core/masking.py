"""One mask for secrets: what is written down, logged or printed passes here.

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

from jobs.core import passwords

MASK = "***"

_PARTS = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_WORDS = frozenset(
    (
        *("secret", "password", "passwd", "passphrase", "credential", "credentials", "creds", "userpwd", "apikey"),
        *("authorization", "cookie", "passwords", "authtoken", "accesstoken", "apitoken", "accesskey"),
        *("secretkey", "privatekey"),
    )
)
_LAST = frozenset(("token", "pwd", "pass", "pat", "pw", "bearer"))
"""At the end of a name alone: limits.first_token_s is a time. PWD by itself is a directory."""
_NONE = frozenset(("file", "path", "stdin"))
"""At the end of a name: it tells where a secret comes from."""
_OF_TEXTS = frozenset(
    ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "first", "last", "next", "per", "max", "min", "num")
)
"""Before `token`: one of a tokenizer, of a text, or a rate."""
_PAIRS = frozenset((one, "key") for one in ("api", "access", "secret", "private", "auth", "account", "signing", "ssh"))
_IN_URL = re.compile(r"(?<=//)([^\s/:@'\"]{0,500}):([^\s/'\"]{1,500})(?=@)")  # to the last @: a password may hold one
_IN_QUOTED_URL = re.compile(r"(?i)(?<=%3a%2f%2f)([^\s/:@'\"&%]{0,100})%3a([^\s/:@'\"&]{1,200}?)(?=%40)")
_END = r"\\*['\"]\s*(?:[,:}\]]|$)"
"""A quote that ends a text of JSON: {"x": "TOKEN=", "y": 1}. No secret begins with it."""
_BARE_URL = re.compile(
    r"(?<![^\s'\"=(\[<])([\w.+-]{1,100}):([^\s'\"/\\][^\s'\"/]{0,500})"
    r"(?=@(?!sha\d+:)[A-Za-z0-9[][\w.:%\[\]-]{0,300}(?![\w.@-]))"
)
"""user:password@host without its scheme, as proxies and registries are given; no image with its digest."""
_USER = r"\w[\w.%+@-]{0,99}"
_LOGIN_FLAG = re.compile(r"-(?:[A-Za-z#]{0,6}[uU]|-(?:proxy-)?(?:user|auth))")
_UNQUOTED = r"(?:[^\s'\"\\]|\\[^'\"])"
_LOGIN = re.compile(
    rf"(?<![^\s'\"\[,])({_LOGIN_FLAG.pattern})(\\*['\"]\s*,\s*|,\s*|=|\\*\s\s*|)"
    rf"(?:((?P<q>\\*['\"]){_USER}:)(?![$*/{{])((?:(?!(?P=q)|{_END})(?:\\.|[^\\\r\n])){{1,500}})"
    rf"|({_USER}:(?!{_END})(?:\\*['\"])?)(?![$*/{{])({_UNQUOTED}{{1,500}}))"
)
"""user:password of curl and others. Behind a container's program it is user:group, and `--user=` is its form."""
_TAKES_GROUP = re.compile(r"\b(?:docker|podman|nerdctl|buildah|kubectl|crun|runc|gosu)\b")
_TAKES_PASSWORD = re.compile(r"\bcurl\b")
_TOLD = re.compile(
    r"(\b(?:login\b[^\n;|&]{0,200}?\s-p|sshpass\s+-p|machine\s+\S{1,300}\s+login\s+\S{1,300}\s+password)\s*)"
    rf"(?![-$])((?:'[^']*'|\"[^\"]*\"|{_UNQUOTED}){{1,500}})"
)
"""docker login -p, sshpass -p, a line of .netrc."""
_BEARER = re.compile(r"\b(Bearer|Basic(?=\s+[a-z]*[A-Z0-9+/=]))\s+(?!\$)([A-Za-z0-9._~+/=-]{4,})")
_HEADER = re.compile(
    r"(?i)\b(authorization|cookie)((?:(?:\\*['\"])?\s{0,9}[:=]|\\*['\"]\s{0,9},)\s{0,9}(?:\\*['\"])?)"
    r"(?!\s*(?:[,:}\]]|(?:\w+ )?[{$*]))([^'\"\\\r\n]{1,4000})"
)
_PARTS_OF_HEADERS = ("uthorization", "UTHORIZATION", "ookie", "OOKIE")
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}"
    r"|xox[abeprs]-[\w-]{10,}|sk-[\w-]{20,}|[rs]k_live_\w{16,}|A(?:KIA|SIA)[A-Z0-9]{16}|AIza[\w-]{30,}|LTAI[A-Za-z0-9]{12,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}(?:\.[\w-]*){1,3}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|dckr_pat_[\w-]{20,}"
    r"|gl(?:d|r|f)t-[\w-]{20,}|hvs\.[\w-]{20,}|nvapi-[\w-]{20,}|gsk_[A-Za-z0-9]{30,}|ya29\.[\w-]{20,})"
    r"|(?<=PRIVATE KEY-----)(?:[^-'\"\\]|\\[^'\"]){1,10000}|(?<=PRIVATE KEY BLOCK-----)(?:[^-'\"\\]|\\[^'\"]){1,10000}"
    r"|(?<=[?&]sig=)[^\s&'\"\\]+|(?<=[?&]key=)[\w-]{16,}"
    r"|(?<=[?&]X-Amz-Signature=)[^\s&'\"\\]+"
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
    "gldt-",
    "glrt-",
    "glft-",
    "xox",
    "sk-",
    "_live_",
    "AKIA",
    "ASIA",
    "AIza",
    "LTAI",
    "eyJ",
    "npm_",
    "pypi-",
    "dckr_pat_",
    "hvs.",
    "nvapi-",
    "gsk_",
    "ya29.",
    "PRIVATE KEY",
    "sig=",
    "key=",
    "X-Amz-Signature=",
)
_WORD = r"(?:[^\s,;'\"{}\[\])\\]|\\[^'\"])"  # a stroke belongs to what follows it: without it a quote would end JSON
_SINGLE, _DOUBLE = r"'[^']*'", r"\"(?:[^\"\\]|\\.)*\""
_QUOTED = "|".join(rf"\\{{{strokes}}}\"[^\"\\]*\\{{{strokes}}}\"" for strokes in (1, 3, 7))
_VALUE = (
    rf"(?!{_END})(\$?{_SINGLE}{_WORD}*|\$?{_DOUBLE}{_WORD}*|{_QUOTED}"
    rf"|\[(?:[^\[\]'\"\\]|\\.|{_SINGLE}|{_DOUBLE}){{0,2000}}\]|\{{(?:[^{{}}'\"\\]|\\.|{_SINGLE}|{_DOUBLE}){{0,2000}}\}}"
    rf"|\\*['\"][^\s'\"\\]+|{_WORD}+(?:(?<==)(?:{_SINGLE}|\"[^\"]*\"))?)"
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
    parts = [part.lower() for part in _PARTS.split(name.rstrip("0123456789_")) if part]  # HF_TOKEN_2
    pairs = itertools.pairwise(parts)
    if (parts[-1:] == ["token"] and _OF_TEXTS & set(parts[:-1])) or _NONE & set(parts[-1:]):
        return False
    ends = (
        parts[-1:] == ["token"]
        or name in ("--pass", "--bearer")
        or (len(parts) > 1 and parts[-1] in _LAST)
        or parts[-1:] == ["pgpassword"]
    )
    is_key = (
        len(parts) > 1 and parts[-1] in ("key", "auth", "jwt") and name.isupper()
    )  # OPENAI_KEY; sort_key, PyJWT are none
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
    urls = (*_IN_URL.finditer(value), *_BARE_URL.finditer(value))
    return [value] if is_secret(name) else [unquote(found[2]) for found in urls]


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
        words = _BARE_URL.sub(rf"\1:{MASK}", _IN_URL.sub(rf"\1:{MASK}", words))
    if ":" in words and _LOGIN_FLAG.search(words):
        words = _LOGIN.sub(_of_login, words)
    if any(part in words for part in ("login", "sshpass")):
        words = _TOLD.sub(rf"\1{MASK}", words)
    words = passwords.away(words, MASK)
    if "%40" in words:
        words = _IN_QUOTED_URL.sub(rf"\1%3A{MASK}", words)
    if "Bearer" in words or "Basic" in words:
        words = _BEARER.sub(rf"\1 {MASK}", words)
    for part in _PARTS_OF_FORMS:  # half the time of `any`
        if part in words:
            words = _FORMS.sub(MASK, words)
            break
    if any(part in words for part in _PARTS_OF_HEADERS):
        words = _HEADER.sub(rf"\1\2{MASK}", words)
    return _GIVEN.sub(_given, words) if any(part in words for part in ("=", ":", "--", "%3")) else words


def _of_login(match: re.Match[str]) -> str:
    flag, between = match[1], match[2]
    user, value = (match[3], match[5]) if match[3] else (match[6], match[7])
    before = re.split(r"[\n;|&]", match.string[max(0, match.start() - 400) : match.start()])[-1]
    known = bool(between.strip("=")) or flag == "--auth" or _TAKES_PASSWORD.search(before)
    if not known or not _is_password(user.strip("\\'\":"), value, before):
        return match[0]
    return f"{flag}{between}{user}{MASK}"


def _is_password(user: str, value: str, before: str) -> bool:
    """Return whether in user:value behind a flag the second is no group and no port. `before`: what leads to it."""
    plain = user.isdecimal() or value == user or ("." in user and value.isdecimal()) or _TAKES_GROUP.search(before)
    return not plain or bool(_TAKES_PASSWORD.search(before))


def _argument(words: Sequence[Any], at: int) -> str | None:
    """Return a word of a command line without the secret that the flag before it tells; None: it tells none."""
    flag, word = words[at - 1] if at else None, words[at]
    if not isinstance(flag, str) or not flag.startswith("-"):
        return None
    if len(flag) > 2 and is_secret(flag):  # --token, -token
        return MASK
    if flag != "-p" and not _LOGIN_FLAG.fullmatch(flag):
        return None  # most words; joining what stands before each would take time that grows with the square
    before, parts = " ".join(map(str, words[:at])), str(word).partition(":")
    if flag == "-p":
        return MASK if re.search(r"\blogin\b|\bsshpass\b", before) else None
    login = re.fullmatch(_USER, parts[0]) and parts[2] and parts[2][0] not in "$*/{"
    return f"{parts[0]}:{MASK}" if login and _is_password(parts[0], parts[2], before) else None


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
    if value[0] in "'\"[{\\":
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
        hidden = {at: word for at in range(len(value)) if (word := _argument(value, at)) is not None}
        hidden |= dict(passwords.in_argv(value, MASK))
        return [hidden[at] if at in hidden else mask(child, name, values) for at, child in enumerate(value)]
    if isinstance(value, str):
        return MASK if value and is_secret(name) and not _is_place(value) else text(value, values)
    return value
