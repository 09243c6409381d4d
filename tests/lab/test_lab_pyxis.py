"""The real pyxis and enroot on a real Slurm with two nodes, where this machine has them (Debian has neither)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from lab import Lab
from launching import python
from real_runtimes import OS, check_row, docker, need, need_program, registry, sweep_words
from test_rehearsal import finish, measuring, start, the_sweep, until

from jobs.core.process import TAG
from jobs.core.rundir import SweepDir

PLACES = ("/usr/local/lib/slurm", "/usr/lib64/slurm", "/usr/lib/x86_64-linux-gnu/slurm-wlm")
PLUGIN = next((path for path in (Path(place, "spank_pyxis.so") for place in PLACES) if path.exists()), None)

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (PLUGIN and shutil.which("enroot")), reason="there is no pyxis, or no enroot"),
]


@dataclass(frozen=True)
class Site:
    """A cluster with pyxis, and an image in its registry whose ENTRYPOINT ends at once and whose USER is not root."""

    lab: Lab
    image: str
    path: Path

    def words(self, *more: str, runs: Path | None = None) -> list[str]:
        """Return the overrides of one short sweep."""
        root = [] if runs else [f"results.root={self.path}/runs"]
        words = ["cluster=slurm", "cluster.time_limit=5", f'container.local_dir="{self.path}/{{host}}"', *root]
        words += [f"container.images_path={self.path}/images", "limits.stop_s=10"]
        given = {word.partition("=")[0]: word for word in (*words, *sweep_words("pyxis", self.image), *more)}
        return list(given.values())  # of a key that is given twice the last counts

    def sweep(self, *more: str) -> tuple[int, SweepDir, str]:
        """Run one to its end. Returns its exit code, its directory, and what was said."""
        done = python(self.lab, "launch.py", "-m", "engine=simulator", *self.words(*more), timeout_s=240)
        return done.returncode, the_sweep(self.path / "runs"), done.stdout + done.stderr

    def roots(self) -> list[str]:
        """Return the roots of pyxis on both nodes."""
        self.lab.wait_idle()
        found = [self.lab.node_exec(node.name, ["enroot", "list"]).stdout for node in self.lab.layout.nodes]
        return [name for name in " ".join(found).split() if name.startswith("pyxis_")]


@pytest.fixture(scope="module")
def plugin(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need("docker")
    need_program("unsquashfs")
    path = tmp_path_factory.mktemp("pyxis")
    conf = lab.layout.etc / "plugstack.conf.d/pyxis.conf"

    def restart() -> None:
        for node in lab.layout.nodes:
            lab.kill_slurmd(node.name)
            lab.start_slurmd(node.name)
        lab.wait_idle()

    with ExitStack() as stack:
        address = stack.enter_context(registry(path / "registry", host=lab.layout.address))
        maker, _ = stack.enter_context(docker(path / "docker", trusts=[address]))
        changes = ('ENTRYPOINT ["/bin/false"]', "USER 1000:1000", "ENV PATH=/opt/tool/bin:/usr/bin")
        maker.make(f"{address}/team/sim:v1", OS, *changes, programs={"usr/bin/sh": b""})
        maker.push(f"{address}/team/sim:v1")
        stack.callback(restart)
        stack.callback(conf.unlink)
        conf.write_text(f"required {PLUGIN} runtime_path={path}/run\n")
        restart()
        yield Site(lab, f"{address}/team/sim:v1", path)


@pytest.fixture
def site(plugin: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("ENROOT_ALLOW_HTTP", "yes")
    plugin.lab.wait_idle()
    assert plugin.roots() == []
    yield plugin
    assert plugin.roots() == []


@pytest.mark.parametrize(
    "more",
    [(), ("container.writable=false", 'container.name="sweep-{job}-{host}"'), ("container.remap_root=false",)],
    ids=["plain", "named and read-only", "not root"],
)
def test_a_valid_row_comes_out_of_both_nodes(site: Site, more: tuple[str, ...]) -> None:
    code, sweep, said = site.sweep(*more)
    assert code == 0, said[-3000:]
    row, inside = check_row(sweep, "pyxis")
    assert row["image_digest"].startswith("sha256:")
    assert [one["proof"]["os"] for one in inside] == [OS] * 2
    assert inside[0]["proof"]["step"] != inside[1]["proof"]["step"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("/opt/plain", "the program cannot be executed on this node"),
        ("/opt/nothing", "/opt/nothing: No such file or directory"),
    ],
)
def test_a_program_that_the_image_lacks_is_named(site: Site, command: str, reason: str) -> None:
    code, sweep, said = site.sweep(f"engine.command=[{command}]")
    assert code == 1, said[-3000:]
    assert reason in rows(sweep)[0]["invalid_reason"]


def rows(sweep: SweepDir) -> list[dict[Any, Any]]:
    return pd.read_csv(sweep.table("csv")).to_dict("records")


def engine_of(rank: int) -> psutil.Process:
    """Return the process of a rank's engine: a task of Slurm's, whose starter is none."""
    for one in psutil.process_iter():
        try:
            mine = one.environ().get(TAG, "").endswith(f"/{rank}")
            parent = one.parent()
            if mine and parent and parent.name() == "slurmstepd" and "jobs.engines.simulator" in one.cmdline():
                return one
        except psutil.Error:
            continue
    raise AssertionError(f"no engine of rank {rank}")


def test_an_engine_that_is_killed_is_that_of_its_rank(site: Site) -> None:
    runs = site.path / "killed"
    with start(runs, *site.words("bench.window_s=60", runs=runs)) as launched:
        until(lambda: measuring(runs) or launched.poll() is not None, "the window", 120)
        engine_of(1).kill()
        finish(launched, 1)
    [row] = rows(the_sweep(runs))
    assert row["invalid_reason"].startswith("rank 1: ")
    assert "SIGKILL" in row["invalid_reason"]


@pytest.mark.parametrize("signal", ["", "--signal=KILL"])
def test_a_cancelled_job_leaves_nothing(site: Site, signal: str) -> None:
    runs = site.path / f"cancelled{len(signal)}"
    with start(runs, *site.words("bench.window_s=60", runs=runs)) as launched:
        until(lambda: measuring(runs) or launched.poll() is not None, "the window", 120)
        [job] = site.lab.slurm("squeue", "--noheader", "--format=%A").split()
        subprocess.run(["scancel", *([signal] if signal else []), job], env=os.environ | site.lab.env, check=True)
        finish(launched, 1)
    [row] = rows(the_sweep(runs))
    assert not row["valid"]


def test_what_an_older_one_does_not_know_is_refused_before_the_queue(site: Site) -> None:
    known = site.lab.slurm("srun", "--help")
    before = site.lab.slurm("sacct", "-n", "-X", "-P", "-o", "JobID")
    code, _, said = site.sweep("container.args={container-nosuch: 1}")
    assert code != 0
    assert "too old: `srun --help` has no --container-nosuch" in said
    blank = site.path / "a blank"
    blank.mkdir(exist_ok=True)
    mounts = f'container.mounts=["/usr:/usr:ro","{blank}:/mnt/blank","{sys.prefix}"]'
    if "--container-unshare" not in known:
        code, _, said = site.sweep(mounts)
        assert code != 0
        assert "older than 0.24" in said
    assert site.lab.slurm("sacct", "-n", "-X", "-P", "-o", "JobID") == before
