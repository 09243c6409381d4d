"""docker: the article's `docker run` (3.1), then `docker exec` for what it types inside.

Its containers are children of its daemon, outside of Slurm's cgroup: after a rank was killed its engine goes on there,
and holds its NPUs. Their processes are the daemon's, with ids of their own, so they are reached by `docker exec`.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from socket import gethostname
from subprocess import CompletedProcess
from typing import ClassVar

from containers import base, faults
from containers.base import Argv, Env, Fetched, Inside, Local, Log, Order, Runtime, Start, Stock
from containers.base import log as tell
from containers.held import FORM, Held, read_image
from containers.spec import REGISTRY, Image, Mount, Spec, option_words
from jobs.core import process
from jobs.core.errors import ConfigError, RunError
from jobs.core.foreign import from_yaml
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

_FAULTS = from_yaml(Path(__file__).with_name("docker.yaml").read_text(encoding="utf-8"))["faults"]
_NO_IMAGE = ("No such image", "no such image", "image not known")
_NO_CONTAINER = ("No such container", "no such container", "is not running", "container state improper")

KILL = Path(__file__).with_name("kill.sh").read_text(encoding="utf-8")
"""The process group of a command of `docker exec`, and what it left in other ones, by the tag. Only bash is needed."""


@RUNTIMES.register("docker")
class Docker(Runtime):
    """Containers of docker's daemon; other programs with its command line say what differs."""

    name = "docker"
    programs = ("docker",)
    version: ClassVar[tuple[str, ...]] = ("docker", "version", "--format", "{{.Server.Version}}")
    unanswered = "Start the daemon, or let this user use it."
    sees_all = True
    leaves_files: ClassVar[bool] = False
    """Whether it writes files of its own where it is started: then in the rank's scratch."""
    apart = True
    copies = True
    closes = True
    brings: ClassVar[str] = "docker pull IMAGE"

    owned = ("d", "detach", "i", "label", "name", "net", "network", "read-only", "shm-size", "t", "u", "user",
             "workdir")  # fmt: skip

    own_scheme: ClassVar[str] = "dockerd"
    """Scheme of its own images that no registry has."""

    label: ClassVar[str] = f'{{{{.Label "{LABEL}"}}}}'
    """Template of our label in the list of containers."""
    storage: ClassVar[str] = "{{.DockerRootDir}}"
    """Template of the directory of images."""
    taken: ClassVar[str] = "Conflict. The container name"
    """What `run` says where a container has the name already; then it made none."""

    at_once: ClassVar[tuple[str, ...]] = ()
    """Words without which `rm` would wait for a shell to end."""

    def check(self, spec: Spec, *, here: bool = False) -> None:
        if here:
            base.check_programs(self)
        if spec.image.path:
            reason = f"{self.name} runs no squashfs file"
            raise ConfigError("container.image", spec.image.path, reason, "Name the image, or use container=enroot.")
        if spec.image.scheme not in (REGISTRY, self.own_scheme):
            reason = f"{self.name} has no images of {spec.image.scheme}"
            raise ConfigError("container.image", spec.image, reason, f"Write {self.own_scheme}://, or name a registry.")
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
        if held := self._held(order.spec.image, env):
            return Stock(held.id, held.digest or held.elsewhere or held.id, 0.0)
        root = self._told(env, "info", "--format", self.storage).strip()
        return Stock(needs=((self.name, Path(root), 1.0, 1.0),) if root.startswith("/") else ())

    def _held(self, image: Image, env: Env) -> Held | None:
        """Return what is here under a reference; None: nothing. RunError: the program did not say."""
        argv = [self.name, "image", "inspect", "--format", FORM, image.docker()]
        found = process.run(argv, env=env, timeout_s=ANSWER_S)
        if found.returncode == 0:
            return read_image(found.stdout, image)
        if any(words in found.stderr for words in _NO_IMAGE):
            return None
        raise self.failure(argv, found.returncode, found.stderr)

    def fetch(self, order: Order, env: Env) -> Fetched:
        self.sweep(order.local, env, tell)
        fetched = order.fetched or self._bring(order.spec.image, env)
        if order.folder is None:
            return fetched
        first, *rest = self.start(replace(order, fetched=fetched)).commands[:-1]
        self._do(first, order, env)
        self._check_up(order, fetched, env)
        for argv in rest:
            try:
                self._do(argv, order, env)
            except RunError:
                self._check_up(order, fetched, env)  # its shell says why, if it has ended
                raise
        return fetched

    def _do(self, argv: Argv, order: Order, env: Env) -> None:
        code, output = process.stream(argv, env, sys.stderr, order.folder if self.leaves_files else None)
        if code != 0:
            raise self._clash(order.name, env) if self.taken in output else self.failure(argv, code, output)

    def _check_up(self, order: Order, fetched: Fetched, env: Env) -> None:
        """Raise RunError where the container is not made of the image that was brought, or has ended at once."""
        form = "{{.State.Running}} {{.Image}}"
        runs, _, made = self._told(env, "container", "inspect", "--format", form, order.name).strip().partition(" ")
        wanted, reference = fetched.names.get("id", made), order.spec.image.docker()
        if made != wanted:
            reason = f"on {gethostname()} it was {wanted} when this service was prepared, and is {made} by now"
            remedy = "Name the image by its digest, NAME@sha256:..., so that no tag can move."
            raise RunError("container.image", reference, reason, remedy)
        if runs != "true":
            last = self.last_words(order.name, env)
            reason = f"on {gethostname()} its shell ended at once, and the container with it; it said: {last}"
            remedy = faults.for_this_processor(last) or "Take one whose `bash` waits on a terminal."
            raise RunError("container.image", reference, reason, remedy)

    def last_words(self, name: str, env: Env) -> str:
        """Return what the shell of a container that has ended said last."""
        said = self.run(env, "logs", "--tail", "20", name, timeout_s=ANSWER_S)
        return " ".join((said.stdout + said.stderr).split())[-300:] or "(nothing)"

    def _bring(self, image: Image, env: Env) -> Fetched:
        """Pull an image that is not here. Returns which one is here then."""
        reference = image.docker()
        if (held := self._held(image, env)) is None:
            if not image.remote:
                reason = f"{self.name} on this node has no such image"
                raise RunError("container.image", reference, reason, "Load it there, or name a registry.")
            argv = [self.name, "pull", reference]
            code, output = process.stream(argv, env, sys.stderr)
            if code != 0:
                raise self.failure(argv, code, output, "container.image", reference)
            held = self._held(image, env)
        if held is None:
            reason = f"`{self.name} pull` on {gethostname()} ended well, and the image is not there"
            raise RunError("container.image", reference, reason, "See what else removes images on that node.")
        return Fetched(held.names, entrypoint=held.entrypoint, user=held.user)

    def start(self, order: Order) -> Start:
        """A batch job has no terminal: detached, docker keeps one for the shell by itself."""
        if order.spec.closed:
            return Start((self.closed_argv(order),))
        inside = self.exec(order.name, order.command)
        program, run, *rest = self.run_argv(order.spec, order.fetched or Fetched())
        if not order.tag:
            return Start(([program, run, *rest], inside))
        made = [program, run, "--detach", "--label", f"{LABEL}={owner(order.tag)}", *rest]
        return Start((made, *self.copies_of(order, order.folder), inside))

    def run_argv(self, spec: Spec, image: Fetched) -> Argv:
        """Return the article's line: a container that waits in a shell, with the node's own network.

        An ENTRYPOINT of the image would be given the shell as its argument (`vllm serve bash`), and another USER than
        root cannot read our files: both are stepped over, as enroot and pyxis do.
        """
        words = [self.name, "run", *(["--name", spec.name] if spec.name else []), "--net=host"]
        words += [f"--shm-size={spec.shm_size}"] if spec.shm_size else []
        words += [] if spec.writable else ["--read-only"]
        for device in spec.devices:
            words += ["--device", device]
        for mount in spec.mounts:
            words += self._mount_words(mount)
        if spec.workdir:
            words += ["--workdir", spec.workdir]
        words += ["--user", "0:0"] if image.user else []
        words += option_words(spec.args)
        if not image.entrypoint or "entrypoint" in spec.args:
            return [*words, "-it", spec.image.docker(), "bash"]
        return [*words, "--entrypoint", "bash", "-it", spec.image.docker()]

    def closed_argv(self, order: Order) -> Argv:
        """Return what runs one command in a container of its own: it reads as root does, and changes nothing."""
        program, *arguments = order.command
        words = [self.name, "run", "--rm", "--pull", "never", "--name", order.name]
        words += ["--label", f"{LABEL}={owner(order.tag)}", "--network", "none", "--read-only", "--tmpfs", "/tmp:exec"]
        words += ["--user", "0:0", "--cap-drop", "ALL", "--cap-add", "DAC_OVERRIDE", "--log-driver", "none"]
        words += ["--security-opt", "no-new-privileges", "--workdir", "/"]
        words += [word for mount in order.spec.mounts for word in self._mount_words(mount)]
        return [*words, "--entrypoint", program, order.spec.image.docker(), *arguments]

    def copies_of(self, order: Order, folder: Path | None) -> list[Argv]:
        """Return what puts a directory of the node into the container, under the same path, where it is not mounted."""
        if folder is None or not base.copied(self, order.spec):
            return []
        return [self.exec(order.name, ["mkdir", "-p", str(folder.parent)]),
                [self.name, "cp", str(folder), f"{order.name}:{folder}"]]  # fmt: skip

    def _mount_words(self, mount: Mount) -> list[str]:
        """Return the options of one mount. ConfigError: there are no words for it."""
        known = _FLAGS if mount.bind else _TMPFS_FLAGS
        unknown = [flag for flag in mount.flags if flag.partition("=")[0] not in known]
        if mount.source == "umount" or unknown:
            what = f"does not know {', '.join(unknown)}" if unknown else "cannot take a mount away"
            remedy = (
                f"Use {', '.join(known)}, or another runtime." if unknown else "Leave it out, or use container=enroot."
            )
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
        left = self.ours(env) if dead else {}
        for name in [one for one in dead if one in left]:
            log(f"{name} is still there, and holds what it holds: `{self.name} rm --force {name}` says why")
        return [name for name in dead if name not in left]

    def ours(self, env: Env) -> dict[str, str]:
        """Return our containers of this node, of all users, and whose each is. RunError: the program did not say."""
        words = ("ps", "--all", "--filter", f"label={LABEL}", "--format", f"{{{{.Names}}}} {self.label}")
        lines = self._told(env, *words).splitlines()
        return dict(line.partition(" ")[::2] for line in lines)

    def remove(self, name: str, env: Env) -> None:
        """End everything in a container, and remove it, with what its image calls a VOLUME."""
        self.run(env, "rm", "--force", "--volumes", *self.at_once, name, timeout_s=REMOVE_S)

    def run(self, env: Env, *words: str, timeout_s: float = 60.0) -> CompletedProcess[str]:
        """Run a short command of the program."""
        return process.run([self.name, *words], env=env, timeout_s=timeout_s)

    def _told(self, env: Env, *words: str) -> str:
        """Return the answer of a short command. RunError: it failed, which says nothing of what is there."""
        done = self.run(env, *words, timeout_s=ANSWER_S)
        if done.returncode != 0:
            raise self.failure([self.name, *words], done.returncode, done.stderr)
        return done.stdout

    def _clash(self, name: str, env: Env) -> RunError:
        """Return the error that says who has a name."""
        what = f'{{{{.State.Status}}}} {{{{.Config.Image}}}} {{{{index .Config.Labels "{LABEL}"}}}}'
        holder = self.run(env, "container", "inspect", "--format", what, name).stdout
        state, image, owned = (*holder.split(), "", "", "")[:3]
        uid, _, tag = owned.partition(":")
        whose = f"of the rank {tag} (job/service/rank) of user {uid}" if tag else "that this tool did not make"
        found = f"{state or 'in some state'}, of {image or 'some image'}, {whose}"
        removal = f"`{self.name} rm --force {name}` removes it with all that runs in it."
        return base.clash(name, f"{self.name} has a container of this name already, {found}", removal)

    def failure(
        self, argv: Sequence[str], code: int, output: str, key: str = "container.runtime", value: str | None = None
    ) -> RunError:
        """Return the error for a command that failed."""
        return faults.failure(argv, code, output, key, value or self.name, _FAULTS)


