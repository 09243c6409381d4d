"""`experiment=article` against the article's own words (sections 3.2 to 3.4), parsed by nothing of ours."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from core_help import GOLDEN, python

from jobs.cli import launch

MASTER = "10.226.72.51"


def words_of(name: str) -> list[str]:
    """Split a command of the article as a shell does."""
    return shlex.split((GOLDEN / name).read_text().replace("\\\n", " "))


def flags_of(words: list[str]) -> dict[str, str | bool]:
    """Return the flags of a command line with their values; a flag without a value is True."""
    flags: dict[str, str | bool] = {}
    rest = words[3:]
    while rest:
        name = rest.pop(0)
        assert name.startswith("--"), name
        assert name not in flags, f"{name} is given twice"
        flags[name] = rest.pop(0) if rest and not rest[0].startswith("--") else True
    return flags


def article_environment() -> tuple[list[str], dict[str, str]]:
    """Return what section 3.2 sources, and what it exports."""
    sourced, exported = [], {}
    for line in (GOLDEN / "article_env.txt").read_text().splitlines():
        word, rest = line.split(" ", 1)
        if word == "source":
            sourced.append(rest)
        else:
            assert word == "export"
            name, value = rest.split("=", 1)
            exported[name] = value
    return sourced, exported


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The ranks of the plan, as a host without Slurm prints them."""
    here = tmp_path_factory.mktemp("article")
    process = python("-m", "jobs", "plan", "--json", "experiment=article", cwd=here, path=here / "empty")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    plan = json.loads(out)
    assert [len(plan[name]) for name in ("points", "services", "allocations")] == [1, 1, 1]
    assert plan["allocations"][0]["nodes"] == 2
    return plan["services"][0]["ranks"]


@pytest.mark.parametrize(
    ("rank", "role", "file"), [(0, "head", "article_head.txt"), (1, "headless", "article_headless.txt")]
)
def test_command_line_is_the_articles_token_for_token(
    ranks: list[dict[str, Any]], rank: int, role: str, file: str
) -> None:
    ours, theirs = ranks[rank]["argv"], words_of(file)
    assert (ranks[rank]["rank"], ranks[rank]["role"]) == (rank, role)
    assert ours[:3] == theirs[:3] == ["vllm", "serve", "/models/DeepSeek-R1-0528-W8A8"]
    assert flags_of(ours) == flags_of(theirs)
    assert Counter(ours) == Counter(theirs)


@pytest.mark.parametrize(("rank", "address"), [(0, MASTER), (1, "{address}")])
def test_environment_is_the_articles(ranks: list[dict[str, Any]], rank: int, address: str) -> None:
    sourced, exported = article_environment()
    assert len(exported) == 13
    # The article takes the first address of the host: here each rank has the address of its own interface.
    assert exported.pop("HCCL_IF_IP") == "$(hostname -I | awk '{print $1}')"
    assert ranks[rank]["source"] == sourced == ["/usr/local/Ascend/ascend-toolkit/set_env.sh"]
    assert ranks[rank]["env"] == exported | {"HCCL_IF_IP": address}


def test_dry_run_prints_commands_that_a_shell_reads_back_as_the_articles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert launch.main(["-m", "experiment=article", "launch.dry_run=true"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("vllm serve")]
    assert [flags_of(words) for words in commands] == [
        flags_of(words_of("article_head.txt")),
        flags_of(words_of("article_headless.txt")),
    ]
    sourced, exported = article_environment()
    for line in [f"source {name}" for name in sourced] + [
        f"export {name}={value}" for name, value in exported.items() if name != "HCCL_IF_IP"
    ]:
        assert lines.count(line) == 2, line
    assert "nothing was submitted" in lines[-1]
    assert "8 warnings (python -m jobs check):" in lines
    assert [line for line in lines if line.startswith("  E11 engine.env.VLLM_LOGGING_LEVEL = WARNING: ")]
    assert not list(tmp_path.iterdir())
