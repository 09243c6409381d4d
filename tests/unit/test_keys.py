"""The tables of the documentation: every key and every file, as the code has them."""

from __future__ import annotations

import json

import pytest
from core_help import ROOT

from jobs.__main__ import main
from jobs.core import rundir, schema
from jobs.core.filetable import File, Files


@pytest.mark.parametrize("what", ["keys", "files"])
def test_the_page_is_what_the_command_prints(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([what, "--markdown"]) == 0
    page = ROOT / "docs" / f"{what}.md"
    assert capsys.readouterr().out == page.read_text(), f"python -m jobs {what} --markdown > docs/{what}.md"


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("parallel.max_model_len", "whole number, at least 1", 8192),
        ("parallel.gpu_memory_utilization", "number, above 0, at most 1 or null", None),
        ("engine.source", "list of: text", ()),
        ("engine.env", "mapping", {}),
        ("launch.infeasible", "fail, drop, keep", "fail"),
        ("engine.api_key", "auto or null", "auto"),
    ],
)
def test_a_key_says_what_it_takes(key: str, kind: str, default: object) -> None:
    assert (schema.type_of(key), schema.default_of(key)) == (kind, default)


def test_every_file_of_a_directory_is_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["files", "--json"]) == 0
    listed = [row["file"] for row in json.loads(capsys.readouterr().out)]
    held = [item for folder in rundir.FOLDERS.values() for item in vars(folder).values()]
    assert len(set(listed)) == len(listed) == sum(isinstance(item, File | Files) for item in held)
    assert "<sweep>/services/<service>/<attempt>/rank<k>/server.log" in listed
    assert "<sweep>/allocations/<n>/<attempt>/stdout-<rank>.log" in listed
