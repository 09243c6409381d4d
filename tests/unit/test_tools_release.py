"""The tool that writes release data: the same text for the same wheels."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from core_help import ROOT, executable

from jobs.core.errors import RunError
from jobs.engines.ascend import releases
from jobs.engines.ascend.real import ask, sources

sys.path.insert(0, str(ROOT / "tools"))
import extract_release


@pytest.mark.parametrize("name", releases())
def test_what_is_committed_is_what_the_tool_writes(name: str) -> None:
    path = ROOT / f"jobs/engines/ascend/releases/{name}.yaml"
    assert extract_release.text(yaml.safe_load(path.read_text())) == path.read_text()


@pytest.mark.parametrize("name", releases()[1:])
def test_the_changes_against_the_release_before(name: str) -> None:
    data = yaml.safe_load((ROOT / f"jobs/engines/ascend/releases/{name}.yaml").read_text())
    assert extract_release.changes(data["flags"], data["previous"]["release"]) == data["previous"]


@pytest.mark.parametrize("part", ["flags", "additional_config", "settings"])
def test_a_release_of_which_little_was_read_is_not_written(part: str) -> None:
    data = yaml.safe_load((ROOT / f"jobs/engines/ascend/releases/{releases()[-1]}.yaml").read_text())
    extract_release.whole(data, releases()[-2])
    some = list(data[part])[: len(data[part]) // 4]
    with pytest.raises(SystemExit, match=f"{part} has {len(some)} names and .* mend those first"):
        extract_release.whole(data | {part: some}, releases()[-2])


def test_what_is_no_release_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RunError("vllm==9.9.9", "(package)", "no matching distribution", "Mend it.")

    monkeypatch.setattr(sources, "obtain", none)
    for name, words in (("banana", "banana is no version"), ("9.9.9", "no matching distribution")):
        monkeypatch.setattr(sys, "argv", ["extract_release.py", name])
        with pytest.raises(SystemExit, match=words):
            extract_release.main()


PIP = """#!/bin/sh
# A pip that has only a patch release of vllm, as some were published, and its plugin.
for last; do :; done
case "$last" in
  "vllm==1.2.3.*") cp "$WHEEL" "$TO/vllm-1.2.3.post1-py3-none-any.whl";;
  "vllm-ascend==1.2.3") cp "$WHEEL" "$TO/vllm_ascend-1.2.3-py3-none-any.whl";;
  *) echo "ERROR: no matching distribution" >&2; exit 1;;
esac
""".replace("$TO", "$(while [ $1 != --dest ]; do shift; done; echo $2)")


def test_a_release_is_the_text_of_its_packages_and_the_nearest_patch_release_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_ascend/envs.py", "x = 1")
        archive.writestr("vllm_ascend/kernel.so", "binary")
        lines = "Requires-Python: >=3.10\nRequires-Dist: torch==2.8.0\nRequires-Dist: torch-npu==2.8.0; extra\n\nText"
        archive.writestr("vllm_ascend-1.2.3.dist-info/METADATA", lines)
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", PIP)))
    monkeypatch.setenv("WHEEL", str(wheel))
    monkeypatch.setenv("SERVING_SWEEP_RELEASES", str(tmp_path / "releases"))
    place = sources.obtain("1.2.3")
    digest = f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    names = ("vllm-1.2.3.post1-py3-none-any.whl", "vllm_ascend-1.2.3-py3-none-any.whl")
    assert sources.packages(place) == dict.fromkeys(names, digest)
    kept = {path.name for path in place.rglob("*") if path.is_file()} - {sources.STAMP}
    assert kept == {"envs.py", "METADATA"}
    needed = {"python": ">=3.10", "torch": "2.8.0", "torch-npu": "2.8.0"}
    assert extract_release.requirements(place, "vllm-ascend") == needed
    with pytest.raises(RunError, match="no matching distribution"):
        sources.obtain("9.9.9")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_the_code_of_a_release_that_another_user_put_there_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_SWEEP_RELEASES", str(tmp_path))
    place = tmp_path / "1.2.3"
    place.mkdir()
    (place / sources.STAMP).write_text("")
    assert sources.obtain("1.2.3") == place
    os.chown(place, 61_002, 61_002)
    with pytest.raises(RunError, match="it belongs to another user, and its code would run"):
        sources.obtain("1.2.3")
    os.chown(place, 0, 0)
    place.chmod(0o777)
    with pytest.raises(RunError, match="anybody may write into it"):
        sources.obtain("1.2.3")
    place.chmod(0o755)
    tmp_path.chmod(0o777)
    with pytest.raises(RunError, match="anybody may write into it"):
        sources.obtain("1.2.3")
    tmp_path.chmod(0o1777)
    assert sources.obtain("1.2.3") == place


@pytest.mark.parametrize("kept", ["5\n", "[]\n", '["k", 5]\n', "{\n", "[[], {}]\n", '["k", {}, 1]\n'])
def test_answers_that_are_none_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str) -> None:
    (tmp_path / sources.STAMP).write_text("")
    (tmp_path / ask.ANSWERS).write_text(kept)
    monkeypatch.setattr(ask, "PYTHON", tmp_path)
    monkeypatch.setattr(ask.sources, "obtain", lambda _: tmp_path)
    monkeypatch.setattr(ask, "_run", lambda *_: {0: {"refused": "no"}})
    assert ask.ask("1.2.3", [ask.Case(("serve",), {})])[0].refused == "no"
