"""What the real programs do with a command, its environment and its end: the stand-ins do the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from container_fakes import PROGRAMS, URI, Fakes, need_containers

STEP = ("srun", "--jobid=7", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n1", "--container-remap-root")
IMAGE = f"--container-image={URI.removeprefix('docker://')}"


class Site:
    """A node with stand-ins, and a root of enroot's called `root`."""

    def __init__(self, here: Path) -> None:
        need_containers()
        self.here, self.fakes = here, Fakes(here / "bin", PROGRAMS)
        self.tell()
        self.fakes.image(here / "good.sqsh")
        self.env = os.environ | {f"ENROOT_{one.upper()}_PATH": f"{here}/{one}" for one in ("data", "cache", "runtime")}
        self.env |= {"PATH": self.fakes.path, "ENROOT_LOGIN_SHELL": "n"}
        self.run("enroot", "create", "-n", "root", "good.sqsh")

    def tell(self, **more: object) -> None:
        self.fakes.tell(node="n1", conf={"DATA": str(self.here / "data")}, **more)

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        where = {"cwd": self.here, "env": self.env | env, "stdin": subprocess.DEVNULL}
        return subprocess.run(argv, capture_output=True, text=True, check=False, **where)  # type: ignore[call-overload, no-any-return]

    def start(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("enroot", "start", "-r", *argv, **env)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def test_a_commands_own_end_passes_through_enroot(site: Site) -> None:
    codes = {
        script: site.start("root", "sh", "-c", script).returncode for script in ("exit 37", "kill -9 $$", "nosuch")
    }
    assert codes == {"exit 37": 37, "kill -9 $$": -signal.SIGKILL, "nosuch": 127}
    assert site.start("root", "/etc/os-release").returncode == 126
    assert site.start("root", "echo one two").returncode == 127, "words have to stay apart"
    assert site.start("root", "echo", 'a "b"  c').stdout == 'a "b"  c\n'


def test_the_process_of_a_start_is_the_command_whose_children_survive_it(site: Site) -> None:
    script = "sleep 600 > /dev/null 2>&1 & echo $! $$; wait"
    argv = ["enroot", "start", "-r", "root", "bash", "-c", script]
    with subprocess.Popen(argv, env=site.env, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        child, own = map(int, started.stdout.readline().split())
        assert own == started.pid
        started.terminate()
        assert started.wait(30) == -signal.SIGTERM
    os.kill(child, signal.SIGKILL)  # ProcessLookupError: it did not


def test_nothing_of_the_hosts_environment_gets_in_unless_it_is_named(site: Site) -> None:
    hard = 'a\\b #c {"d": 1}'
    words = ("-e", "HARD", "-e", f"GIVEN={hard}", "root", "env")
    seen = dict(one.split("=", 1) for one in site.start(*words, HARD=hard, STRAY="1").stdout.splitlines())
    assert (seen["HARD"], seen["GIVEN"], seen["HOME"]) == (hard, hard, "/root")
    assert "STRAY" not in seen


def test_a_start_has_a_tmp_of_its_own_and_writes_into_its_root(site: Site) -> None:
    assert site.start("-w", "root", "touch", "/tmp/mine", "/opt/kept").returncode == 0
    assert site.start("root", "ls", "/tmp/mine").returncode != 0
    assert (site.here / "data/root/opt/kept").exists()
    assert (site.here / "data/root/etc/rc").exists(), "even read-only"


def test_a_killed_create_leaves_its_half_and_its_children(site: Site) -> None:
    site.tell(enroot_create={"pause_s": 1.0})
    with subprocess.Popen(["enroot", "create", "-n", "half", "good.sqsh"], cwd=site.here, env=site.env) as started:
        end = time.monotonic() + 30
        while not (site.here / "data/half").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        started.kill()
    site.tell()
    assert "File already exists" in site.run("enroot", "create", "-n", "half", "good.sqsh").stderr
    while not (site.here / "data/half/usr/bin/sh").exists():  # unsquashfs goes on
        assert time.monotonic() < end
        time.sleep(0.01)
    assert site.run("enroot", "create", "-f", "-n", "half", "good.sqsh").returncode == 0
    assert site.run("enroot", "remove", "-f", "none", "half").returncode == 1
    assert (site.here / "data/half").exists(), "it stops at the first that is not there"


def test_an_empty_mount_prints_the_usage(site: Site) -> None:
    done = site.start("-m", "", "root", "true")
    assert (done.returncode, done.stdout.startswith("Usage:")) == (1, True)


def test_a_steps_variables_are_the_jobs_without_its_language_and_the_image_wins(site: Site) -> None:
    more = {"LANG": "zh_CN.UTF-8", "LC_ALL": "C", "OF_JOB": "1", "VLLM_FROM_IMAGE": "job"}
    seen = site.run(*STEP, IMAGE, "env", **more).stdout.splitlines()
    assert {"OF_JOB=1", "VLLM_FROM_IMAGE=image"} < {*seen}
    assert not [one for one in seen if one.startswith(("LANG=", "LC_ALL="))]
    seen = site.run(*STEP, IMAGE, "--container-env=LANG,VLLM_FROM_IMAGE", "env", **more).stdout.splitlines()
    assert {"LANG=zh_CN.UTF-8", "VLLM_FROM_IMAGE=job"} < {*seen}


def test_a_named_root_stays_and_is_taken_whatever_the_image(site: Site) -> None:
    words = (*STEP, "--container-name=kept", "--container-writable")
    assert site.run(*words, IMAGE, "touch", "/opt/changed").returncode == 0
    again = site.run(*words, "--container-image=/no/such.sqsh", "ls", "/opt/changed")
    assert (again.returncode, "reusing existing container filesystem" in again.stderr) == (0, True)
    assert (site.here / "data/pyxis_kept").exists()
    site.tell(container_scope="job")
    assert site.run(*words, IMAGE, "true").returncode == 0
    assert (site.here / "data/pyxis_7_kept").exists()
    site.tell()


def test_a_step_ends_as_its_task_and_a_container_that_fails_says_why_before_the_last_line(site: Site) -> None:
    assert site.run(*STEP, IMAGE, "sh", "-c", "exit 37").returncode == 37
    killed = site.run(*STEP, IMAGE, "sh", "-c", "kill -9 $$")
    assert (killed.returncode, "n1: task 0: Killed" in killed.stderr) == (137, True)
    lines = site.run(*STEP, IMAGE, "--container-mounts=/no/such:/x", "true").stderr.splitlines()
    assert lines[0] == "slurmstepd-n1: error: pyxis: source path does not exist: /no/such"
    assert "task_init() failed with rc=-1" in lines[1]
    assert "task 0: Exited with exit code 1" in lines[-1]
