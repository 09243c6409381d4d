"""Both READMEs hold the same commands, and the commands run. (Those of the lab run in tests/lab/test_main_job.py.)"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_rehearsal import check_r1

pytestmark = pytest.mark.usefixtures("warm")

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


def runnable() -> list[str]:
    """Return the commands but those of the lab."""
    lines = [line for line in commands("README.md") if line.startswith("python ") and "engine=vllm_cpu" not in line]
    assert len(lines) >= 10 and lines[0] == REHEARSAL
    return lines


def run(line: str, root: Path) -> str:
    """Run a command with its results under `root`. Returns its output."""
    words = shlex.split(line.replace("runs/latest", str(root / "latest")))
    if "launch.py" in words and "--help" not in words:
        words.append(f"results.root={root}")
    if "cluster=slurm" in words and "launch.dry_run=true" in words:
        words[words.index("cluster=slurm")] = "cluster=local"  # a dry run of the site needs its sbatch
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert done.stdout.strip(), line
    return done.stdout


@pytest.mark.parametrize("line", [one for one in runnable()[1:] if "runs/latest" not in one])
def test_a_command_runs(line: str, tmp_path: Path) -> None:
    run(line, tmp_path)


@pytest.mark.timeout(1200)
def test_the_rehearsal_of_r1_and_the_commands_that_look_at_it_run(tmp_path: Path) -> None:
    """In the order of the README."""
    check_r1(tmp_path, run(REHEARSAL, tmp_path))
    for line in runnable():
        if "runs/latest" in line:
            run(line, tmp_path)
    assert (tmp_path / "latest" / "table.csv").exists()
