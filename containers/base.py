"""What a container runtime is: six methods and a few facts, one file a runtime, found by name in `RUNTIMES`.

`Order` is all that a runtime has to know of one rank's container. The rank writes it, `python -m containers` reads it
and becomes the engine; `Inside` is the running container as its rank reaches it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from containers import entry, imports
from containers.entry import Files, Proof
from containers.spec import Spec
from jobs.core.errors import RunError
from jobs.core.files import is_there, make_directory, not_private, read_json, write_json
from jobs.core.filetable import File
from jobs.core.foreign import form_of

Argv = list[str]
Env = Mapping[str, str]
Log = Callable[[str], None]


def log(text: str) -> None:
    """Tell a person what is going on, in the log of the engine or of its image."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Local:
    """Where a node keeps what outlives a container, or must not lie on a shared file system."""

    path: Path

    data = File("enroot/data", "unpacked images of enroot")
    cache = File("enroot/cache", "layers that enroot downloaded")
    temp = File("enroot/temp", "what an import unpacks: two to three times the image")
    run = File("enroot/run", "enroot's own")
    caches = File("caches", "kernels that NPU compilers made")
    claims = File("claims", "names of pyxis' containers, and the rank that each was made for last")

    def claim(self, name: str, node: str) -> Path:
        """Return the file that says which rank had the name of a container last on a node, where several share it."""
        return self.claims / f"{node}.{name}"

    def env(self) -> dict[str, str]:
        """Return the variables that tell enroot; a batch job lacks XDG_RUNTIME_DIR, so it needs them."""
        return {
            "ENROOT_DATA_PATH": str(self.data),
            "ENROOT_CACHE_PATH": str(self.cache),
            "ENROOT_RUNTIME_PATH": str(self.run),
            "ENROOT_TEMP_PATH": str(self.temp),
        }

    def make(self, *paths: Path) -> None:
        """Make directories below it, by default enroot's, for this user alone.

        Raises:
            RunError: one cannot be made, or is somebody else's: in /tmp anybody may have taken its name.
        """
        for path in (self.path, *(paths or map(Path, self.env().values()))):
            try:
                make_directory(path)
                wrong = not_private(path)
                wrong = wrong or (None if os.access(path, os.W_OK | os.X_OK) else "it cannot be written")
            except OSError as error:
                wrong = str(error)
            if wrong:
                remedy = "Name a directory of the node that is yours, with {uid} or {user} in it."
                raise RunError("container.local_dir", path, wrong, remedy)


