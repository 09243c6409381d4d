"""Paths behind a directory of root's (/root/.cache of the article) for a user who is not root."""
# ruff: noqa: F811

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_fakes import Fakes
from core_help import change, config
from test_runtimes import EVERY, INHERITED, engine, fakes, until_says  # noqa: F401

from containers import ascend
from containers.spec import Mount
from jobs.allocation.node import staging
from jobs.core.errors import RunError
from jobs.core.files import is_there, nearest_there
from jobs.core.registry import RUNTIMES
from jobs.engines.checkpoint import stage
from jobs.engines.checkpoint.verify import Expected, verify


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that this user cannot look into, as the kernel says it: these tests may run as root."""
    folder = tmp_path / "closed"
    (folder / "cache").mkdir(parents=True)
    real = Path.stat

    def stat(self: Path, **options: Any) -> os.stat_result:
        if folder in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        yield folder / "cache"


def test_what_cannot_be_seen_is_neither_there_nor_absent(closed: Path, tmp_path: Path) -> None:
    assert (is_there(closed), is_there(tmp_path), is_there(tmp_path / "no"), is_there(Path("/dev/null/x"))) == (
        None, True, False, False,
    )  # fmt: skip
    # The preflight asks how much space there is: behind a closed directory it is that of the nearest one in sight.
    assert nearest_there(closed / "deeper") == closed.parent
    assert nearest_there(tmp_path / "no" / "such") == tmp_path


async def test_docker_gets_the_mount_unproved(closed: Path, tmp_path: Path, fakes: Fakes) -> None:
    own = engine(tmp_path, "docker").config.container.mounts
    one = engine(tmp_path, "docker", container__mounts=(*own, f"{closed}:/root/.cache"))
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert one.container is not None
    assert "/root/.cache" not in one.container.inside.proof().mounts
    [run] = fakes.calls("docker", "run")
    assert f"{closed}:/root/.cache" in run
    assert await one.stop() == []


@pytest.mark.parametrize("runtime", [name for name in EVERY if not RUNTIMES.get(name).sees_all])
async def test_other_runtimes_say_which_path_and_why(closed: Path, tmp_path: Path, fakes: Fakes, runtime: str) -> None:
    one = engine(tmp_path, runtime, container__mounts=(f"{closed}:/root/.cache",))
    with pytest.raises(RunError) as caught:
        await one.start(dict(os.environ) | INHERITED)
    assert (caught.value.key, str(caught.value.value)) == ("container.mounts", str(closed))
    assert "this user cannot see it" in caught.value.reason
    assert caught.value.remedy


def test_driver_files_that_cannot_be_seen_are_lent_by_docker_alone(closed: Path) -> None:
    mount = Mount(str(closed), "/usr/local/dcmi")
    assert ascend.lend((), (mount,), unseen=True).mounts == (mount,)
    assert ascend.lend((), (mount,)).missing == (str(closed),)


def test_an_image_file_and_a_model_that_cannot_be_seen_are_named(closed: Path, tmp_path: Path, fakes: Fakes) -> None:
    with pytest.raises(RunError, match="this user cannot see it"):
        stage.check_there(closed / "R1")
    [finding] = verify(closed / "R1", Expected()).findings
    assert "cannot see it" in finding.problem
    made = change(config("cluster=slurm"), container__runtime="docker", model__path=str(closed / "R1"))
    assert staging._weights_wanted(change(made, container__runtime="none"))
    assert not staging._weights_wanted(made), "docker's daemon may see it; it cannot be checked from here"


async def test_an_image_file_that_cannot_be_seen_is_named(closed: Path, tmp_path: Path, fakes: Fakes) -> None:
    one = engine(tmp_path, "enroot", container__image=str(closed / "m.sqsh"))
    for work in (staging.prepare, lambda one, env: one.start(env)):
        with pytest.raises(RunError, match=r"container.image = .*cannot see it"):
            await work(one, dict(os.environ) | INHERITED)
