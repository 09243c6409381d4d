"""Before the engines of a service start: each rank brings its container's image to its node, and unpacks it there.

It is part of the same phase as the weights (staging.py), and for the same reason: a headless vLLM gives up five minutes
after its start, and 15 GB may take longer to come. It begins with the phase, so that a runtime that is not there, or
an image that is not, is known at once and not after hours of staging.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from containers import enroot
from containers.spec import Spec
from jobs.allocation.node import container
from jobs.core import process
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError
from jobs.core.fields import CODE
from jobs.core.files import is_there, read_json, write_json
from jobs.core.log import last_line
from jobs.core.rundir import RankDir
from jobs.engines.vllm.environment import SCRUBBED

END_S = 5.0
"""SIGTERM until SIGKILL: the unpacked layers of an import are removed meanwhile."""


def outside(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of this host for what prepares a container: proxies, but nothing of a launcher."""
    return {name: value for name, value in inherited.items() if not name.startswith(SCRUBBED) or name == "SLURM_CONF"}


def with_us(host: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which `python -m containers` is found."""
    return {**host, "PYTHONPATH": os.pathsep.join(filter(None, (str(CODE), host.get("PYTHONPATH"))))}


def program(order: Path) -> list[str]:
    """Return what carries out an order."""
    return [sys.executable, "-m", "containers", str(order)]


def wanted(config: Config, rank: int, tag: str, points: Iterable[Config] = ()) -> Spec:
    """Return the container that is asked for, for a rank of this node. Only pyxis' may be without a name."""
    spec = container.wanted(config, rank, points, job=tag.partition("/")[0], host=socket.gethostname())
    return replace(spec, name=spec.name or (None if spec.runtime == "pyxis" else enroot.root_name(tag)))


async def prepare(
    config: Config, rank: int, folder: RankDir, tag: str, inherited: Mapping[str, str]
) -> Mapping[str, Any]:
    """Import, pull or unpack the image of one rank. Returns what was made: `unpacked`, the identity of enroot's root.

    Raises:
        RunError: the runtime is not on this node or failed, there is no such image, or `limits.image_s` is over.
    """
    if not in_container(config):
        return {}
    await asyncio.to_thread(container.check_host, config)
    spec = wanted(config, rank, tag)
    if spec.image.path:
        check_file(spec.image.path)
    limit = config.limits.image_s
    folder.image.unlink(missing_ok=True)
    write_json(folder.image_order, order(config, spec, rank, tag) | {"result": str(folder.image)})
    folder.enter("unpacking")
    env = with_us(outside(inherited))
    worker = await process.start(program(folder.image_order), env, folder.image_log, tag)
    try:
        async with asyncio.timeout(limit):
            ended = await worker.wait()
    except TimeoutError:
        reason = f"the image was not on this node in time: {last_line(folder.image_log)}"
        remedy = f"Raise the limit, or import it before: python -m jobs image import. See {folder.image_log}."
        raise RunError("limits.image_s", limit, reason, remedy) from None
    finally:
        if worker.ended is None:
            for left in await worker.stop(END_S):
                folder.note("failed", reason=f"left behind: {left}")
    found: dict[str, Any] = read_json(folder.image) if folder.image.exists() else {"error": None}
    if found.get("error"):
        raise RunError(*found["error"])
    if "error" in found:
        reason = f"its preparation {ended}: {last_line(folder.image_log)}"
        raise RunError("container.image", config.container.image, reason, f"See {folder.image_log}.")
    return found


def check_file(path: str) -> None:
    """Raise RunError where an image's file is not on this node, or cannot be seen."""
    if (there := is_there(Path(path))) is None:
        reason = "this user cannot see it on this node"
        raise RunError("container.image", path, reason, "Open the directory above it, or copy it elsewhere.")
    if not there or not Path(path).is_file():
        raise RunError("container.image", path, "there is no such file on this node", "Copy it there.")


def order(config: Config, spec: Spec, rank: int, tag: str) -> dict[str, Any]:
    """Return what `python -m containers` has to know of one rank's container."""
    paths = container.enroot_paths(config, tag.partition("/")[0], rank)
    made: dict[str, Any] = {"runtime": spec.runtime, "name": spec.name, "mark": tag, "file": spec.image.path}
    made |= {"image": asdict(spec.image), "store": str(container.images(config))}
    made |= {"enroot": {key: str(value) for key, value in asdict(paths).items()}}
    if spec.runtime == "docker":
        made |= {"reference": spec.image.docker(), "remote": spec.image.scheme == "docker"}
    if spec.runtime == "pyxis" and not may_import(spec):
        made["image"] = None
    return made


def may_import(spec: Spec) -> bool:
    """Whether pyxis' image can be imported once for all nodes. Else each step of pyxis does that by itself."""
    tools = shutil.which("enroot") and shutil.which("unsquashfs")
    return bool(tools) and spec.image.path is None and spec.image.scheme == "docker"


def discard(config: Config, rank: int, tag: str, inherited: Mapping[str, str]) -> list[str]:
    """Remove what was unpacked for an engine that did not start. Returns what is left of it."""
    if config.container.runtime != "enroot":
        return []
    name = str(wanted(config, rank, tag).name)
    paths = container.enroot_paths(config, tag.partition("/")[0], rank)
    try:
        return enroot.remove_made(name, tag, paths, outside(inherited))
    except RunError as error:
        return [f"container {name}: {error.reason}"]
