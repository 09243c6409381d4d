"""Before the engines of a service start: each rank stages and checks its checkpoint, and rank 0 compares.

It is a phase of its own, since a headless vLLM gives up five minutes after its start if the head is not there: no
engine starts before every rank has its weights, and its container's image (image.py), which comes at the same time.
The work is done by `python -m jobs.engines.checkpoint` (see there, why).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from jobs.allocation.node import container, image
from jobs.core import process
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError
from jobs.core.files import is_there
from jobs.core.log import last_line, read_tail
from jobs.core.rundir import RankDir
from jobs.engines.checkpoint.manifest import SAMPLED
from jobs.engines.checkpoint.stage import StageOrder, read_answer
from jobs.engines.vllm import environment

if TYPE_CHECKING:
    from jobs.allocation.node.engine import Engine

POLL_S = 2.0
_PROGRESS = re.compile(r"^staged (\S+/\S+ GiB)", re.MULTILINE)

Parts = Mapping[str, str]
"""Short hashes of a rank's checkpoint: of its sizes, and of the files that describe it; the names of its image."""

RATE = "GB/s"
"""Among the parts: how fast a rank's node has copied the checkpoint, which is compared otherwise."""

SLOW = 0.5
"""A node that reads at less than this share of another's rate is named."""


def wanted(config: Config) -> bool:
    """Return whether there is anything to do: an image to bring, or a checkpoint to stage or check."""
    return in_container(config) or _weights_wanted(config)


def _weights_wanted(config: Config) -> bool:
    model = config.model
    if not config.engine.checks_model_path:
        return False
    # A path that only the image has, or only docker's daemon sees, cannot be checked from outside.
    inside = in_container(config) and not is_there(container.checkpoint(config))
    return model.stage_to is not None or (model.verify != "none" and not inside)


def served_from(config: Config, path: str) -> Config:
    """Return the config of an engine that serves a staged copy; clients keep the name that they know."""
    name = config.model.name_for_clients
    return replace(config, model=replace(config.model, path=path, served_model_name=name))


async def prepare(engine: Engine, inherited: Mapping[str, str]) -> Parts:
    """Bring this rank's image and its checkpoint, both at once; what fails first ends the other.

    Raises:
        RunError: one of them is damaged or cannot be brought, or its limit is over.
    """
    both = [asyncio.create_task(engine.unpack(inherited)), asyncio.create_task(_stage(engine, inherited))]
    try:
        await asyncio.gather(*both)
    finally:
        for one in both:
            one.cancel()
        image_parts, parts = await asyncio.gather(*both, return_exceptions=True)
    return {**cast(Parts, image_parts), **cast(Parts, parts)}


async def _stage(engine: Engine, inherited: Mapping[str, str]) -> Parts:
    """Stage and check this rank's checkpoint; the engine then serves the staged copy.

    Raises:
        RunError: it is damaged, cannot be staged, or `limits.stage_s` is over.
    """
    config, folder = engine.config, engine.folder
    if not _weights_wanted(config):
        return {}
    model, limit = config.model, config.limits.stage_s
    order = StageOrder(
        source=str(container.checkpoint(config)),
        stage_to=model.stage_to,
        check=model.verify != "none",
        sampled=SAMPLED if model.verify == "sampled" else 0,
        quantized=model.quantized,
        weights=model.load_format != "dummy",
        result=str(folder.checkpoint),
    )
    order.write(folder.staging)
    folder.enter("staging" if model.stage_to else "checking")
    argv = process.python("jobs.engines.checkpoint", str(folder.staging))
    worker = await process.start(argv, environment.whole({}, inherited), folder.staging_log, engine.tag)
    try:
        async with asyncio.timeout(limit):
            await _attend(worker, folder)
    except TimeoutError:
        reason = f"the checkpoint was not staged and checked in time: {last_line(folder.staging_log)}"
        raise RunError("limits.stage_s", limit, reason, "Raise the limit, or stage it before.") from None
    finally:
        if worker.ended is None:
            for left in await worker.stop(0):
                folder.note("failed", reason=f"left behind: {left}")
    staged = read_answer(folder.checkpoint)
    if staged is None:
        remedy = f"See {folder.staging_log}."
        reason = f"staging {worker.ended}: {last_line(folder.staging_log)}"
        raise RunError("model.path", model.path, reason, remedy)
    if model.stage_to:
        engine.config = served_from(config, staged.path)
    return staged.parts | ({RATE: f"{staged.gb_s:.4f}"} if staged.gb_s else {})


async def _attend(worker: process.Process, folder: RankDir) -> None:
    """Wait for the end of the work, and record how far it is."""
    ended, told = asyncio.ensure_future(worker.wait()), ""
    try:
        while not ended.done():
            await asyncio.wait({ended}, timeout=POLL_S)
            found = _PROGRESS.findall(read_tail(folder.staging_log, 4096))
            if found and found[-1] != told:
                told = found[-1]
                folder.note("staging", staged=told)
    finally:
        ended.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ended


def rates(prepared: Mapping[int, Parts]) -> dict[int, float]:
    """Return how fast each rank has copied its checkpoint, GB/s; without those that had nothing to copy."""
    return {rank: float(parts[RATE]) for rank, parts in prepared.items() if RATE in parts}


def slow(what: str, by_rank: Mapping[int, float]) -> list[str]:
    """Return which rank's node has read the checkpoint much slower than another's; `what` it was read for."""
    best = max(by_rank.values(), default=0.0)
    return [
        f"rank {rank}: its node has read the checkpoint for {what} at {rate:.2f} GB/s, another one at {best:.2f} GB/s:"
        " compare mounts, disks and network of both"
        for rank, rate in sorted(by_rank.items())
        if rate < SLOW * best
    ]


def with_image(parts: Parts, other: Parts) -> Parts:
    """Return the parts of a rank that has brought another image."""
    return {name: value for name, value in parts.items() if not name.startswith(image.PART)} | dict(other)


def unknown_images(config: Config, prepared: Mapping[int, Parts]) -> list[str]:
    """Return what is to be known of ranks whose image could not be compared with the others'."""
    ranks = [rank for rank, parts in sorted(prepared.items()) if not any(name.startswith(image.PART) for name in parts)]
    if not in_container(config) or len(prepared) == 1:
        return []
    what = f"{config.container.runtime} brings the image itself, so that it is not known to be that of the other ranks"
    return [f"rank {rank}: {what}" for rank in ranks]


def difference(prepared: Mapping[int, Parts]) -> tuple[int, str] | None:
    """Return the first rank whose image or checkpoint is not rank 0's, and how it differs; None: all have the same."""
    first = prepared[0]
    for rank in sorted(prepared):
        parts = prepared[rank]
        if other := image.difference(first, parts):
            return rank, f"{other}. {image.remedy(first)}"
        names = sorted(
            name for name in first.keys() | parts.keys() if not (name == RATE or name.startswith(image.PART))
        )
        differing = [name for name in names if first.get(name) != parts.get(name)]
        if differing:
            words = ", ".join(f"{name} ({first.get(name, 'none')} there)" for name in differing)
            return rank, f"its checkpoint is not that of rank 0: another {words}; see checkpoint.json of both ranks"
    return None
