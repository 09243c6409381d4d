"""Passwords on command lines of well-known programs, where neither a name nor a form tells them: `mysql -pWORD`.

A flag means another thing to each program (`-p` is a port, a partition, a password), so that one counts behind the name
of its program alone, and in the same command. Sources: the manual pages of the programs.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_START = r"(?:(?<![^\s'\"\[,(])|(?<=\\n))"
_BETWEEN = r"(?:=|\\*['\"]?\s*,\s*|(?:\\{1,2}\n|\\?\s)(?:\s*-\s)?\s*)"
"""A blank, also one with a stroke before it or the end of a line; what lies between two words of a list."""


def _flag(flag: str) -> str:
    return rf"{_START}(?:{flag}){_BETWEEN}?"


def _glued(flag: str) -> str:
    return rf"{_START}(?:{flag})"


_PROGRAMS = {
    r"mysql(?:\w+|-\w+)?|mariadb(?:-\w+)?|mycli|mytop": _glued(r"-[ABCENbfnqrstv]{0,6}p"),  # behind `-p ` is a database
    r"7z[arz]?": _glued(r"-p"),
    r"[wx]?l?freerdp3?": _glued(r"/g?p:"),
    r"(?:redis|valkey|keydb)-cli": _flag(r"-a"),
    r"https?|xhs?": _flag(r"-a"),
    r"mongo(?:sh|dump|restore|export|import|stat|top|files)?": _flag(r"-p"),
    r"rabbitmqadmin|cypher-shell|neo4j-admin|cqlsh|beeline|twine|arangosh|neo4j": _flag(r"-p"),
    r"ldap(?:search|add|modify|delete|whoami|passwd|compare|modrdn|exop)": _flag(r"-[xZLvn]{0,6}w"),
    r"ipmi\w+|mosquitto_(?:pub|sub|rr)|sqlcmd|bcp|tsql|zip|unzip": _flag(r"-[erqjo]{0,4}P"),
    r"snmp(?:walk|get|getnext|set|bulkwalk|bulkget|table|trap)": _flag(r"-[cAX]"),
    r"openssl": rf"{_flag('-[kK]')}|{_flag('-pass(?:in|out)?')}(?:\\*['\"])?pass:",
    r"glab": _flag(r"-t"),
    r"smbclient|smbget|rpcclient|net|winexe": _flag(r"-U|--user") + r"\\*['\"]?[^\s%'\"]{1,100}%",
    r"lftp": _flag(r"-u") + r"\\*['\"]?[^\s,'\"]{1,100},",
    r"sqlplus|expdp|impdp|sqlldr": r"(?<=\s)\\*['\"]?[\w.$#-]{1,100}/(?=\S{1,200}(?:@|\s|$))",
    r"mc": r"\b(?:alias\s+set|config\s+host\s+add)(?:\s+\S{1,300}){3}\s+",
    r"aws|rclone|npm|yarn|git|gcloud|s3cmd": (
        r"\bconfig(?:ure)?\s+(?:--\w+\s+)?(?:set\s+|create\s+|add\s+)?[^\n;|&]{0,200}?"
        r"(?i:secret_access_key|secret_key|token|password|_auth)\s+"
    ),
    r"wandb|vault|gh|hf": r"\blogin\s+(?:-[\w-]{1,100}\s+){0,5}(?=[^\s'\"]{0,100}\d)",
    r"wpa_passphrase": r"(?<=\s)\S{1,100}\s+",
    r"nmcli": r"\bpassword\s+",
    r"kubectl": r"--from-literal(?:=|\s+)[\w.-]{1,100}=",
}
"""Programs, and what leads to a password behind their name."""

_INNER = r"(?!\\*['\"]\s*(?:[,:}\]]|$))"
"""Here is no quote that ends a text of JSON: what is taken away lies in one text."""
_VALUE = (
    rf"(?!\\*['\"]?(?:[-*{{]|\$(?!')|\s|$)){_INNER}(?P<value>\$?'(?:{_INNER}(?:\\.|[^'\\\r\n])){{1,500}}'"
    rf"|\"(?:{_INNER}(?:\\.|[^\"\\\r\n])){{1,500}}\""
    rf"|(?P<strokes>\\{{1,7}})\"(?:{_INNER}[^\"\r\n]){{1,500}}(?<!\\)(?P=strokes)\""
    r"|(?:\\*['\"])?(?:[^\s'\"\\,\]})]|\\+[^'\"\\\r\n]|[,\]})](?![\s'\"\],})]|$)){1,500})"
)
_LEADS = [f"(?P<lead>{lead}){_VALUE}" for lead in _PROGRAMS.values()]
_NAMED = "|".join(f"(?P<p{at}>{name})" for at, name in enumerate(_PROGRAMS))
_PROGRAM = rf"(?<![\w.@:=-])(?:{_NAMED})(?=\\*['\"]?\s*,|\\*\s|\\{{1,7}}n|$)"
_COMMAND = r"(?:\\\n|[^\n;|&]|\n(?=\s{0,40}-)){0,2000}"
"""What belongs to a program: up to the end of its line, and the lines behind it that begin with a flag."""

_STDIN = r"(?:--(?:password|token)-stdin|--with-token|--passphrase-fd|\bsudo\s+-\w{0,3}S|\bkinit\b|\bchpasswd\b)"
_ELSEWHERE = {
    ("|",): (  # echo WORD | program that reads it
        rf"(?P<lead>\b(?:echo|printf)\s+(?:-\w+\s+|\\*['\"]%s(?:\\{{1,15}}n)?\\*['\"]\s+)?){_VALUE}"
        rf"(?=\\*['\"]?\s{{0,9}}\|[^\n;|&]{{0,300}}{_STDIN})"
    ),
    ("<<<",): rf"(?P<lead>{_STDIN}[^\n;|&<]{{0,300}}<<<\s{{0,9}}){_VALUE}",
    ("dentified", "DENTIFIED", "assword", "ASSWORD"): (
        rf"(?P<lead>(?i:\bidentified\s+by|\bpassword(?:\s+for\s+\S{{1,200}}\s*=)?)\s+)(?=\\*['\"]){_VALUE}"
    ),
    ("login",): rf"(?P<lead>\blogin\s+\S{{1,300}}\s+password\s+){_VALUE}",  # a line of .netrc
    ("-pass", "-storepass", "-keypass", "-token", "-secret"): (
        rf"(?P<lead>{_flag('-(?:password|passwd|passphrase|storepass|keypass|token|secret)')}(?<![a-z])){_VALUE}"
    ),
    (";", ",pass="): (rf"(?P<lead>;\s{{0,9}}(?i:pwd)=|\buser(?:name)?=[^,\s]{{1,100}},pass=)(?![/$]){_VALUE}"),
    (
        "assw",
        "ASSW",
        "assphrase",
        "ecret",
        "oken",
        "pwd",
        "码",
        "口令",
        "密钥",
        "令牌",
    ): (  # a line of YAML, or of prose
        rf"(?P<lead>(?:(?:(?m:^)|(?<=['\"])|(?<=\\n))\s{{0,40}}(?:-\s+)?(?i:passwo?r?d|passphrase|pwd|secret|apikey|(?:auth|access)token"
        rf"|token(?=:\s+[\w-]*[A-Za-z_-]))"
        rf"|密码|口令|密钥|令牌)\s{{0,9}}[:=：]\s{{0,9}})(?!(?i:null|none|true|false|auto|required)\b){_VALUE}(?=\s*(?:[,;。，；]|\\*['\"]|\\{{1,7}}n|(?m:$)))"
    ),
    ("@",): r"(?P<lead>\bhttps?://)(?P<value>(?=[A-Za-z_-]{0,99}\d)[\w-]{12,300})(?=@)",  # a user is none
    ("/t/",): r"(?P<lead>\bhttps?://[^\s/'\"]{1,300}/t/)(?P<value>[\w-]{8,300})(?=/)",  # conda's channels
}
"""What tells a password without a program: what has to stand in the text, and the form."""
_HINTS = (
    *("sql", "maria", "mycli", "mytop", "7z", "freerdp", "-cli", "http", "xh", "mongo", "rabbitmq", "cypher", "neo4j"),
    *(
        "cqlsh",
        "hdbsql",
        "beeline",
        "twine",
        "arango",
        "ldap",
        "ipmi",
        "mosquitto",
        "bcp",
        "zip",
        "snmp",
        "openssl",
        "glab",
        "smb",
    ),
    *("rpcclient", "net", "winexe", "lftp", "expdp", "impdp", "mc", "aws", "rclone", "npm", "yarn", "git", "gcloud"),
    *("s3cmd", "wandb", "vault", "gh", "hf", "wpa_", "nmcli", "kubectl"),
)
"""A part of each name: to look for these takes a tenth of the time."""
_HINTED = [(hint, pattern) for hints, pattern in _ELSEWHERE.items() for hint in hints]
_SIGNS = (
    *(" -", '"-', "'-", ",-", "[-", "(-", "\n-", "\\n-", "/p:", "/gp:", "login", "config", "alias"),
    *("sqlplus", "expdp", "impdp", "sqlldr", "wpa_", "nmcli"),
)
"""A part of what leads to a password."""
_MOST_WORDS = 100
"""Words of a command line before a flag among which the name of its program is looked for."""


def away(words: str, mask: str) -> str:
    """Return a text without the passwords on command lines in it."""

    def hidden(match: re.Match[str]) -> str:
        value = match["value"]
        opening, closing = (one if one in "'\"" else "" for one in (value[0], value[-1]))
        return f"{match['lead']}{opening}{mask}{closing if opening == closing else ''}"

    for hint, pattern in _HINTED:
        if hint in words:
            words = re.sub(pattern, hidden, words)
    for sign in _SIGNS:
        if sign in words:
            break
    else:
        return words
    if not any(hint in words for hint in _HINTS):
        return words
    found = [*re.finditer(_PROGRAM, words)]
    parts = [words[: found[0].end()]] if found else [words]
    for one, after in itertools.zip_longest(found, found[1:]):
        stop = _end(words, one.end(), after.start() if after else len(words))
        rest = after.end() if after else len(words)
        parts += [re.sub(_LEADS[_number(one)], hidden, words[one.end() : stop]), words[stop:rest]]
    return "".join(parts)


def _number(found: re.Match[str]) -> int:
    """Return which of the programs was found."""
    return int((found.lastgroup or "p0")[1:])


def _end(words: str, start: int, last: int) -> int:
    """Return where the command ends that begins there."""
    found = re.compile(_COMMAND).match(words, start, last)
    return found.end() if found else start


def in_argv(words: Sequence[Any], mask: str) -> Iterator[tuple[int, str]]:
    """Yield the places in a command line of words that hold a password, with what is shown of them."""
    begin = None
    for at, word in enumerate(words):
        if not isinstance(word, str):
            continue
        if begin is not None and at - begin < _MOST_WORDS:
            window = json.dumps([*map(str, words[begin:at]), re.sub(r"[\s'\"\\,;|&]", "_", word)])
            shown = str(json.loads(away(window, mask))[-1])
            if mask in shown and mask not in word:
                yield at, word[: shown.index(mask)] + mask
        if re.fullmatch(_PROGRAM, word.rpartition("/")[2]):
            begin = at
