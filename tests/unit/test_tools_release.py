"""The tool that writes release data: the same text for the same wheels."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from core_help import ROOT

from jobs.engines.ascend import releases

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


def test_only_the_text_of_a_wheel_is_kept(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_ascend-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_ascend/envs.py", "x = 1")
        archive.writestr("vllm_ascend/kernel.so", "binary")
        lines = "Requires-Python: >=3.10\nRequires-Dist: torch==2.8.0\nRequires-Dist: torch-npu==2.8.0; extra\n\nText"
        archive.writestr("vllm_ascend-1.2.3.dist-info/METADATA", lines)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert extract_release.unpack(wheel, tmp_path) == digest
    assert not wheel.exists()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"envs.py", "METADATA"}
    assert extract_release.requirements(tmp_path, "vllm-ascend") == {
        "python": ">=3.10",
        "torch": "2.8.0",
        "torch-npu": "2.8.0",
    }


PIP = """#!/bin/sh
# A pip that has only a patch release, as some releases were published.
case "$*" in
  *"==1.2.3.*"*) for last; do :; done; echo x > "$DEST/vllm-1.2.3.post1-py3-none-any.whl";;
  *) echo "no matching distribution" >&2; exit 1;;
esac
"""


def test_the_nearest_patch_release_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = tmp_path / "python"
    pip.write_text(PIP)
    pip.chmod(0o755)
    monkeypatch.setattr(extract_release.sys, "executable", str(pip))
    monkeypatch.setenv("DEST", str(tmp_path))
    assert extract_release.download("vllm", "1.2.3", tmp_path).name == "vllm-1.2.3.post1-py3-none-any.whl"
    with pytest.raises(SystemExit, match="no matching distribution"):
        extract_release.download("vllm", "9.9.9", tmp_path)
