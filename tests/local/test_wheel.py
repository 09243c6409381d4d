"""The wheel in an environment of its own, outside the checkout: `serving-sweep` is launch.py and `python -m jobs`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from core_help import ROOT

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir

SOURCES = ("jobs", "containers", "hydra_plugins", "conf", "sbatch")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
SHORT = (
    "engine=simulator",
    "cluster=local",
    "bench.warmup_s=0.5",
    "bench.repeats=1",
    "bench.window_s=2",
    "bench.concurrency=4",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of an environment that holds the wheel, and borrows all other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source, env = folder / "source", folder / "env"
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    _run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."],
        source,
    )
    _run([sys.executable, "-m", "venv", "--without-pip", str(env)], folder)
    packages = sysconfig.get_path("purelib", vars={"base": str(env)})
    (Path(packages) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [wheel] = folder.glob("*.whl")
    _run([sys.executable, "-m", "pip", "--python", str(env / "bin/python"), "install", "-q", "--no-deps", "--no-index",
          str(wheel)], folder)  # fmt: skip
    return env / "bin"


def _run(argv: list[str], cwd: Path) -> str:
    """Run a program to its end, without what may point to the checkout. Returns its output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_a_rehearsal_writes_to_the_directory_that_it_is_called_in(installed: Path, tmp_path: Path) -> None:
    output = _run([str(installed / "serving-sweep"), "-m", "parallel.max_model_len=8192,32768", *SHORT], tmp_path)
    sweep = SweepDir((tmp_path / "runs/latest").resolve())
    rows = [read_json(sweep.point(point["point"]).row) for point in read_json(sweep.plan)["points"]]
    assert [row["valid"] for row in rows] == [True, True], output[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    code = Path(json.loads(sweep.service_attempts(rows[0]["service"])[0].rank(0).command.read_text())["argv"][0])
    assert code.parent == installed, "the engine is started by the Python of the wheel"


def test_a_command_plans_what_the_checkout_plans(installed: Path, tmp_path: Path) -> None:
    asked = ["plan", "--json", "parallel.max_model_len=8192,32768", "experiment=article", "cluster=local"]
    ours = json.loads(_run([str(installed / "serving-sweep"), *asked], tmp_path))
    theirs = json.loads(_run([sys.executable, "-m", "jobs", *asked], ROOT))
    assert ours["points"] == theirs["points"]
    assert len(ours["points"]) == 2


def test_the_scripts_for_sbatch_are_in_it(installed: Path, tmp_path: Path) -> None:
    show = "import jobs; print(jobs.__path__[0])"
    packages = Path(_run([str(installed / "python"), "-c", show], tmp_path).strip())
    assert packages.is_relative_to(installed.parent)
    for script in (ROOT / "sbatch").iterdir():
        assert (packages / "sbatch" / script.name).read_bytes() == script.read_bytes()
    assert (packages / "py.typed").exists()