class InDocker(Inside):
    """A container whose processes and files only docker reaches."""

    def __init__(self, docker: Docker, order: Order, env: Env) -> None:
        """Args: see `Inside`, and the program."""
        super().__init__(order, env)
        self._docker = docker

    def _exec(self, *command: str, timeout_s: float = 60.0) -> str:
        """Return what a command inside said. RunError: it failed, or the container cannot be reached."""
        argv = self.join(command).commands[0]
        done = process.run(argv, env=self.env, timeout_s=timeout_s)
        if done.returncode != 0:
            raise self._docker.failure(argv, done.returncode, done.stderr)
        return done.stdout

    def join(self, command: Sequence[str]) -> Start:
        return Start((self._docker.exec(self.order.name, command),))

    def read(self, path: Path) -> str:
        return self._exec("cat", str(path))

    def entered(self) -> float | None:
        with contextlib.suppress(RunError, ValueError):
            return float(self._exec("stat", "--format", "%.Y", str(self.order.files.entered)))
        return None

    def _inspect(self, form: str) -> CompletedProcess[str]:
        return self._docker.run(self.env, "container", "inspect", "--format", form, self.order.name)

    def image_id(self) -> str | None:
        with contextlib.suppress(RunError):
            return self._inspect("{{.Image}}").stdout.strip() or None
        return None

    def fate(self) -> str | None:
        try:
            words = self._exec("bash", "-c", 'kill -0 "$1" && echo lives', "bash", str(self.pid() or "none"))
        except RunError as error:
            done = self._inspect("{{.State.Status}} with code {{.State.ExitCode}}")
            if done.returncode != 0:
                gone = any(words in done.stderr for words in _NO_CONTAINER)
                return "its container was removed from outside" if gone else error.reason
            if done.stdout.startswith("running"):
                return None
            last = self._docker.last_words(self.order.name, self.env)
            said = f"; it said: {last}. {remedy}" if (remedy := faults.for_this_processor(last)) else ""
            return f"its container has ended: {done.stdout.strip()}{said}"
        return "it lives on: its client lost it, as where a daemon is restarted" if "lives" in words else None

    def wake(self) -> None:
        self._docker.run(self.env, "unpause", self.order.name)

    def terminate(self, pid: int) -> None:
        """A signal to `docker exec` does not reach its command. It may have ended by itself meanwhile."""
        self._exec("bash", "-c", 'kill -TERM "$1" || ! kill -0 "$1"', "bash", str(pid))

    def kill(self, tag: str) -> list[str]:
        """It waits 5 s and more for the end of them all."""
        pid, what = self.pid(), f"client in container {self.order.name}"
        try:
            mark = f"{process.TAG}={tag}"
            lives = pid is not None and "alive" in self._exec("bash", "-c", KILL, "bash", str(pid), mark)
        except RunError as error:
            gone = any(words in error.reason for words in _NO_CONTAINER)
            return [] if gone else [f"{what}: {error.reason}"]
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
        if not base.copied(self._docker, order.spec) and not order.spec.closed:
            with contextlib.suppress(RunError):  # it may have ended
                self._exec("find", str(order.folder), "-mindepth", "1", "-delete", timeout_s=REMOVE_S)
        self._docker.remove(name, self.env)
        return [f"container {name}"] if self._docker.ours(self.env).get(name) == owner(order.tag) else []


def owner(tag: str) -> str:
    """Return the value of our label: this user and the rank that a container belongs to."""
    return f"{os.getuid()}:{tag}"
