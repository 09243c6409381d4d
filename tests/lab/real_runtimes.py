"""A real docker and a real podman with directories of their own, on a node of the lab too, and registries for both."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from launching import ROOT

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir

FOLDERS = ("dev", "etc", "opt", "proc", "root", "run", "sys", "tmp", "usr", "var")
LINKS = ("bin", "lib", "lib64", "sbin")
OS = "an image made here"
NEEDED = {"docker": ("dockerd", "containerd", "runc", "docker"), "podman": ("podman", "runc")}

# A daemon in namespaces of its own: whatever ends its starter, the kernel ends all in them, and unmounts. It keeps a
# key in /etc/docker and a directory in /run, so that it gets others.
DAEMON = """mount -t tmpfs none /etc/docker && mount -t tmpfs none /run && exec dockerd --iptables=false \
--ip6tables=false --ip-forward=false --ip-masq=false --bridge=none --cgroup-parent="$2" --data-root="$3" \
--exec-root="$1/exec" --pidfile="$1/pid" --host="unix://$1/docker.sock" --config-file="$1/daemon.json" $4 \
> "$1/dockerd.log" 2>&1"""


def missing(runtime: str) -> str | None:
    """Return why this machine cannot run a container of a runtime, or None."""
    if os.getuid() != 0:
        return "this is not root, and the user namespaces of podman and docker want a set-up of their own"
    lacks = [name for name in NEEDED[runtime] if not shutil.which(name)]
    return f"there is no {' and no '.join(lacks)}: python tests/lab/lab.py install" if lacks else None


def need(runtime: str) -> None:
    """Skip a test where this machine cannot run it; under CI=true that is a failure."""
    if reason := missing(runtime):
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def image_file(path: Path, name: str = OS, extra_bytes: int = 0, programs: Mapping[str, bytes] | None = None) -> Path:
    """Write the files of an image that has nothing but links to the /usr that is mounted into it, and programs."""
    with tarfile.open(path, "w") as tar:
        for folder_name in FOLDERS:
            folder = tarfile.TarInfo(folder_name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if folder_name == "tmp" else 0o755
            tar.addfile(folder)
        for link_name in LINKS:
            link = tarfile.TarInfo(link_name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{link_name}"
            tar.addfile(link)
        files = {"etc/os-release": f'PRETTY_NAME="{name}"\n'.encode(), "opt/plain": b"no program\n", **(programs or {})}
        if extra_bytes:
            files["opt/large"] = os.urandom(extra_bytes)
        for file_name, text in files.items():
            file = tarfile.TarInfo(file_name)
            file.size, file.mode = len(text), 0o755 if file_name in (programs or {}) else 0o644
            tar.addfile(file, io.BytesIO(text))
    return path


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what tells nobody that it is there."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@dataclass(frozen=True)
class Real:
    """One runtime: its program, the directory of all that is its own, and the variables that say so."""

    program: str
    path: Path
    env: Mapping[str, str]

    def run(self, *words: str, check: bool = True) -> str:
        """Run its program; return what it printed."""
        env = {**os.environ, **self.env}
        done = subprocess.run([self.program, *words], check=False, capture_output=True, text=True, env=env)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def make(self, reference: str, name: str = OS, *changes: str, **files: Any) -> str:
        """Make an image of files (see `image_file`), with lines of a Dockerfile. Returns its id."""
        file = image_file(self.path / f"{os.urandom(4).hex()}.tar", name, **files)
        self.run("import", *(word for one in changes for word in ("--change", one)), str(file), reference)
        file.unlink()
        return self.run("image", "inspect", "--format", "{{.Id}}", reference)

    def trust(self, address: str) -> None:
        """Let it speak plain HTTP with a registry on loopback; docker does so by itself."""
        if self.program == "podman":
            with Path(self.env["CONTAINERS_REGISTRIES_CONF"]).open("a") as file:
                file.write(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')

    def push(self, reference: str) -> None:
        """Push an image to a registry on loopback, which docker trusts without TLS."""
        self.run("push", *(["--tls-verify=false"] if self.program == "podman" else []), reference)

    def containers(self) -> list[str]:
        """Return the names of all containers, those that have ended too."""
        return self.run("ps", "--all", "--format", "{{.Names}}").split()

    def clear(self) -> None:
        """Remove all containers."""
        time = ("--time", "0") if self.program == "podman" else ()
        for name in self.containers():
            self.run("rm", "--force", *time, name, check=False)


GROUP = "serving-sweep-test-"


def clear() -> None:
    """Remove the empty cgroups, and links, of daemons that are gone: of those too whose tests were killed."""
    for found in Path("/sys/fs/cgroup").glob(f"*/{GROUP}*"):
        for folder in sorted((*found.rglob("*"), found), key=lambda one: len(one.parts), reverse=True):
            with contextlib.suppress(OSError):  # one that is in use
                if folder.is_dir():
                    folder.rmdir()
    for link in Path(tempfile.gettempdir()).glob("dk-*"):
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)


ON_NODE = "tcp://127.0.0.1:2375"
"""Where the daemon of a node is on each node: its loopback is its own."""


@contextmanager
def docker(
    path: Path, data: Path | None = None, enter: Sequence[str] = (), trusts: Sequence[str] = ()
) -> Iterator[tuple[Real, subprocess.Popen[bytes]]]:
    """A daemon, which goes with all its containers, mounts and namespaces.

    Args:
        data: directory of its images.
        enter: words before a command that put it on a node of the lab.
        trusts: registries that are not on loopback and have no TLS.
    """
    path.mkdir(exist_ok=True)
    clear()
    group = f"/{GROUP}{os.getpid()}-{path.name}"
    (path / "daemon.json").write_text(json.dumps({"insecure-registries": [*trusts]}))
    words = [
        *enter,
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    short = Path(tempfile.gettempdir()) / f"dk-{os.urandom(4).hex()}"  # names of sockets have 107 characters at most
    short.symlink_to(path)
    daemon = subprocess.Popen([*words, "sh", "-c", DAEMON, "sh", str(short), group, str(data or path / "data"),
                               f"--host={ON_NODE} --tls=false" if enter else ""])  # fmt: skip
    try:
        env = {"DOCKER_HOST": f"unix://{short}/docker.sock", "DOCKER_CONFIG": str(path / "client")}
        (path / "client").mkdir()
        one = Real("docker", path, env)

        def answers() -> bool:
            assert daemon.poll() is None, (path / "dockerd.log").read_text()[-2000:]
            return bool(one.run("version", "--format", "{{.Server.Version}}", check=False))

        wait_until(answers)
        yield one, daemon
    finally:
        daemon.kill()
        daemon.wait()
        short.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        clear()


@contextmanager
def podman(path: Path, data: Path | None = None) -> Iterator[Real]:
    """A podman with a store of its own; crun wants to raise limits, which a sandbox forbids."""
    path.mkdir(exist_ok=True)
    lines = 'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    store = f'driver = "vfs"\ngraphroot = "{data or path / "store"}"\nrunroot = "{path}/run"\n'
    files = {
        "CONTAINERS_CONF": f"[containers]\ndefault_ulimits = []\n[engine]\n{lines}",
        "CONTAINERS_STORAGE_CONF": f"[storage]\n{store}",
        "CONTAINERS_REGISTRIES_CONF": "",
        "REGISTRY_AUTH_FILE": "{}",
    }
    for name, text in files.items():
        (path / name).write_text(text)
    one = Real("podman", path, {name: str(path / name) for name in files})
    try:
        yield one
    finally:
        one.clear()
        for mount in Path("/proc/self/mounts").read_text().splitlines():
            if mount.split()[1].startswith(str(path)):
                subprocess.run(["umount", "--lazy", mount.split()[1]], check=False)
        shutil.rmtree(path, ignore_errors=True)


HTPASSWD = "bob:$2b$04$xgpnoZZ.yxuyaUuaihH2iey0XA0D5hzqIWx5QpkKoq4QZU27pUnoW\n"


@contextmanager
def registry(path: Path, htpasswd: str | None = None, host: str = "127.0.0.1") -> Iterator[str]:
    """A registry on loopback, or on another address of this machine. With `htpasswd` it wants a login."""
    need_program("docker-registry")
    path.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind((host, 0))
        address = f"{host}:{free.getsockname()[1]}"
    auth = ""
    if htpasswd:
        (path / "htpasswd").write_text(htpasswd)
        auth = f"auth:\n  htpasswd:\n    realm: here\n    path: {path}/htpasswd\n"
    storage = f"storage:\n  filesystem:\n    rootdirectory: {path}/files\n  delete:\n    enabled: true\n"
    (path / "config.yml").write_text(f"version: 0.1\n{storage}http:\n  addr: {address}\n{auth}")
    words = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(path / "config.yml")]
    with (path / "log").open("wb") as log:
        # It takes variables that begin with REGISTRY_ for keys of its own, podman's too.
        served = subprocess.Popen(words, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
    try:
        host, _, port = address.partition(":")

        def answers() -> bool:
            assert served.poll() is None, (path / "log").read_text()[-2000:]
            with socket.socket() as one:
                return one.connect_ex((host, int(port))) == 0

        wait_until(answers)
        yield address
    finally:
        served.kill()
        served.wait()
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def started(program: str, image: str, factory: pytest.TempPathFactory) -> Iterator[Real]:
    """One of the runtimes by name, with an image."""
    need(program)
    path = factory.mktemp(program)
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(podman(path)) if program == "podman" else stack.enter_context(docker(path))[0]
        one.make(image)
        yield one


def sweep_words(program: str, image: str) -> list[str]:
    """Return the overrides of one short window in containers of an image that has nothing of its own."""
    needed = sorted({"/usr", str(ROOT), sys.prefix, sys.base_prefix})
    mounts = ",".join(f'"{path}:{path}:ro"' for path in needed if path == "/usr" or not path.startswith("/usr"))
    words = [f"container={program}", f"container.image={image}", f"container.mounts=[{mounts}]"]
    words += ["container.args={ulimit: host}"] if program == "podman" else []
    words += ["container.shm_size=64m", f"engine.env.PYTHONPATH={ROOT}", "bench.warmup_s=0.5", "bench.repeats=1"]
    return [*words, "bench.window_s=2", "bench.concurrency=4"]


def check_row(sweep: SweepDir, program: str) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
    """Look that the one row is valid and both ranks ran what was asked. Returns it, and both containers' record.

    On a busy machine everything may stand still for longer than the window: then the row says so, rightly.
    """
    [row] = pd.read_parquet(sweep.table("parquet")).to_dict("records")
    assert row["valid"] or str(row["invalid_reason"]).startswith("no token came for"), row["invalid_reason"]
    assert row["completed"] > 0
    ranks = [sweep.service(row["service"], 1).rank(rank) for rank in (0, 1)]
    found = [read_json(rank.effective) for rank in ranks]
    assert [one["differences"] for one in found] == [[], []]
    starter = {"pyxis": "srun"}.get(program, program)
    assert [read_json(rank.command)["container"][0][0] for rank in ranks] == [starter] * 2
    return row, [one["container"] for one in found]


def need_program(name: str) -> None:
    """Skip a test where this machine lacks a program; under CI=true that is a failure."""
    if not shutil.which(name):
        reason = f"there is no {name}: python tests/lab/lab.py install"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def silent_registry() -> Iterator[tuple[str, threading.Event]]:
    """A registry that takes a question and never answers; yields its address, and what is set by the question."""
    asked, over = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            over.wait()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
