"""Both READMEs hold the same commands, and the commands run. (Those of the lab run in tests/lab/test_main_job.py.)"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_rehearsal import check_r1

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.zh-CN.md")
REHEARSAL = "python launch.py -m engine=simulator parallel.max_model_len=8192,32768"


def commands(readme: str) -> list[str]:
    """Return the command lines of the console blocks, in order."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def columns(readme: str) -> list[str]:
    """Return the first column of the table that explains the sweep table."""
    text = (ROOT / readme).read_text()
    return re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)


def test_both_languages_hold_the_same_commands() -> None:
    english, chinese = (commands(readme) for readme in READMES)
    assert english == chinese
    assert len(english) >= 12


def test_both_languages_explain_the_same_columns() -> None:
    english, chinese = ([re.findall(r"`([^`]+)`", cell) for cell in columns(readme)] for readme in READMES)
    assert english == chinese


@pytest.mark.parametrize(
    "target", sorted({word for r in READMES for word in re.findall(r"make ([a-z-]+)", r)} | {"demo", "test"})
)
def test_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lab_command_is_the_one_that_the_lab_test_runs() -> None:
    text = (ROOT / "tests/lab/test_main_job.py").read_text()
    tested = " ".join("".join(re.findall(r'"([^"]*)"', text.split("COMMAND = (")[1].split(")")[0])).split())
    assert f"python {tested}" in commands("README.md")


@pytest.mark.timeout(1200)
def test_commands_run(tmp_path: Path) -> None:
    """In the order of the README: the later ones look at the sweep that the first one, the rehearsal of R1, made."""
    ran = 0
    lines = commands("README.md")
    assert lines[0] == REHEARSAL
    for line in lines:
        words = shlex.split(line.replace("runs/latest", str(tmp_path / "latest")))
        if words[0] != "python" or "engine=vllm_cpu" in words:
            continue  # the lab's
        if "launch.py" in words and "--help" not in words:
            words.append(f"results.root={tmp_path}")
        if "cluster=slurm" in words and "launch.dry_run=true" in words:
            words[words.index("cluster=slurm")] = "cluster=local"  # a dry run of the site needs its sbatch
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert done.stdout.strip(), line
        if line == REHEARSAL:
            check_r1(tmp_path, done.stdout)
        ran += 1
    assert ran >= 10
    assert (tmp_path / "latest" / "table.csv").exists()
