"""What of a container is refused before anything is submitted, as far as it can be seen from here."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest
from container_fakes import Fakes
from core_help import change, config

from containers import pyxis
from jobs import sweep
from jobs.errors import ConfigError, RunError
from jobs.service import container


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path / "bin", ("enroot", "unsquashfs", "docker", "srun"))
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made


@pytest.mark.parametrize(
    ("runtime", "program"), [("enroot", "enroot"), ("enroot", "unsquashfs"), ("pyxis", "srun"), ("docker", "docker")]
)
def test_a_runtime_that_is_not_there_is_named(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, runtime: str, program: str
) -> None:
    monkeypatch.setenv("PATH", str(fakes.folder))
    made = change(config("cluster=slurm"), container__runtime=runtime)
    container.check_host(made)
    (fakes.folder / program).unlink()
    with pytest.raises(RunError) as caught:
        container.check_host(made)
    assert (caught.value.key, caught.value.value) == ("container.runtime", runtime)
    assert f"no {program} on PATH" in caught.value.reason


def test_the_checkpoint_is_looked_for_behind_its_mount() -> None:
    made = config("cluster=slurm", "model.path=/models/R1", "container.mounts=['/data:/models']")
    assert container.checkpoint(made) == Path("/models/R1")
    assert container.checkpoint(change(made, container__runtime="enroot")) == Path("/data/R1")


def submission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *overrides: str) -> None:
    made = sweep.plan([[*overrides, "container.image=/m.sqsh", f"results.root={tmp_path}/runs"]])
    monkeypatch.setattr(sweep.submit, "check_programs", lambda _: None)
    try:
        sweep.start(made)
    finally:
        assert not (tmp_path / "runs").exists(), "nothing was written, nothing submitted"


def test_without_enroot_on_this_machine_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="no enroot on PATH"):
        submission(monkeypatch, tmp_path, "engine=simulator", "container=enroot")


def test_without_the_plugin_nothing_is_submitted(tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.tell(pyxis=False)
    with pytest.raises(RunError, match="the plugin is not loaded"):
        submission(monkeypatch, tmp_path, "cluster=slurm", "container=pyxis")


def test_a_stray_option_of_pyxis_in_the_shell_is_caught(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYXIS_CONTAINER_IMAGE", "other")
    with pytest.raises(ConfigError) as caught:
        submission(monkeypatch, tmp_path, "cluster=slurm", "container=enroot")
    assert (caught.value.key, caught.value.value) == ("PYXIS_CONTAINER_IMAGE", "other")
    with pytest.raises(ConfigError):
        pyxis.check_strays(["PYXIS_CONTAINER_WRITABLE"])
    pyxis.check_strays(["PYXIS_OTHER", "PATH"])


def test_the_words_in_a_path_are_this_users_and_this_nodes() -> None:
    made = change(config("cluster=slurm"), container__data_path="/scratch/{user}/{uid}/{job}/{rank}/{host}")
    path = str(container.enroot_paths(made, "7", 1).data)
    assert str(os.getuid()) in path
    assert "/7/1/" in path
    assert "{" not in path


def test_the_words_in_a_name_are_filled_and_unknown_ones_are_refused() -> None:
    made = change(config("cluster=slurm"), container__runtime="docker", container__image="r.example#a/b:v1")
    named = change(made, container__name="me-{user}-{uid}-{job}-{rank}-{host}")
    container.check(named)
    user, uid = getpass.getuser(), os.getuid()
    assert container.wanted(named, 1, job="7", host="node1").name == f"me-{user}-{uid}-7-1-node1"
    assert container.wanted(named, 1).name == f"me-{user}-{uid}-{{job_id}}-1-{{node}}", "a plan knows neither"
    for wrong in ("me-{jobid}", "-me", "a b"):
        with pytest.raises(ConfigError) as caught:
            container.check(change(made, container__name=wrong))
        assert (caught.value.key, caught.value.value) == ("container.name", wrong)
    with pytest.raises(ConfigError, match="are removed when no rank"):
        container.check(change(made, container__runtime="enroot", container__name="serving-sweep.mine"))
