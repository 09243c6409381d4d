"""Which commit of the tool a sweep was made with, in every kind of clone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from jobs.results.provenance import commit


def git(folder: Path, *words: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *name, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_a_clone_packed_detached_and_of_a_linked_work_tree(tmp_path: Path) -> None:
    clone, linked = tmp_path / "clone", tmp_path / "linked"
    clone.mkdir()
    assert commit(clone) is None
    git(clone, "init", "-q")
    assert commit(clone) is None  # nothing is committed yet
    git(clone, "commit", "-q", "--allow-empty", "-m", "one")
    first = git(clone, "rev-parse", "HEAD")
    assert commit(clone) == first
    git(clone, "worktree", "add", "-q", "-b", "other", str(linked))
    git(linked, "commit", "-q", "--allow-empty", "-m", "two")
    assert commit(linked) == git(linked, "rev-parse", "HEAD") != first
    git(clone, "pack-refs", "--all")
    assert commit(clone) == first
    assert commit(linked) == git(linked, "rev-parse", "HEAD")
    git(linked, "checkout", "-q", "--detach", first)
    assert commit(linked) == first
