"""The directory of this user on a node (`container.local_dir`), with fixed names below it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from jobs.core.errors import RunError
from jobs.core.filetable import File


@dataclass(frozen=True)
class Local:
    """Where a node keeps what outlives a container, or must not lie on a shared file system."""

    path: Path

    data = File("enroot/data", "unpacked images of enroot")
    cache = File("enroot/cache", "layers that enroot downloaded")
    temp = File("enroot/temp", "what an import unpacks: two to three times the image")
    run = File("enroot/run", "enroot's own")
    caches = File("caches", "kernels that NPU compilers made")

    def env(self) -> dict[str, str]:
        """Return the variables that tell enroot; a batch job lacks XDG_RUNTIME_DIR, so it needs them."""
        return {
            "ENROOT_DATA_PATH": str(self.data),
            "ENROOT_CACHE_PATH": str(self.cache),
            "ENROOT_RUNTIME_PATH": str(self.run),
            "ENROOT_TEMP_PATH": str(self.temp),
        }

    def make(self, *paths: Path) -> None:
        """Make directories below it, by default enroot's, for this user alone.

        Raises:
            RunError: one cannot be made, or is somebody else's: in /tmp anybody may have taken its name.
        """
        for path in (self.path, *(paths or map(Path, self.env().values()))):
            try:
                path.mkdir(parents=True, mode=0o700, exist_ok=True)
                wrong = None if path.stat().st_uid == os.getuid() else "it belongs to somebody else"
                wrong = wrong or (None if os.access(path, os.W_OK | os.X_OK) else "it cannot be written")
            except OSError as error:
                wrong = str(error)
            if wrong:
                remedy = "Name a directory of the node that is yours, with {uid} or {user} in it."
                raise RunError("container.local_dir", path, wrong, remedy)
