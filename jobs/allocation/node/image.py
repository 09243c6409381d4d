"""Before the engines of a service start: each rank brings its container's image to its node, and unpacks it there.

It is part of the same phase as the weights (staging.py), and for the same reason: a headless vLLM gives up five minutes
after its start, and 15 GB may take longer to come. It begins with the phase, so that a runtime that is not there, or
an image that is not, is known at once and not after hours of staging.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from containers.base import Fetched, check_file
from jobs.allocation.node import container
from jobs.allocation.node.container import RankContainer
from jobs.core import process
from jobs.core.config import in_container
from jobs.core.errors import RunError
from jobs.core.fields import CODE
from jobs.core.log import last_line
from jobs.core.rundir import RankDir
from jobs.core.waiting import aside

END_S = 5.0
"""SIGTERM until SIGKILL: the unpacked layers of an import are removed meanwhile."""


def with_us(host: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which `python -m containers` is found."""
    return {**host, "PYTHONPATH": os.pathsep.join(filter(None, (str(CODE), host.get("PYTHONPATH"))))}


def program(order: Path) -> list[str]:
    """Return what carries out an order."""
    return process.python("containers", str(order))


PART = "image "
"""Before the names of an image among what the ranks tell each other of what they prepared."""

NONE = "none"
"""The name of an image that a registry has not under its name; its value is what was said."""


def parts(fetched: Fetched | None) -> dict[str, str]:
    """Return the names of an image as parts of what a rank has prepared."""
    return {PART + name: value for name, value in fetched.names.items()} if fetched else {}


def difference(first: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """Return how the image of a rank differs from rank 0's, by the parts of both; None: not, or that cannot be told.

    An id differs where two daemons keep images in different ways, and a file's content where each node made its own of
    one digest: where they agree in one name they are one.
    """
    if gone := other.get(PART + NONE):
        return f"it has not the container image of rank 0: {gone}"
    names = [name for name in first.keys() & other.keys() if name.startswith(PART)]
    if not names or any(first[name] == other[name] for name in names):
        return None
    words = ", ".join(f"{name.removeprefix(PART)} {other[name]} ({first[name]} there)" for name in sorted(names))
    return f"its container image is not that of rank 0: {words}"


def remedy(parts: Mapping[str, str]) -> str:
    """Return what makes the images of all ranks one, by the parts of one of them."""
    if parts.keys() & {PART + "id", PART + "digest"}:
        return "Pull it again on both nodes, or name it by its digest: container.image=NAME@sha256:..."
    return "Copy one file to all nodes."


def of_registry(parts: Mapping[str, str]) -> str | None:
    """Return the digest by which a registry has a rank's image; None: that of its file is all that is known."""
    digest, content = (parts.get(PART + name) for name in ("digest", "content"))
    return digest if digest != f"sha256:{content}" else None


async def prepare(which: RankContainer, folder: RankDir) -> Fetched | None:
    """Import, pull or unpack the image of one rank. Returns what was brought; None: there is no container.

    Raises:
        RunError: the runtime is not on this node or failed, there is no such image, or `limits.image_s` is over.
    """
    config = which.config
    if not in_container(config):
        return None
    await aside(container.check_host, config)
    spec = which.spec()
    if spec.image.path:
        check_file(spec.image.path)
    limit = config.limits.image_s
    folder.image.unlink(missing_ok=True)
    which.order(spec, result=folder.image.absolute()).write(folder.image_order)
    folder.enter("unpacking")
    worker = await process.start(program(folder.image_order), with_us(which.host), folder.image_log, which.tag)
    made = None
    try:
        async with asyncio.timeout(limit):
            ended = await worker.wait()
        made = Fetched.read(folder.image)
    except TimeoutError:
        reason = f"the image was not on this node in time: {last_line(folder.image_log)}"
        remedy = f"Raise the limit, or import it before: python -m jobs image import. See {folder.image_log}."
        raise RunError("limits.image_s", limit, reason, remedy) from None
    finally:
        # One that was killed left its children, and what stages weights ends with it: the service cannot start.
        if made is None or made.error:
            for left in await worker.stop(END_S):
                folder.note("failed", reason=f"left behind: {left}")
    if made is None:
        reason = f"its preparation {ended}: {last_line(folder.image_log)}"
        raise RunError("container.image", config.container.image, reason, f"See {folder.image_log}.")
    if made.error:
        raise RunError(*made.error)
    return made


def discard(which: RankContainer) -> list[str]:
    """Remove what was unpacked for an engine that did not start. Returns what is left of it."""
    if not in_container(which.config):
        return []
    order = which.order()
    try:
        return which.runtime.reach(order, which.host).remove()
    except RunError as error:
        return [f"container {order.name}: {error.reason}"]
