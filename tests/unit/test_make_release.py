"""What `make release` refuses, and that this tree has what a release needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from core_help import ROOT
from test_tools_engines import load

release = load("release")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "a"\nversion = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.0] - 2026-11-28\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    return tmp_path


def git(tree: Path, *argv: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(tree), *who, *argv], check=True)


def test_a_clean_tree_with_its_entry_is_released(tree: Path) -> None:
    assert release.refusals(tree) == []


def test_what_is_refused(tree: Path) -> None:
    git(tree, "tag", "v1.2.0")
    (tree / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [1.2.0]\n")
    changed, tagged, unsaid = release.refusals(tree)
    assert changed == "the tree has changes: CHANGELOG.md"
    assert "v1.2.0 is tagged already" in tagged
    assert "no line `## [1.2.0] - YYYY-MM-DD`" in unsaid


def test_this_version_has_its_entry() -> None:
    assert f"\n## [{release.version(ROOT)}] - " in (ROOT / "CHANGELOG.md").read_text()
