"""What a figure depends on beside its config: versions and contents that may change under the same names.

A row keeps them. A row of another engine version, driver, image or model is stale: it answers an old question.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from jobs.allocation.node import container
from jobs.core.config import Config, in_container
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.foreign import load_bytes
from jobs.results.fingerprint import Fingerprint

DRIVER = Path("/usr/local/Ascend/driver/version.info")
"""Written by the driver's installer; its line `Version=25.0.rc1.1` is the driver's version."""

MODEL_FILES = ("config.json", "quant_model_description.json", "model.safetensors.index.json")
"""Small files that change with the checkpoint: architecture, quantization by tensor, shards by tensor."""

PACKAGES = ("vllm", "vllm_ascend")


def of_this_host(config: Config, stop: Callable[[], bool] = lambda: False) -> Fingerprint:
    """Return what this host sees: of the engine, the driver, the image and the model that this config names.

    An image file that nobody has read before is read as a whole, unless `stop` says meanwhile that it is not worth it.
    """
    seen = at_once(config)
    if not in_container(config):
        return seen
    return replace(seen, image_digest=container.known_digest(config, stop))


def at_once(config: Config) -> Fingerprint:
    """Return what this host sees without reading an image."""
    seen = _here(config.engine.command[0], str(container.checkpoint(config)))
    # The engine of an image is not the one that this host may have.
    return replace(seen, engine_version=None) if in_container(config) else seen


@lru_cache(maxsize=64)
def _here(program: str, model: str) -> Fingerprint:
    return Fingerprint(
        engine_version=installed(program), driver_version=version_in(DRIVER), model_digest=model_digest(Path(model))
    )


def installed(program: str) -> str | None:
    """Return the versions of the engine's packages in the environment of a program, as "vllm 0.9.1"; else None."""
    found = packages(shutil.which(from_root(program)), PACKAGES)
    return ", ".join(f"{name} {version}" for name, version in found.items()) or None


def packages(program: str | None, names: Collection[str]) -> dict[str, str]:
    """Return the versions of some packages in the environment of a program, by name; its path may be a link.

    They are read from the names of the directories that pip leaves (`vllm-0.9.1.dist-info`): the environment's own
    Python need not be started.
    """
    for path in (Path(program), Path(program).resolve()) if program else ():
        folders = path.parent.parent.glob("lib/python3*/site-packages/*.dist-info")
        parts = [folder.name.removesuffix(".dist-info").partition("-") for folder in sorted(folders)]
        if found := {name.lower(): version for name, _, version in parts if name.lower() in names}:
            return found
    return {}


def version_in(path: Path) -> str | None:
    """Return the value of Version= in what an installer (driver, firmware, toolkit) wrote; None: it is not there."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition("=")[2].strip() for line in lines if line.lower().startswith("version=")), None)


def model_digest(folder: Path) -> str | None:
    """Return a short digest of a checkpoint's describing files; None: it is not to be seen from here."""
    digest, seen = hashlib.sha256(), False
    for name in MODEL_FILES:
        try:
            content = load_bytes(folder / name)
        except RunError:
            continue
        seen = True
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12] if seen else None
