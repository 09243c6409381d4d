"""What of a container is refused before anything is submitted, as far as it can be seen from here."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest
from container_fakes import PROGRAMS, Fakes
from core_help import change, config

from containers import pyxis
from jobs.allocation.node import container
from jobs.allocation.node.container import Words
from jobs.core.errors import ConfigError, RunError
from jobs.sweep import check, road
from jobs.sweep.start import start


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path / "bin", PROGRAMS)
    (made.folder / "sbatch").touch(0o755)
    monkeypatch.setenv("PATH", made.path)
    return made


def test_the_checkpoint_is_looked_for_behind_its_mount() -> None:
    made = config("cluster=slurm", "model.path=/models/R1", "container.mounts=['/data:/models']")
    assert container.checkpoint(made) == Path("/models/R1")
    assert container.checkpoint(change(made, container__runtime="enroot")) == Path("/data/R1")


def submission(tmp_path: Path, *overrides: str) -> None:
    made = road.plan([[*overrides, "container.image=/m.sqsh", f"results.root={tmp_path}/runs"]])
    try:
        start(made)
    finally:
        assert not (tmp_path / "runs").exists(), "nothing was written, nothing submitted"


def test_without_enroot_on_this_machine_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="no enroot on PATH"):
        submission(tmp_path, "engine=simulator", "container=enroot")


def test_without_the_plugin_nothing_is_submitted(tmp_path: Path, fakes: Fakes) -> None:
    fakes.tell(pyxis=False)
    with pytest.raises(RunError, match="the plugin is not loaded"):
        submission(tmp_path, "cluster=slurm", "container=pyxis")


def test_a_stray_option_of_pyxis_in_the_shell_is_caught(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYXIS_CONTAINER_IMAGE", "other")
    with pytest.raises(ConfigError) as caught:
        submission(tmp_path, "cluster=slurm", "container=enroot")
    assert (caught.value.key, caught.value.value) == ("PYXIS_CONTAINER_IMAGE", "other")
    with pytest.raises(ConfigError):
        pyxis.check_strays(["PYXIS_CONTAINER_WRITABLE"])
    pyxis.check_strays(["PYXIS_OTHER", "PATH"])


def test_the_words_in_a_path_are_this_users_and_this_nodes() -> None:
    made = change(config("cluster=slurm"), container__local_dir="/scratch/{user}/{uid}/{job}/{rank}/{host}")
    path = str(container.local(made, Words.here("7"), 1).data)
    assert str(os.getuid()) in path
    assert "/7/1/" in path
    assert "{" not in path


@pytest.mark.parametrize(
    ("image", "release", "severity"),
    [
        ("v0.23.0-openeuler", "0.9.1", "error"),
        ("reg.example#site/vllm-ascend:v0.23.0-openeuler", "0.9.1", "error"),
        ("v0.23.0-openeuler", "0.23.0", None),
        ("v0.9.1-openeuler", "0.9.1", None),
        ("ascend/vllm-ascend:v0.9.1-dev-openeuler", "0.9.1", None),
        ("ascend/vllm-ascend:v0.11.0rc1", "0.9.1", "warning"),
        ("site/my-vllm-ascend:v0.13.0", "0.9.1", "warning"),
        ("site/serving:v0.13.0", "0.9.1", None),
        ("site/vllm-ascend:nightly", "0.9.1", None),
        ("/m.sqsh", "0.9.1", None),
        ("not an image", "0.9.1", None),
    ],
)
def test_an_image_of_another_release_is_told(image: str, release: str, severity: str | None) -> None:
    made = change(config("cluster=slurm"), container__runtime="enroot", container__image=image, engine__release=release)
    found = check.image_release(made)
    assert (found.severity if found else None) == severity
    assert check.image_release(change(made, container__runtime="none")) is None
    if found:
        assert found in check.findings(made)
        assert "engine.release=" in found.remedy


def test_the_words_in_a_name_are_filled_and_unknown_ones_are_refused() -> None:
    made = change(config("cluster=slurm"), container__runtime="docker", container__image="r.example#a/b:v1")
    named = change(made, container__name="me-{user}-{uid}-{job}-{rank}-{host}")
    container.check(named)
    user, uid = getpass.getuser(), os.getuid()
    planned = Words.of_user()
    started = Words(planned.uid, planned.user, "7", "node1")
    assert container.wanted(named, 1, words=started).name == f"me-{user}-{uid}-7-1-node1"
    assert container.wanted(named, 1, words=planned).name == f"me-{user}-{uid}-{{job_id}}-1-{{node}}"
    for wrong in ("me-{jobid}", "-me", "a b"):
        with pytest.raises(ConfigError) as caught:
            container.check(change(made, container__name=wrong))
        assert (caught.value.key, caught.value.value) == ("container.name", wrong)
    with pytest.raises(ConfigError, match="are removed when no rank"):
        container.check(change(made, container__runtime="enroot", container__name="serving-sweep.mine"))