@dataclass(frozen=True)
class Fetched:
    """What came of bringing an image to a node.

    Attributes:
        names: by which this image is told from others: `id`, `digest` of the registry, `content` of a file. Two nodes
            have one image where they agree in one of these; empty: the runtime brings it by itself.
        file: the image's file, where it is one.
        unpacked: identity of the root that was made of it; None: none was.
        entrypoint: whether the image has an ENTRYPOINT, which the runtime would put before a command.
        user: whether the image has another USER than root, as whom the runtime would run it.
        error: arguments of the error, if it could not be brought.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None
    unpacked: str | None = None
    entrypoint: bool = False
    user: bool = False
    error: tuple[str, str, str, str] | None = None

    @classmethod
    def read(cls, path: Path) -> Fetched | None:
        """Return what `write` wrote; None: nothing was written."""
        return form_of(Fetched).validate_python(read_json(path)) if path.exists() else None

    def write(self, path: Path) -> None:
        """Write it for the rank."""
        write_json(path, form_of(Fetched).dump_python(self, mode="json"))


@dataclass(frozen=True)
class Order:
    """The container of one rank.

    Attributes:
        spec: what it is asked to be.
        tag: of the rank's processes, job/service/rank; "": nobody's, a plan shows the commands.
        local: this user's directory on the node.
        store: directory of imported images, which all nodes see.
        node: name of this node, as Slurm knows it.
        folder: scratch of the rank on this node, with the files of the entry script; None: the image is brought alone.
        command: program and arguments inside.
        env: of what starts it; the engine's own variables come from the entry script.
        fetched: what was brought beforehand, which alone may be started; None: nothing was.
        result: file that takes what was brought or why not; None: the engine starts.
    """

    spec: Spec
    tag: str
    local: Local
    store: Path
    node: str = ""
    folder: Path | None = None
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    fetched: Fetched | None = None
    result: Path | None = None

    @property
    def job(self) -> str:
        """Id of the Slurm job."""
        return self.tag.partition("/")[0] or "{job_id}"

    @property
    def name(self) -> str:
        """Name of the container."""
        return self.spec.name or "{name}"

    @property
    def files(self) -> Files:
        """The files of the entry script."""
        assert self.folder is not None
        return Files(self.folder)

    @classmethod
    def read(cls, path: Path) -> Order:
        """Return what `write` wrote."""
        return form_of(Order).validate_python(read_json(path))

    def write(self, path: Path, mode: int = 0o644) -> None:
        """Write it for `python -m containers`."""
        write_json(path, form_of(Order).dump_python(self, mode="json"), mode)


@dataclass(frozen=True)
class Start:
    """Commands in their order; the last one becomes the engine or its client, with these variables besides."""

    commands: tuple[Argv, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stock:
    """What a node has of an image.

    Attributes:
        image_id: by which a container says what it was made of; None: it does not.
        digest: of the registry, else of the content; None: the image is not here.
        unpacked_gib: size of its root, GiB; None: not known before it is here.
        needs: config key or thing, directory, and how many times the image's size it takes during an import and after.
    """

    image_id: str | None = None
    digest: str | None = None
    unpacked_gib: float | None = None
    needs: tuple[tuple[str, Path, float, float], ...] = ()


class Inside:
    """The container of a rank, reached from its node: here its processes and files are the node's own."""

    def __init__(self, order: Order, env: Env) -> None:
        """Args: what was ordered, and the environment of this node for a runtime's own program."""
        self.order, self.env = order, env

    def read(self, path: Path) -> str:
        """Return the text of a file; OSError or RunError: there is none, or it cannot be reached."""
        return path.read_text(encoding="utf-8", errors="replace")

    def pid(self) -> int | None:
        """Return the process id of what was started, as the inside counts."""
        with contextlib.suppress(ValueError, OSError, RunError):
            return int(self.read(self.order.files.pid))
        return None

    def entered(self) -> float | None:
        """Return when the entry script began, Unix seconds; None: that is not to be seen."""
        with contextlib.suppress(OSError):
            return self.order.files.entered.stat().st_mtime
        return None

    def proof(self) -> Proof:
        """Return what the inside saw before it became the engine."""
        with contextlib.suppress(OSError, RunError):
            return entry.read_proof(self.read(self.order.files.proof))
        return entry.read_proof("")

    def image(self) -> str:
        """Return the image as it is recorded."""
        return str(self.order.spec.image)

    def image_id(self) -> str | None:
        """Return the id of the image that the container was made of; None: the runtime does not tell."""
        return None

    def fate(self) -> str | None:
        """Return how a container that stands apart ended before its engine did; None: it lives, or that is not told."""
        return None

    def join(self, command: Sequence[str]) -> Start:
        """Return what runs a further command in the container. RunError: the engine has not said where it is."""
        raise NotImplementedError

    def wake(self) -> None:
        """Let it go on where somebody has paused it: what stands still not even SIGKILL ends."""

    def terminate(self, pid: int) -> None:
        """Send SIGTERM to a process inside: its starter would not hand it on."""
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)

    def kill(self, tag: str) -> list[str]:
        """Kill what is left of a joined command where this node's processes do not show it. Returns what lives on.

        `tag`: of its processes.
        """
        return []

    def put(self, folder: Path) -> None:
        """Make a directory below the scratch seen inside, where it is not mounted."""

    def take(self, inside: Path, folder: Path) -> None:
        """Copy what a directory inside has, if it is there, to one of the node; OSError, RunError: that failed."""
        shutil.copytree(inside, folder, dirs_exist_ok=True)

    def forget(self, folder: Path) -> None:
        """Remove a directory inside that is not the node's."""

    def remove(self) -> list[str]:
        """Remove the container, if it was made for this rank. Returns what is left of it."""
        return []


