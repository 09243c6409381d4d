"""The container of an NPU engine: its image's tag, and what the official `docker run` lines have (K1 to K4)."""

from __future__ import annotations

from collections.abc import Iterator

from containers.spec import size_bytes
from jobs.core.config import in_container
from jobs.core.errors import ConfigError
from jobs.engines.ascend import release as described
from jobs.engines.ascend import releases
from jobs.engines.ascend.rules.base import NPU, Problem, Question, rule

RUN = "vllm-ascend v0.13.0, docs/source/tutorials/DeepSeek-R1.md, docker run"
TOOLS = ("hccn_tool", "hccn.conf")
"""Ends of what the HCCN tool needs in a container; the guides mount both since v0.13."""


def _tag(q: Question) -> str:
    """Return the tag of the image; empty: there is no container, no tag (a recipe's name), or another repository."""
    container = q.config.container
    repository, _, tag = (container.image or "").rpartition(":")
    if not in_container(q.config) or "/" in tag:
        return ""
    return tag if repository.endswith("vllm-ascend") else ""


@rule("K1", "warning", "all", "vllm-ascend, image workflows: a branch's tag follows the branch", NPU)
def moving_tag(q: Question) -> Iterator[Problem]:
    """A tag that changes its content: two runs of one config may be two engines."""
    tag, image = _tag(q), q.config.container.image
    reason = "it is the tag of a branch: its content changes, and rows of two days may be of two engines"
    for name in releases() if tag else ():
        if fixed := described(name).moving_images.get(tag):
            base = described(name).images.get(str(fixed.value))
            remedy = f"Pin {fixed.value}" + (f" ({base.value})." if base else ".")
            yield Problem("container.image", image, reason, remedy, source=fixed.source)
            return
    if tag and (tag in ("latest", "main") or tag.endswith("-dev") or "-dev-" in tag):
        pinned = " or ".join(q.release.images) if q.release else "a release's tag"
        yield Problem("container.image", image, reason, f"Pin {pinned}.")


@rule("K3", "warning", "all", RUN, NPU)
def hccn_mounts(q: Question) -> Iterator[Problem]:
    """Without hccn_tool and its file nothing inside can look at the NPUs' network."""
    container = q.config.container
    if not in_container(q.config) or container.driver_mounts is None:  # null: all that the guides have
        return
    mounts = [text.split(":")[0].rstrip("/") for text in (*container.driver_mounts, *container.mounts)]
    missing = [name for name in TOOLS if not any(source.endswith(name) for source in mounts)]
    if missing:
        reason = f"{' and '.join(missing)} not mounted: the NPUs' network cannot be looked at from inside"
        remedy = "Set container.driver_mounts=null, or add /usr/local/Ascend/driver/tools/hccn_tool and /etc/hccn.conf."
        yield Problem("container.driver_mounts", list(container.driver_mounts), reason, remedy)


@rule("K4", "warning", "all", f"{RUN}: --shm-size=1g", NPU)
def large_shm(q: Question) -> Iterator[Problem]:
    """/dev/shm may take the node's memory up to its size."""
    container = q.config.container
    try:
        size = size_bytes(container.shm_size) if container.shm_size else 0
    except ConfigError:  # a finding of its own
        return
    if in_container(q.config) and size > 64 << 30:
        reason = "the official commands have 1g; what a larger one holds is missing in the page cache of the weights"
        yield Problem("container.shm_size", container.shm_size, reason, "Set 1g.")


RULES = (moving_tag, hccn_mounts, large_shm)
