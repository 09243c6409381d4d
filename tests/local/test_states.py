"""Whatever happens to a sweep in whatever order: no row is lost or doubled, nothing is left running, all answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from forks import Zygote
from world import World

SEQUENCES = int(os.environ.get("STATES", "30"))
FIRST = int(os.environ.get("STATES_FROM", "0"))
DISK = "24m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory whose `disk` will be a small file system of its own, where this user may mount one."""
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path / "disk"], check=False, capture_output=True)


def happen(world: World) -> None:
    """Let one thing happen."""
    what = world.random.choices(
        (world.kill, world.launch, world.interrupt, world.fill, world.free, *(None,) * 3), (10, 2, 2, 1, 1, 4, 3, 1)
    )[0]
    if what:
        what()
    else:
        world.verb(*world.random.choice((("resume",), ("resume",), ("cancel",), ("status",), ("follow",))))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEQUENCES))
def test_a_sweep_stands_whatever_happens(disk: Path, zygote: Zygote, seed: int) -> None:
    world = World(disk, zygote, Random(seed))
    options = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(world.disk)]
    subprocess.run(["mount", *options], check=False, capture_output=True)
    world.launch()
    try:
        for _ in range(world.random.randint(2, 6)):
            time.sleep(world.random.choice((0.0, 0.1, 0.3, 0.6, 1.0, 2.0)) * world.random.random() * 2)
            world.remember()
            happen(world)
        world.check()
        shutil.rmtree(world.tmp)
    except (AssertionError, OSError) as error:
        for one in world.processes():
            one.kill()
        raise AssertionError("\n".join([*world.told, str(error)])) from None