class Runtime(Protocol):
    """A container runtime. A class of its own file, registered by its name, says the facts and has the six methods.

    Attributes:
        programs: that must be on PATH of a node.
        version: command that says the version, and fails where the runtime does not answer.
        unanswered: remedy where it does not answer.
        owned: options of its run command that have a key of their own, or are none of a user's (`container.args`).
        settings: variables of the host that its program wants besides the usual ones.
        of_slurm: it starts steps of a Slurm job, and so can be asked for on a login host.
        unnamed: a container may be without a name.
        is_engine: the process that starts a container becomes the engine, so that signals reach it.
        sees_all: root mounts, so that paths that this user cannot see can be mounted.
        apart: a container is apart from the job: it outlives it, and has a /dev/shm of its own.
        marks: a root can be marked from inside alone, by the entry script.
        copies: our files are copied into a container that can be written, so that its command line is the user's.
        brings: what a person types to bring an IMAGE to a host, where a closed container of it is wanted.
        closes: it has words for a closed container (`Spec.closed`), which `start` then runs as one command.
    """

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    version: ClassVar[tuple[str, ...]]
    unanswered: ClassVar[str] = "Try it by hand on this node."
    owned: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    of_slurm: ClassVar[bool] = False
    unnamed: ClassVar[bool] = False
    is_engine: ClassVar[bool] = False
    sees_all: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    marks: ClassVar[bool] = False
    copies: ClassVar[bool] = False
    brings: ClassVar[str] = ""
    closes: ClassVar[bool] = False

    def check(self, spec: Spec, *, here: bool = False) -> None:
        """Raise ConfigError for what it has no words for; `here`: RunError where this host cannot run it at all."""

    def look(self, order: Order, env: Env) -> Stock:
        """Return what this node has of the image. RunError: the runtime is not here, or hangs."""

    def fetch(self, order: Order, env: Env) -> Fetched:
        """Bring the image; where the engine is to start, do all that comes before the last command of `start`.

        Raises:
            RunError: the runtime failed, there is no such image, the container's name is somebody else's, or what it
                was made of is not what was brought beforehand (`order.fetched`).
        """

    def start(self, order: Order) -> Start:
        """Return the commands of a container; of a planned one, those that a person would type."""

    def reach(self, order: Order, env: Env) -> Inside:
        """Return the container that was started."""

    def sweep(self, local: Local, env: Env, log: Log) -> list[str]:
        """Remove what dead ranks of this user left on this node: here their imports. Returns the names of what went.

        Raises:
            RunError: the runtime is not here, or hangs.
        """
        return imports.sweep(local.temp)


def own_name(tag: str) -> str:
    """Return the name of the container of one rank, from its tag job/service/rank."""
    return imports.PREFIX + tag.replace("/", ".")


def copied(runtime: Runtime, spec: Spec) -> bool:
    """Whether our files are copied into this container, not mounted: the root of one that is read-only takes none."""
    return runtime.copies and spec.writable


def check_programs(runtime: Runtime) -> None:
    """Raise RunError where a program of a runtime is not on PATH."""
    for program in runtime.programs:
        if not shutil.which(program):
            reason = f"there is no {program} on PATH on {socket.gethostname()}"
            raise RunError("container.runtime", runtime.name, reason, f"Install {program} there, or use another one.")


def check_file(path: str) -> None:
    """Raise RunError where an image's file is not on this node, or cannot be seen."""
    if (there := is_there(Path(path))) is None:
        reason = "this user cannot see it on this node"
        raise RunError("container.image", path, reason, "Open the directory above it, or copy it elsewhere.")
    if not there or not Path(path).is_file():
        raise RunError("container.image", path, "there is no such file on this node", "Copy it there.")


def lost(reason: str) -> RunError:
    """Return the error for a container that a client cannot join."""
    return RunError("bench.where", "container", f"the engine's container cannot be joined: {reason}", "See server.log.")


def clash(name: str, found: str, removal: str) -> RunError:
    """Return the error for a container's name that is taken: by whom, and what removes that one."""
    return RunError("container.name", name, found, f"Put {{job}} into the name, or leave it out; {removal}")
