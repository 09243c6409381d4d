"""A shell with options of pyxis in it: every way into Slurm refuses it, before anything is written or removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from test_batch import JOB, SCRIPTS, prepare, run_script

from jobs.__main__ import main
from jobs.core.errors import ConfigError
from jobs.core.files import read_json, write_json
from jobs.sweep import road
from jobs.sweep.record import record
from jobs.sweep.resume import resume

STRAY = "PYXIS_CONTAINER_IMAGE"


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:/usr/bin:/bin")
    return fake


@pytest.fixture
def stray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRAY, "other")


def words(tmp_path: Path) -> list[str]:
    return ["engine=simulator", "cluster=slurm", f"results.root={tmp_path}/runs"]


def test_a_batch_job_does_not_prepare_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=STRAY):
        prepare(tmp_path, env=JOB | {STRAY: "other"})
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("stray")
def test_the_checks_of_the_nodes_do_not_start(
    tmp_path: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preflight", *words(tmp_path)]) == 2
    assert f"{STRAY} = other: pyxis takes it as an option of every step" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert not slurm.calls("sbatch") + slurm.calls("srun")


def test_a_resume_removes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record(road.plan([words(tmp_path)]))
    [point] = read_json(made.plan)["points"]
    row = made.point(point["point"]).row
    item = {"valid": False, "invalid_reason": "failed", "truncated": False}
    write_json(row, item)
    monkeypatch.setenv(STRAY, "other")
    with pytest.raises(ConfigError, match=STRAY):
        resume(made, retry_failed=True)
    assert row.exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_ranks_of_a_batch_script_do_not_see_it(tmp_path: Path, name: str) -> None:
    done, calls = run_script(tmp_path, name, **{STRAY: "other"})
    assert done.returncode == 0, done.stderr
    assert calls[0].endswith(" in a container"), "`prepare` sees it, and would refuse it"
    assert "/srun " in calls[1]
    assert not calls[1].endswith(" in a container")
