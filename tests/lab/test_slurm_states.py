"""Whatever happens to a sweep on Slurm in whatever order: no row is lost or doubled, nothing is left, all answers."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from random import Random

import pytest
from forks import Zygote
from lab import Lab
from slurm_world import SlurmWorld, happen

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SEQUENCES = int(os.environ.get("SLURM_STATES", "1"))
FIRST = int(os.environ.get("SLURM_STATES_FROM", "129"))
"""In this one a submitter is killed when Slurm has taken its job, and two resumes come at once."""


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEQUENCES))
def test_a_sweep_on_slurm_stands_whatever_happens(lab: Lab, zygote: Zygote, tmp_path: Path, seed: int) -> None:
    world = SlurmWorld(tmp_path, zygote, Random(seed), lab=lab, env=lab.env)
    if world.random.random() < 0.2:
        world.random.choice((world.die, world.refuse))()
    world.launch()
    try:
        for _ in range(world.random.randint(2, 5)):
            time.sleep(world.random.choice((0.2, 1.0, 2.0, 4.0, 8.0)) * world.random.random() * 3)
            world.remember()
            happen(world)
        world.check()
        shutil.rmtree(world.tmp)
    except AssertionError as error:
        for one in world.processes():
            one.kill()
        raise AssertionError("\n".join([*world.told, str(error)])) from None
