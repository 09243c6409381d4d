"""docker: the article's `docker run` (3.1), then `docker exec` for what it types inside.

Its containers are children of its daemon, outside of Slurm's cgroup: after a rank was killed its engine goes on there,
and holds its NPUs. Their processes are the daemon's, with ids of their own, so they are reached by `docker exec`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import ClassVar

from containers.base import Argv, Env, Fetched, Inside, Log, Order, Runtime, Start, Stock, check_programs, copied
from containers.base import log as tell
from containers.local import Local
from containers.spec import Image, Mount, Spec, option_words
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.registry import RUNTIMES

LABEL = "serving-sweep"
"""Label of our containers; its value is the user and the rank that they belong to, as UID:TAG."""

ANSWER_S = 20.0
"""A daemon that needs longer to say what it has hangs."""

REMOVE_S = 120.0

COPY_S = 600.0
"""Copying what an engine or its client wrote out of a container may take so long."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_FLAGS = ("ro", "rw", "z", "Z", "nocopy", "shared", "slave", "private", "rshared", "rslave", "rprivate")
_TMPFS_FLAGS = ("ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "size", "mode", "uid", "gid")

_KILL = """kill -KILL -- -"$1" "$1" 2> /dev/null
for _ in {1..50}; do kill -0 -- -"$1" 2> /dev/null || exit 0; sleep 0.1; done
echo alive
"""
"""The process group of a command of `docker exec`, which leads a session of its own (runc)."""


@RUNTIMES.register("docker")
class Docker(Runtime):
    """Containers of docker's daemon; other programs with its command line say what differs."""

    name = "docker"
    programs = ("docker",)
    version: ClassVar[tuple[str, ...]] = ("docker", "version", "--format", "{{.Server.Version}}")
    unanswered = "Start the daemon, or let this user use it."
    sees_all = True
    apart = True
    copies = True

    owned = ("d", "detach", "i", "label", "name", "net", "network", "read-only", "shm-size", "t", "workdir")

    label: ClassVar[str] = f'{{{{.Label "{LABEL}"}}}}'
    """Template of our label in the list of containers."""

    storage: ClassVar[str] = "{{.DockerRootDir}}"
    """Template of the directory of images."""

    taken: ClassVar[str] = "Conflict. The container name"
    """What `run` says where a container has the name already; then it made none."""

    def check(self, spec: Spec, *, here: bool = False) -> None:
        if here:
            check_programs(self)
        if spec.image.path:
            reason = f"{self.name} runs no squashfs file"
            raise ConfigError("container.image", spec.image.path, reason, "Name the image, or use container=enroot.")
        if spec.name is not None and not _NAME.fullmatch(spec.name):
            reason = f"{self.name}'s names are letters, digits, _ . - and begin with a letter or digit"
            raise ConfigError("container.name", spec.name, reason, "Choose another name, or leave it out.")
        for key, given, usual in (("remap_root", spec.remap_root, True), ("mount_home", spec.mount_home, False)):
            if given is not usual:
                reason = f"{self.name}'s daemon decides the user, and knows no home"
                remedy = f"Leave container.{key} out, or use another runtime."
                raise ConfigError(f"container.{key}", given, reason, remedy)
        for mount in spec.mounts:
            self._mount_words(mount)

    def look(self, order: Order, env: Env) -> Stock:
        """The size of an image that is here does not matter: nothing more is needed."""
        image_id, digest = self._image(order.spec.image, env)
        root = "" if image_id else self.run(env, "info", "--format", self.storage, timeout_s=ANSWER_S).stdout.strip()
        needs = ((self.name, Path(root), 1.0, 1.0),) if root.startswith("/") else ()
        return Stock(image_id, digest, None if image_id is None else 0.0, needs)

    def _image(self, image: Image, env: Env) -> tuple[str | None, str | None]:
        """Return id and digest of what is here under a reference: its registry's digest, else the id; None: nothing."""
        form = "{{.Id}} {{json .RepoDigests}}"
        found = self.run(env, "image", "inspect", "--format", form, image.docker(), timeout_s=ANSWER_S)
        return read_image(found.stdout if found.returncode == 0 else "", image.docker_repository())

    def fetch(self, order: Order, env: Env) -> Fetched:
        self.sweep(order.local, env, tell)
        if order.folder is None:
            self._pull(order.spec.image, env)
            return Fetched()
        for argv in self.start(order).commands[:-1]:
            code, output = process.stream(argv, env, sys.stderr)
            if code != 0:
                raise self._clash(order.name, env) if self.taken in output else self.failure(argv, code, output)
        return Fetched()

    def _pull(self, image: Image, env: Env) -> None:
        reference = image.docker()
        if self._image(image, env)[0]:
            return
        if not image.remote:
            reason = f"{self.name} on this node has no such image"
            raise RunError("container.image", reference, reason, "Load it there, or name a registry.")
        argv = [self.name, "pull", reference]
        code, output = process.stream(argv, env, sys.stderr)
        if code != 0:
            raise self.failure(argv, code, output, "container.image", reference)

    def start(self, order: Order) -> Start:
        """A batch job has no terminal: detached, docker keeps one for the shell by itself."""
        inside = self.exec(order.name, order.command)
        program, run, *rest = self.run_argv(order.spec)
        if not order.tag:
            return Start(([program, run, *rest], inside))
        made = [program, run, "--detach", "--label", f"{LABEL}={owner(order.tag)}", *rest]
        return Start((made, *self.copies_of(order, order.folder), inside))

    def run_argv(self, spec: Spec) -> Argv:
        """Return the article's line: a container that waits in a shell, with the node's own network."""
        words = [self.name, "run"]
        if spec.name:
            words += ["--name", spec.name]
        words.append("--net=host")
        if spec.shm_size:
            words.append(f"--shm-size={spec.shm_size}")
        if not spec.writable:
            words.append("--read-only")
        for device in spec.devices:
            words += ["--device", device]
        for mount in spec.mounts:
            words += self._mount_words(mount)
        if spec.workdir:
            words += ["--workdir", spec.workdir]
        return [*words, *option_words(spec.args), "-it", spec.image.docker(), "bash"]

    def copies_of(self, order: Order, folder: Path | None) -> list[Argv]:
        """Return what puts a directory of the node into the container, under the same path, where it is not mounted."""
        if folder is None or not copied(self, order.spec):
            return []
        return [self.exec(order.name, ["mkdir", "-p", str(folder.parent)]),
                [self.name, "cp", str(folder), f"{order.name}:{folder}"]]  # fmt: skip

    def _mount_words(self, mount: Mount) -> list[str]:
        """Return the options of one mount. ConfigError: there are no words for it."""
        known = _FLAGS if mount.bind else _TMPFS_FLAGS
        unknown = [flag for flag in mount.flags if flag.partition("=")[0] not in known]
        if mount.source == "umount" or unknown:
            what = f"does not know {', '.join(unknown)}" if unknown else "cannot take a mount away"
            remedy = f"Use {', '.join(known)}, or another runtime."
            raise ConfigError("container.mounts", mount, f"{self.name} {what}", remedy)
        flags = f":{','.join(mount.flags)}" if mount.flags else ""
        return ["-v", f"{mount.source}:{mount.target}{flags}"] if mount.bind else ["--tmpfs", f"{mount.target}{flags}"]

    def exec(self, name: str, command: Sequence[str]) -> Argv:
        """Return what runs a command in a container. Its variables come from the entry script, not from here."""
        return [self.name, "exec", name, *command]

    def reach(self, order: Order, env: Env) -> Inside:
        return InDocker(self, order, env)

    def sweep(self, local: Local, env: Env, log: Log) -> list[str]:
        shown = self.ours(env)
        living = {owner(tag) for tag in process.tags()}  # asked last: a rank that begins meanwhile is not among them
        mine = owner("")  # not of another user of this daemon
        dead = [name for name, whose in shown.items() if whose.startswith(mine) and whose not in living]
        for name in dead:
            log(f"removing {name}, which was left behind")
            self.remove(name, env)
        return dead

    def ours(self, env: Env) -> dict[str, str]:
        """Return our containers of this node, of all users, and whose each is."""
        words = ("ps", "--all", "--filter", f"label={LABEL}", "--format", f"{{{{.Names}}}} {self.label}")
        lines = self.run(env, *words, timeout_s=ANSWER_S).stdout.splitlines()
        return dict(line.partition(" ")[::2] for line in lines)

    def remove(self, name: str, env: Env) -> None:
        """End everything in a container, and remove it."""
        self.run(env, "rm", "--force", name, timeout_s=REMOVE_S)

    def run(self, env: Env, *words: str, timeout_s: float = 60.0) -> CompletedProcess[str]:
        """Run a short command of the program."""
        return process.run([self.name, *words], env=env, timeout_s=timeout_s)

    def _clash(self, name: str, env: Env) -> RunError:
        """Return the error that says who has a name."""
        what = f'{{{{.State.Status}}}} {{{{.Config.Image}}}} {{{{index .Config.Labels "{LABEL}"}}}}'
        holder = self.run(env, "container", "inspect", "--format", what, name).stdout
        state, image, owned = (*holder.split(), "", "", "")[:3]
        uid, _, tag = owned.partition(":")
        whose = f"of the rank {tag} (job/service/rank) of user {uid}" if tag else "that this tool did not make"
        found = f"{state or 'in some state'}, of {image or 'some image'}, {whose}"
        return RunError(
            "container.name",
            name,
            f"{self.name} has a container of this name already, {found}",
            f"Put {{job}} into the name, or leave it out; `{self.name} rm --force {name}` removes it with all that runs"
            " in it.",
        )

    def failure(
        self, argv: Sequence[str], code: int, output: str, key: str = "container.runtime", value: str | None = None
    ) -> RunError:
        """Return the error for a command that failed."""
        reason = f"`{' '.join(argv[:2])}` ended with code {code}: {' '.join(output.split())[-300:]}"
        return RunError(key, value or self.name, reason, "Try it by hand on this node.")


class InDocker(Inside):
    """A container whose processes and files only docker reaches."""

    def __init__(self, docker: Docker, order: Order, env: Env) -> None:
        """Args: see `Inside`, and the program."""
        super().__init__(order, env)
        self._docker = docker

    def _exec(self, *command: str, timeout_s: float = 60.0) -> str:
        return process.run(self.join(command).commands[0], env=self.env, timeout_s=timeout_s).stdout

    def join(self, command: Sequence[str]) -> Start:
        return Start((self._docker.exec(self.order.name, command),))

    def read(self, path: Path) -> str:
        return self._exec("cat", str(path))

    def image_id(self) -> str | None:
        with contextlib.suppress(RunError):
            words = ("container", "inspect", "--format", "{{.Image}}", self.order.name)
            return self._docker.run(self.env, *words).stdout.strip() or None
        return None

    def terminate(self, pid: int) -> None:
        """A signal to `docker exec` does not reach its command."""
        self._exec("bash", "-c", 'kill -TERM "$1"', "bash", str(pid))

    def kill(self) -> list[str]:
        """It waits up to 5 s for the end of the whole process group."""
        pid, what = self.pid(), f"client in container {self.order.name}"
        try:
            lives = pid is not None and "alive" in self._exec("bash", "-c", _KILL, "bash", str(pid))
        except RunError as error:
            return [f"{what}: {error.reason}"]
        return [what] if lives else []

    def put(self, folder: Path) -> None:
        for argv in self._docker.copies_of(self.order, folder):
            self._copy(argv)

    def take(self, inside: Path, folder: Path) -> None:
        """The files are then the user's, and there may be none."""
        if not self._docker.copies:
            return super().take(inside, folder)
        self._copy([self._docker.name, "cp", f"{self.order.name}:{inside}/.", str(folder)], "Could not find the file")

    def _copy(self, argv: Argv, allowed: str | None = None) -> None:
        done = process.run(argv, env=self.env, timeout_s=COPY_S)
        if done.returncode != 0 and not (allowed and allowed in done.stderr):
            raise self._docker.failure(argv, done.returncode, done.stderr)

    def forget(self, folder: Path) -> None:
        self._exec("rm", "-rf", str(folder))

    def remove(self) -> list[str]:
        """What root wrote into a mounted directory only root can remove."""
        order, name = self.order, self.order.name
        if order.folder is None or self._docker.ours(self.env).get(name) != owner(order.tag):
            return []
        if not copied(self._docker, order.spec):
            self._exec("find", str(order.folder), "-mindepth", "1", "-delete", timeout_s=REMOVE_S)
        self._docker.remove(name, self.env)
        return [f"container {name}"] if self._docker.ours(self.env).get(name) == owner(order.tag) else []


def owner(tag: str) -> str:
    """Return the value of our label: this user and the rank that a container belongs to."""
    return f"{os.getuid()}:{tag}"


def read_image(output: str, repository: str) -> tuple[str | None, str | None]:
    """Return an image's id, and its digest: that of its repository where it has one, else the id."""
    found, _, rest = output.strip().partition(" ")
    try:
        digests = dict(one.split("@", 1) for one in json.loads(rest or "null") or [])
    except ValueError:
        digests = {}
    return found or None, digests.get(repository) or next(iter(digests.values()), None) or found or None
