"""What `npu-smi` prints: pure parsers.

The table is that of vllm-project/vllm-ascend issues 5949 and 4284 (910B) and 2534 (A3, with a column Phy-ID); the board
page that of MindCluster's fault diagnosis guide, "NPU environment check file".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class NpuProcess:
    """A process on an NPU. Its name may be empty: npu-smi cannot always read it."""

    pid: int
    name: str
    memory_mb: int


@dataclass(frozen=True)
class Npu:
    """One NPU, of an A3 one of the two of a module, of which the first shows the module's power.

    Memory is HBM in MB, power in W or None where it does not tell; `processes` is None where the process table says
    nothing about it.
    """

    index: int
    name: str
    health: str
    used_mb: int
    total_mb: int
    processes: tuple[NpuProcess, ...] | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Smi:
    """`npu-smi info`: the version of the driver, and the NPUs."""

    version: str
    npus: tuple[Npu, ...]


_VERSION = re.compile(r"\|\s*npu-smi\s+\S+\s+Version:\s*(\S+)")
_FIRST = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*([A-Za-z]+)\s*\|\s*([\d.]+)?[^|]*\|\s*$")
_SECOND = re.compile(r"^\|\s*\d+[\s\d]*\|\s*[0-9A-Fa-f:.]+\s*\|.*?(\d+)\s*/\s*(\d+)\s*\|\s*$")
_IDLE = re.compile(r"^\|\s*No running processes found in NPU\s+(\d+)\s*\|")
_PROCESS = re.compile(r"^\|\s*(\d+)\s+\d+\s*\|\s*(\d+)\s*\|\s*([^|]*?)\s*\|\s*(\d+)\s*\|")
_FIELD = re.compile(r"^\s*([^:]+?)\s*:\s*(.*?)\s*$")


def parse_info(text: str) -> Smi:
    """Read the output of `npu-smi info`. ValueError: it holds no table of NPUs."""
    version, found = _VERSION.search(text), npus(text)
    processes: dict[int, list[NpuProcess]] = {}
    for line in text.splitlines():
        line = line.strip()
        if match := _IDLE.match(line):
            processes.setdefault(int(match[1]), [])
        elif match := _PROCESS.match(line):
            processes.setdefault(int(match[1]), []).append(NpuProcess(int(match[2]), match[3], int(match[4])))
    if not version or not found:
        raise ValueError("there is no table of NPUs in it")
    known = {index: tuple(of_npu) for index, of_npu in processes.items()}
    return Smi(version[1], tuple(replace(npu, processes=known.get(npu.index)) for npu in found))


def npus(text: str) -> tuple[Npu, ...]:
    """Read the table of NPUs alone, each from its two lines; a line of another form is passed over."""
    first: re.Match[str] | None = None
    found: list[Npu] = []
    for line in text.splitlines():
        line = line.strip()
        if (match := _SECOND.match(line)) and first:
            power = float(first[4]) if first[4] else None
            found.append(Npu(int(first[1]), first[2], first[3], int(match[1]), int(match[2]), power_w=power))
            first = None
        elif match := _FIRST.match(line):
            first = match
    return tuple(found)


def parse_board(text: str) -> dict[str, str]:
    """Read the output of `npu-smi info -t board -i N`: fields by name ("Software Version", "Firmware Version")."""
    return {match[1]: match[2] for line in text.splitlines() if (match := _FIELD.match(line))}
