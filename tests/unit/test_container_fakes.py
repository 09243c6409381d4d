"""The stand-ins refuse what the real programs refuse, with their words and exit codes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from container_fakes import PROGRAMS, REGISTRY, URI, Fakes, need_containers

ENROOT = [
    (["import", "-o", "x.sqsh", "docker://registry.example/test/image:v1"], 6, "Could not resolve host"),
    (["import", "-o", "x.sqsh", f"docker://{REGISTRY}#other:v1"], 1, "404 Not Found"),
    (["digest", f"docker://{REGISTRY}#other:v1"], 1, "404 Not Found"),
    (["exec", "999999999", "true"], 1, "[ERROR] Process not found"),
    (["import", "-o", "there", URI], 1, "[ERROR] File already exists"),
    (["import", "--nosuch", URI], 1, "Usage:"),
    (["create", "-n", "a/b", "good.sqsh"], 1, "[ERROR] Invalid argument: a/b"),
    (["create", "-n", "x", "there"], 1, "[ERROR] Invalid image format"),
    (["create", "-n", "x", "none"], 1, "[ERROR] No such file or directory"),
    (["create", "-n", "root", "good.sqsh"], 1, "[ERROR] File already exists"),
    (["start", "none", "true"], 1, "[ERROR] No such file or directory"),
    (["start", "./good.sqsh", "true"], 1, "[ERROR] Invalid argument"),
    (["start", "-m", "/etc:/x:ro", "root", "true"], 1, "No such device"),
    (["start", "-m", "tmpfs:/mnt/x:size=1m", "root", "true"], 1, "No such device"),
    (["start", "-m", "/e t:/x", "root", "true"], 1, "[ERROR] Invalid argument"),
    (["start", "--nosuch", "root"], 1, "Usage:"),
    (["start", "half", "true"], 1, "failed to execute: /bin/sh"),
    (["remove", "root"], 1, ""),
    (["remove", "-f", "none"], 1, "[ERROR] No such file or directory"),
]

SRUN = ["--jobid=7", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n1"]
IMAGE = f"--container-image={URI.removeprefix('docker://')}"
REFERENCE = URI.removeprefix("docker://").replace("#", "/")
OTHERS = [
    (["srun", *SRUN, IMAGE, "--container-mounts=in:/mnt", "true"], 255, "could not add mount entry"),
    (["srun", *SRUN, IMAGE, "--container-mounts=/no/such:/x", "true"], 1, "source path does not exist"),
    (["srun", *SRUN, "--container-image=good.sqsh", "true"], 1, "Could not resolve host"),
    (["srun", *SRUN, "--container-nosuch", "true"], 255, "unrecognized option"),
    (["srun", "--jobid=8", *SRUN[1:], IMAGE, "true"], 1, "Invalid job id"),
    (["srun", *SRUN[:1], *SRUN[2:], IMAGE, "true"], 1, "temporarily disabled"),
    (["srun", *SRUN, "--container-mounts=/etc:/x", "true"], 0, "ignoring --container-mounts"),
    (["srun", *SRUN, IMAGE, "--no-container-writable", "true"], 255, "unrecognized option"),
    (["srun", *SRUN, IMAGE, "--container-writable", "--container-readonly", "true"], 255, "were specified"),
    (["srun", *SRUN, IMAGE, "--container-remap-root", "--no-container-remap-root", "true"], 255, "were specified"),
    (["srun", *SRUN, IMAGE, "--container-workdir=", "true"], 255, "argument required"),
    (["srun", *SRUN, IMAGE, "--container-env=A,,B", "true"], 255, "invalid format"),
    (["srun", *SRUN, IMAGE, "--container-name=used:create", "true"], 1, "the container already exists"),
    (["srun", *SRUN, IMAGE, "--container-name=used:other", "true"], 255, "flag must be"),
    (["srun", *SRUN, IMAGE, "--container-name=:create", "true"], 255, "empty name"),
    (["srun", *SRUN, "--container-name=used:exec", "true"], 1, "the container is not running"),
    (["srun", *SRUN, "--container-name=none", "true"], 1, '"pyxis_none" does not exist, and --container-image is not'),
    (["docker", "run", "-it", REFERENCE, "bash"], 1, "not a TTY"),
    (["docker", "run", "--detach", "nosuch", "bash"], 125, "Unable to find image"),
    (["docker", "cp", "data", "fixed:/tmp/data"], 1, "container rootfs is marked read-only"),
    (["docker", "run", "--detach", "--shm-size=rubbish", REFERENCE, "bash"], 125, 'invalid argument "rubbish"'),
    (["docker", "run", "--nosuch", "x"], 125, "unknown flag"),
    (["docker", "exec", "none", "true"], 1, "No such container"),
    (["docker", "rm", "none"], 1, "cannot remove a running container"),
    (["podman", "run", "--detach", "nosuch", "bash"], 125, "Unable to find image"),
    (["podman", "exec", "none", "true"], 125, 'no container with name or ID "none" found'),
    (["podman", "image", "inspect", "--format", "{{.Id}}", "none"], 125, "none: image not known"),
    (["podman", "info", "--format", "{{.DockerRootDir}}"], 125, "can't evaluate field"),
    (["podman", "rm", "--force", "--time", "0", "none"], 0, ""),
    (["unsquashfs", "-s", "there"], 1, "Can't find a SQUASHFS superblock"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    here = tmp_path_factory.mktemp("site")
    fakes = Fakes(here / "bin", PROGRAMS)
    fakes.tell(node="n1")
    fakes.image(here / "good.sqsh")
    (here / "there").write_text("not an image")
    (here / "data/half").mkdir(parents=True)
    (here / "bin/pyxis/pyxis_used").mkdir(parents=True)
    env = os.environ | {f"ENROOT_{name.upper()}_PATH": str(here / name) for name in ("data", "cache", "runtime")}
    env["PATH"] = f"{here}/bin:{env['PATH']}"
    subprocess.run(["enroot", "create", "-n", "root", "good.sqsh"], cwd=here, env=env, check=True)
    fixed = ["docker", "run", "--name", "fixed", "--detach", "--read-only", REFERENCE, "bash"]
    subprocess.run(fixed, cwd=here, env=env, check=True)
    return here, env


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [*((["enroot", *argv], code, words) for argv, code, words in ENROOT), *OTHERS],
    ids=lambda value: "-".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_the_real_one_refuses(site: tuple[Path, dict[str, str]], argv: list[str], code: int, words: str) -> None:
    here, env = site
    done = subprocess.run(
        argv, cwd=here, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr


def test_a_batch_job_has_no_directories_of_enroot(site: tuple[Path, dict[str, str]]) -> None:
    here, env = site
    bare = {name: value for name, value in env.items() if not name.startswith("ENROOT_")}
    done = subprocess.run(["enroot", "version"], cwd=here, env=bare, capture_output=True, text=True, check=False)
    assert (done.returncode, "cannot create directory" in done.stderr) == (1, True)


def test_values_are_mangled_and_a_login_shell_replaces_path(site: tuple[Path, dict[str, str]]) -> None:
    need_containers()
    here, env = site
    argv = ["enroot", "start", "-r", "-e", "TWO=a\nB", "-e", 'Q="x"', "-e", "ENROOT_X=1", "-e", "PATH=/opt:/usr/bin"]
    argv += ["root", "env"]

    def inside(**more: str) -> dict[str, str]:
        done = subprocess.run(argv, cwd=here, env=env | more, capture_output=True, text=True, check=True)
        return dict(line.split("=", 1) for line in done.stdout.splitlines())

    seen = inside()
    assert (seen["TWO"], seen["Q"], seen["PATH"]) == ("a", "x", "/usr/local/bin:/usr/bin:/bin")
    assert "ENROOT_X" not in seen
    assert inside(ENROOT_LOGIN_SHELL="n")["PATH"] == "/opt:/usr/bin"


def test_what_is_refused_in_the_container_alone(site: tuple[Path, dict[str, str]]) -> None:
    need_containers()
    here, env = site

    def step(*words: str) -> subprocess.CompletedProcess[str]:
        argv = ["srun", *SRUN, IMAGE, "--container-remap-root", "--container-writable", *words]
        return subprocess.run(argv, cwd=here, env=env, capture_output=True, text=True, check=False)

    lost = step("--container-workdir=/nosuch", "true")
    assert (lost.returncode, "couldn't chdir to /nosuch" in lost.stderr) == (1, True)
    assert step("--container-workdir=/opt", "pwd").stdout == "/opt\n"
    # A value is no error for pyxis: the word goes into its shell script as it is.
    assert "A=1=1-" in step("--container-env=A=1", "env").stdout.splitlines()
    assert step("--container-env=A-B", "env").returncode == 1
    assert step("--container-mounts=tmpfs:/mnt/x:nosuch=1", "true").returncode != 0
    # A flag that nobody knows is data for the file system, and a bind mount has none: it is there, and can be written.
    assert step("--container-mounts=./data:/mnt/x:nosuch", "touch", "/mnt/x/written").returncode == 0
