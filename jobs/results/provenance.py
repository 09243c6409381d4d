"""What a sweep was made with: commit of the tool, versions, command line. Written once, at its start."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs.core import masking
from jobs.core.fields import CODE
from jobs.results.row import DISTRIBUTION

PACKAGES = (DISTRIBUTION, "hydra-core", "numpy", "pandas", "pyarrow", "submitit")


def describe(command: Sequence[str]) -> dict[str, Any]:
    """Return the content of provenance.json. `command`: words of the command line that asked for the sweep."""
    return {
        "command": masking.mask(command),
        "commit": commit(CODE),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": platform.node(),
    }


def version() -> str:
    """Return name, version and commit of this tool in one line."""
    at = commit(CODE)
    return f"{DISTRIBUTION} {_version(DISTRIBUTION) or '(not installed)'}" + (f" ({at[:10]})" if at else "")


def commit(root: Path) -> str | None:
    """Return the commit that is checked out in `root`; None: it is no git clone (gitrepository-layout(5))."""
    folder = root / ".git"
    try:
        if folder.is_file():  # a linked work tree, or a submodule
            folder = root / _said(folder).removeprefix("gitdir: ")
        head = _said(folder / "HEAD")
        if not head.startswith("ref: "):
            return head or None
        name = head.removeprefix("ref: ")
        common = folder / _said(folder / "commondir") if (folder / "commondir").exists() else folder
        if (common / name).exists():
            return _said(common / name)
        packed = _said(common / "packed-refs").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)


def _said(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
