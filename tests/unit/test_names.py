"""The gate for names from outside: what passes is a plain name, whatever it is joined to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs.core import names

EVIL = [
    *(
        "",
        " ",
        ".",
        "..",
        "/",
        "/abs/x",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".hidden",
        "a/.hidden",
        "a\nb",
        "a\0b",
        "a\x1bb",
    ),
    *("a\u202eb", "a\u2028b", "\ud800", "x" * 300, "a b;c", "$(id)", "-x", "n1\ntouch PWN #", "n1 #", "a,b", "n[1-3]"),
    *(None, 5, 1.5, True, [], {}, ["a"], b"a"),
]
KINDS: dict[Callable[[Any], Any], tuple[list[str], set[Any]]] = {
    names.host: (["n1", "node-1.site.example", "10.0.0.1", "a_b"], set()),
    names.identity: (["0123abcdef", "point-1", "p"], set()),
    names.job_id: (["4711", "4711_3", "4711+1", "4711.0"], set()),
    names.number: (["0", "1", "99999"], set()),
    names.file_name: (
        ["model.safetensors", "ein Name.json", "模型.json"],
        {"a b;c", "$(id)", "-x", "n1 #", "a,b", "n[1-3]"},
    ),
    names.file_below: (["a/b/c.json", "c.json"], {"a b;c", "$(id)", "-x", "n1 #", "a,b", "n[1-3]"}),
    names.module: (["modeling_deepseek.Class"], set()),
    names.url: (["http://127.0.0.1:16030/", "https://mirror.example/a?b=c"], set()),
}


@pytest.mark.parametrize("gate", KINDS, ids=lambda gate: gate.__name__)
def test_a_gate_lets_through_names_of_its_kind_alone(gate: Callable[[Any], Any]) -> None:
    good, harmless = KINDS[gate]
    for name in good:
        assert str(gate(name)) in (name, "modeling_deepseek.py")
    for name in EVIL:
        if not isinstance(name, str) or name not in harmless:
            with pytest.raises(ValueError):
                gate(name)


@pytest.mark.parametrize("name", ["..x.Class", "/home/v/proj/mod.Class", "a/b.Class", "a-b.Class", "other--mod.Class"])
def test_a_module_is_a_file_beside_its_config(name: str) -> None:
    with pytest.raises(ValueError):
        names.module(name)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://", "http://u:secret@h/", "ftp://h/x", "http://h/a b", "http://[x"]
)
def test_a_url_is_http_and_holds_no_password(url: str) -> None:
    with pytest.raises(ValueError):
        names.url(url)
