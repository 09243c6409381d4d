"""Asks the real code that is in an image: run.py in a closed container of it, on this host and without an NPU.

No device, no network, no right, nothing that it could write but its own /tmp; besides the image's files it sees our
program with its stand-ins, the sizes of the model, and what the point mounts, all of it read-only.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from containers import faults
from containers.base import Order, Runtime, check_file, own_name
from containers.spec import Image, Mount, Spec
from jobs.core import process
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import is_there, private_place
from jobs.engines.ascend.real import ask
from jobs.engines.ascend.real.ask import Answer

INSIDE = "/serving-sweep"
MOST = 64 << 20
"""Bytes that its program may print."""

OTHERWISE = "`check --real-packages` asks the release's published packages."
_NO_PROGRAM = re.compile(r"executable file .*not found|no such file or directory|command not found", re.IGNORECASE)


@dataclass(frozen=True)
class Told:
    """What an image said: the versions of its packages, "" where it has one without a version, and the answers.

    `left_out`: mounts of the point that were not made, since this host has them not, or they are none of files.
    """

    image: str
    left_out: tuple[str, ...]
    packages: Mapping[str, str]
    points: tuple[tuple[Answer, ...], ...]


def closed(spec: Spec) -> Spec:
    """Return the container in which an image is asked: what a point mounts and this host has, and nothing else."""
    mounts = [Mount(one.source, one.target, ("ro",)) for one in spec.mounts if one.bind and is_there(Path(one.source))]
    return Spec(spec.runtime, spec.image, mounts=tuple(mounts), writable=False, closed=True)


def ask_points(runtime: Runtime, wanted: Order, configs: Sequence[Config]) -> Told:
    """Return what the real code in an image makes of each rank of some points.

    Args:
        runtime: that of the points.
        wanted: their container as it is asked for, with the mounts that are theirs (see `closed`).
        configs: the points, all with this container.

    Raises:
        RunError: this host has not the runtime or the image, or there is no answer in it.
    """
    with _closed(runtime, wanted) as (order, folder):
        models = folder / "models"
        for config in configs:
            ask.model_in(models, config)
        lines = [ask.cases(config, Path(INSIDE, "models", ask.folder_of(config))) for config in configs]
        asked = [case for point in lines for case in point]
        ask.write_cases(folder / "cases", asked)
        for one in (folder, *folder.rglob("*")):  # it may be another user's there, and no root may read all
            one.chmod(0o755 if one.is_dir() else 0o644)
        code, output, errors = _run(runtime, order, ask.limit_s(asked))
    packages, found = ask.read_answers(output)
    if packages is None or set(found) != set(range(len(asked))):
        raise _wrong(order, packages, code, output, errors)
    answers = (Answer(found[at].get("config"), found[at].get("refused")) for at in range(len(asked)))
    where = f"{order.spec.image.path or order.spec.image.docker()} ({runtime.name})"
    made = {one.target for one in order.spec.mounts}
    left_out = tuple(str(one) for one in wanted.spec.mounts if one.target not in made)
    return Told(
        where, left_out, {name: version or "" for name, version in packages.items()}, ask.by_point(lines, answers)
    )


@contextlib.contextmanager
def _closed(runtime: Runtime, order: Order) -> Iterator[tuple[Order, Path]]:
    """Yield what is run, and the directory that it sees, with our program in it."""
    if not runtime.closes:
        reason = f"{runtime.name} cannot run a container here that is closed off from the node"
        raise RunError("container.runtime", runtime.name, reason, f"Use container=docker or podman. {OTHERWISE}")
    tag = f"check/{secrets.token_hex(4)}/0"
    with tempfile.TemporaryDirectory(dir=private_place(tempfile.gettempdir())) as name:
        folder = Path(name) / "seen"
        shutil.copytree(ask.HERE, folder / "real", ignore=shutil.ignore_patterns("__pycache__"))
        command = ("python3", *(str(PurePosixPath(INSIDE, one)) for one in ("real/run.py", "cases")))
        spec = closed(order.spec)
        mounts = (*spec.mounts, Mount(str(folder), INSIDE, ("ro",)))
        spec = replace(spec, mounts=mounts, name=None if runtime.unnamed else own_name(tag))
        yield replace(order, spec=spec, tag=tag, folder=folder, command=command), folder


def _run(runtime: Runtime, order: Order, limit_s: float) -> tuple[int, str, str]:
    """Run it; whatever ends the wait ends the container too. RunError: it cannot be run here, or does not end."""
    env, image = {**os.environ, process.TAG: order.tag}, str(order.spec.image)
    try:
        runtime.check(order.spec, here=True)
        if path := order.spec.image.path:
            check_file(path)
        elif runtime.look(order, env).digest is None:
            raise _absent(runtime, order.spec.image)
    except RunError as error:
        remedy = error.remedy if OTHERWISE in error.remedy else f"{error.remedy} {OTHERWISE}"
        raise RunError(error.key, error.value, error.reason, remedy) from None
    runtime.sweep(order.local, env, lambda _: None)
    start, inside = runtime.start(order), runtime.reach(order, env)
    try:
        return process.gather(start.commands[-1], {**env, **start.env}, limit_s, MOST)
    except RunError as error:
        raise RunError("container.image", image, f"its own code: {error.reason}", OTHERWISE) from None
    finally:
        inside.remove()


def _absent(runtime: Runtime, image: Image) -> RunError:
    reason = f"{runtime.name} on {socket.gethostname()} does not have it, and a check brings no image"
    remedy = f"Get it by `{runtime.brings.replace('IMAGE', image.docker())}`. {OTHERWISE}"
    return RunError("container.image", image, reason, remedy)


def _wrong(order: Order, packages: Mapping[str, str | None] | None, code: int, output: str, errors: str) -> RunError:
    """Return the error for an image that has not answered."""
    said = f"{errors}\n{output}"
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")[:300]
    lacking = [name for name, version in (packages or {}).items() if version is None]
    remedy = faults.for_this_processor(said.lower())
    if lacking:
        reason, remedy = f"there is no {lacking[0]} in it", f"Take an image of vllm-ascend. {OTHERWISE}"
    elif packages is not None:
        reason, remedy = f"its own code gave no answer (exit code {code}): {last}", OTHERWISE
    elif remedy:
        reason = "it is for another processor"
    elif code in (126, 127) and _NO_PROGRAM.search(said):
        reason, remedy = "there is no python3 in it", f"Take an image of vllm-ascend. {OTHERWISE}"
    else:
        reason, remedy = f"what it printed is no answer (exit code {code}): {last}", OTHERWISE
    return RunError("container.image", order.spec.image, reason, remedy)
