"""Strict stand-ins for container runtimes, and an srun with pyxis, as real programs in a directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

BIN = Path(__file__).parent / "bin"
PROGRAMS = ("enroot", "unsquashfs", "srun", "docker", "podman", "apptainer")
REGISTRY = "registry.example:5000"
IMAGE = "test/image:v1"
URI = f"docker://{REGISTRY}#{IMAGE}"
PATH = os.environ["PATH"]
DIGEST = "sha256:" + "ab" * 32


def can_contain() -> str | None:
    """Return why this host can make no container of its own directories, or None."""
    if not shutil.which("unshare") or not shutil.which("chroot"):
        return "there is no unshare or chroot"
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True, check=False
    )
    return None if tried.returncode == 0 else "user namespaces are not allowed here"


def need_containers() -> None:
    """Skip a test where this host can make no container; under CI=true that is a failure."""
    if reason := can_contain():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have user namespaces: {reason}")
        pytest.skip(reason)


@cache
def _others() -> tempfile.TemporaryDirectory[str]:
    """Return a directory of links to every program on PATH but container runtimes, of which this machine may have real
    ones."""
    folder = tempfile.TemporaryDirectory(prefix="other-programs-", dir="/dev/shm")  # which containers see as well
    places = [Path(place) for place in reversed(PATH.split(os.pathsep))]
    found = {path.name: path for place in places if place.is_dir() for path in place.iterdir()}
    for name, path in found.items():
        if name not in PROGRAMS:
            Path(folder.name, name).symlink_to(path)
    return folder


class Fakes:
    """The programs and what they are told to do."""

    def __init__(self, folder: Path, programs: tuple[str, ...] = ("enroot", "unsquashfs")) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(BIN / "box.py", folder)
        for name in programs:
            source = BIN / ("docker" if name == "podman" else name)
            (folder / name).write_text(source.read_text().replace("PYTHON", sys.executable, 1))
            (folder / name).chmod(0o755)
        self.tell()

    @property
    def path(self) -> str:
        """A PATH on which no other container runtime is."""
        return f"{self.folder}:{_others().name}"

    def tell(self, **programs: Any) -> None:
        """Set the orders: `tell(enroot_import={"slow_s": 1}, images={...})`."""
        told = {name.replace("_", " ") if name != "images" else name: value for name, value in programs.items()}
        (self.folder / "orders.json").write_text(json.dumps({"images": {URI: DIGEST}} | told))

    def calls(self, *start: str) -> list[list[str]]:
        """Return what was called and noted so far, of those that begin with these words."""
        file = self.folder / "calls.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [line for line in lines if line[: len(start)] == list(start)]

    def image(self, path: Path, name: str = URI) -> Path:
        """Write an image file."""
        code = f"import box; box.write_image({str(path)!r}, {name!r}, 0)"
        subprocess.run([sys.executable, "-SE", "-c", f"import sys; sys.path.insert(0, {str(self.folder)!r}); {code}"],
                       check=True)  # fmt: skip
        return path
