"""README, guide and columns say the same in both languages, and their commands run.

Those of the lab run in tests/lab/test_main_job.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from test_rehearsal import check_r1

from jobs.results import row

pytestmark = pytest.mark.usefixtures("warm")

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README", "docs/guide", "docs/columns")
"""What users read, each in English and Chinese."""
REHEARSAL = "python launch.py -m engine=simulator parallel.max_model_len=8192,32768"


def read(page: str) -> tuple[str, str]:
    """Return a page in English and in Chinese."""
    return (ROOT / f"{page}.md").read_text(), (ROOT / f"{page}.zh-CN.md").read_text()


def commands(text: str) -> list[str]:
    """Return the command lines of console blocks and tables, in order; those with words to fill in are none."""
    found = re.findall(r"^(?:\$ (.+)|\| `(python [^`|]+)` \|.*)$", text, re.MULTILINE)
    return [line or cell for line, cell in found if not re.search(r"\.\.\.| A B ", line or cell)]


def cells(text: str) -> list[list[str]]:
    """Return the names in the first column of all tables."""
    return [re.findall(r"`([^`]+)`", cell) for cell in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES)
def test_both_languages_hold_the_same(page: str) -> None:
    english, chinese = read(page)
    assert commands(english) == commands(chinese)
    assert cells(english) == cells(chinese)
    links = [[link.replace(".zh-CN", "") for link in re.findall(r"\]\(([^)]+)\)", text)] for text in (english, chinese)]
    assert sorted(set(links[0])) == sorted(set(links[1]))
    assert english.count("\n## ") == chinese.count("\n## ")
    assert english.count("\n- ") == chinese.count("\n- ")


@pytest.mark.parametrize("text", read("docs/columns"))
def test_every_column_is_explained(text: str) -> None:
    said = re.findall(r"`([a-z0-9_*]+)`", text)
    assert not [name for name in row.columns(()) if not any(fnmatch(name, one) for one in said)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for language, text in zip(("", ".zh-CN"), read(page), strict=True):
        folder = (ROOT / f"{page}{language}.md").parent
        for link in re.findall(r"\]\(([^)#:]+)", text):
            assert (folder / link).exists(), f"{page}{language}: {link}"


@pytest.mark.parametrize(
    "target",
    sorted({word for page in PAGES for word in re.findall(r"(?:`|^ +|\$ )make ([a-z-]+)", read(page)[0], re.M)}),
)
def test_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_lab_command_is_the_one_that_the_lab_test_runs() -> None:
    text = (ROOT / "tests/lab/test_main_job.py").read_text()
    tested = " ".join("".join(re.findall(r'"([^"]*)"', text.split("COMMAND = (")[1].split(")")[0])).split())
    assert f"python {tested}" in commands(read("README")[0])


def runnable() -> list[str]:
    """Return the commands of README and guide but those of the lab."""
    found = [line for page in ("README", "docs/guide") for line in commands(read(page)[0])]
    lines = [line for line in dict.fromkeys(found) if line.startswith("python ") and "engine=vllm_cpu" not in line]
    assert len(lines) >= 20 and lines[0] == REHEARSAL
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
