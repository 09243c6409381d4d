"""Files that somebody else may have written: what is no plain file of a bounded size and form is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from containers import apptainer, store
from jobs.allocation.node import fingerprint
from jobs.core import foreign
from jobs.core.errors import ConfigError, RunError
from jobs.engines.simulator import settings
from jobs.measure import dataset, prose

STRANGER = 61_002
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [fifo, sparse, endless, loop, Path.mkdir], ids=lambda make: make.__name__)
def test_what_is_no_plain_file_of_a_bounded_size_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "row.json")
    with pytest.raises(RunError) as caught:
        foreign.load_json(tmp_path / "row.json")
    assert (caught.value.key, caught.value.value) == (str(tmp_path / "row.json"), "(read)")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[" * 600 + "]" * 600,
        '{"a":' * 5000,
        '"\\ud800"',
        '["\\uDC00"]',
        "9" * 5000,
        b"\xff",
        b'"\xed\xa0\x80"',
    ],
)
def test_what_is_no_json_of_a_bounded_depth_is_refused_in_one_line(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "row.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError) as caught:
        foreign.load_json(path)
    assert "\n" not in str(caught.value)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


@pytest.mark.parametrize(
    "text",
    [
        *("[}", BOMB, "[" * 200 + "]" * 200, "- " * 500, "!!python/object:os.system x", "a: \x07"),
        *(
            "a: !!bool maybe",
            "a: !!int ''",
            "a: !!float ''",
            "a: !!timestamp soon",
            "? !!bool maybe\n: 1",
            "a: !!set x",
        ),
        *(
            "a: !!seq {b: 1}",
            "a: !!map [1]",
            "a: !!map x",
            "!!str {a: 1}",
            "? [1]\n: 2",
            "a: " + "9" * 5000,
            "a: 9999-99-99",
        ),
    ],
)
def test_what_is_no_yaml_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(RunError, match="it is no YAML of ours"):
        foreign.load_yaml(path)


PLAIN = ("1", "0x1f", "1e3", "1.5", ".inf", "yes", "no", "~", "", "null", "2026-11-30", "1:30", "word", "w" * 80, "a*b")


def test_yaml_has_the_types_that_pyyaml_gives_it_and_a_bound_on_its_levels(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("".join(f"k{number}: {text}\nq{number}: '{text}'\n" for number, text in enumerate(PLAIN)))
    for _ in range(2):  # types are remembered
        assert foreign.load_yaml(path) == yaml.safe_load(path.read_text())
    path.write_text("<<: {a: 1, b: [x]}\nb: {c: [2, {d: !!set {e}}]}\n=: !!str 1\nb: again\n")
    assert foreign.load_yaml(path) == yaml.safe_load(path.read_text())
    path.write_text("[" * foreign.DEEPEST + "1" + "]" * foreign.DEEPEST)
    assert foreign.load_yaml(path)
    path.write_text("[" * (foreign.DEEPEST + 1) + "1" + "]" * (foreign.DEEPEST + 1))
    with pytest.raises(RunError, match="it is too deep"):
        foreign.load_yaml(path)


@pytest.mark.parametrize("hidden", ["\x1b]52;c;eA==\x07", "\b\b", "\u202egnp", "\r", "\x9b2J", "\u200b"])
def test_what_cannot_be_seen_is_shown_whether_it_is_escaped_or_not(tmp_path: Path, hidden: str) -> None:
    path = tmp_path / "row.json"
    for ascii_only in (True, False):
        path.write_text(json.dumps({"reason": f"a{hidden}b"}, ensure_ascii=ascii_only))
        [shown] = foreign.load_visible(path).values()
        assert shown.isprintable() and shown.startswith("a\\") and shown.endswith("b")
    for text in ('quote " back \\ slash / tab', "中文 é", "two\nlines"):
        path.write_text(json.dumps({"reason": text}))
        assert foreign.load_visible(path) == {"reason": text}


def test_a_file_that_does_not_tell_its_size_is_read_whole() -> None:
    assert len(foreign.load_bytes(Path("/proc/self/maps"))) > 4096
    with pytest.raises(RunError, match="it has more than 0 MiB"):
        foreign.load_bytes(Path("/proc/self/maps"), 100)


def test_a_form_is_checked_and_the_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [1, "b"]}')
    with pytest.raises(RunError, match=r"it has another form: a\.1: "):
        foreign.load_form(path, dict[str, list[int]])


def prompt_readers(path: Path) -> tuple[Callable[[], object], ...]:
    return (
        lambda: dataset.read_sharegpt(path, 0),
        lambda: dataset.read_trace(path, 1.0, None),
        lambda: prose.read(path, 0),
    )


@pytest.mark.parametrize("make", [fifo, endless], ids=lambda make: make.__name__)
def test_files_that_a_key_names_are_plain_files_too(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "config.json"
    make(path)
    for read in prompt_readers(path):
        with pytest.raises(RunError, match="it is no regular file"):
            read()
    with pytest.raises(RunError, match="it is no regular file"):
        store.tables(path)
    with pytest.raises(ConfigError, match="it is no regular file"):
        settings.hardware(str(path))
    for problem in (store.problem, apptainer.problem):
        assert "it is no regular file" in str(problem(path))
    assert fingerprint.model_digest(tmp_path) is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, "[1e999]", '[{"timestamp": 1e999}]'])
def test_a_set_of_prompts_of_another_form_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    for read in prompt_readers(path):
        with pytest.raises(RunError) as caught:
            read()
        assert caught.value.key == "bench.dataset" and "\n" not in str(caught.value)


@as_root
def test_a_file_of_another_user_can_be_refused(tmp_path: Path) -> None:
    path = tmp_path / "hint.json"
    path.write_text("{}")
    os.chown(path, STRANGER, STRANGER)
    assert foreign.load_json(path) == {}
    with pytest.raises(RunError, match="it belongs to another user"):
        foreign.load_json(path, ours=True)


@as_root
def test_a_link_is_followed_where_its_maker_owns_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('"secret"')
    (tmp_path / "theirs").write_text('"theirs"')
    os.chown(tmp_path / "theirs", STRANGER, STRANGER)
    for name, target, maker in (("own", "theirs", 0), ("good", "theirs", STRANGER), ("bad", "secret", STRANGER)):
        (tmp_path / name).symlink_to(target)
        os.chown(tmp_path / name, maker, maker, follow_symlinks=False)
    assert foreign.load_json(tmp_path / "own") == foreign.load_json(tmp_path / "good") == "theirs"
    with pytest.raises(RunError, match="a link of another user leads"):
        foreign.load_json(tmp_path / "bad")


@as_root
def test_a_link_on_the_way_to_a_file_is_followed_like_one_at_its_end(tmp_path: Path) -> None:
    for folder, owner in (("mine", 0), ("theirs", STRANGER)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").write_text("1")
        os.chown(tmp_path / folder / "x.json", owner, owner)
    for name, target, maker in (
        *(("own", "theirs", 0), ("good", "theirs", STRANGER), ("bad", tmp_path / "mine", STRANGER)),
        *(("over", "bad", 0), ("round", "theirs/../bad/../bad", 0)),
    ):
        (tmp_path / name).symlink_to(target)
        os.chown(tmp_path / name, maker, maker, follow_symlinks=False)
    for name in ("own", "good", "mine", "theirs/../mine"):
        assert foreign.load_json(tmp_path / name / "x.json") == 1
    for name in ("bad", "over", "round", "good/../bad"):
        with pytest.raises(RunError, match="a link of another user leads to what is not that user's"):
            foreign.load_json(tmp_path / name / "x.json")


@as_root
def test_a_second_name_that_a_stranger_gave_to_a_file_is_no_way_to_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "theirs", STRANGER, STRANGER)
    for folder in ("theirs", "mine"):
        (tmp_path / folder / "x.json").hardlink_to(tmp_path / "secret")
    assert foreign.load_json(tmp_path / "mine/x.json") == 1
    with pytest.raises(RunError, match="it is a second name that another user gave to a file"):
        foreign.load_json(tmp_path / "theirs/x.json")
