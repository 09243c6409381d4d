"""Let a Unix group read a sweep (`cluster.share_group`), whatever the umask of the login shell is."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from jobs.core.errors import RunError


def let_group_read() -> None:
    """Let this process and its children make files and directories that the group of their directory may read.

    A login shell's umask of 077 would shut it out of everything inside a shared directory. Secrets have their own mode.
    """
    os.umask(os.umask(0o077) & ~0o050)


def share_root(root: Path, group: str, *, is_new: bool) -> None:
    """Let the group into a results.root that is new and holds no sweep yet: nobody reads a sweep whose root is closed.

    Hydra may have made it a moment ago. One that holds sweeps has the rights that somebody gave it.

    Raises:
        RunError: there is no such group, or this user is not in it.
    """
    made = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        info = root.stat()
    except OSError:
        return  # what follows says so
    if not made and is_new and info.st_uid == os.geteuid() and not info.st_mode & 0o011:
        made = [root]
    for path in made:
        share(path, group)


def share(path: Path, group: str) -> None:
    """Let the group read a directory that was just made, and what will be in it.

    Raises:
        RunError: there is no such group, or this user is not in it; an empty directory is taken away again.
    """
    try:
        shutil.chown(path, group=group)
        path.chmod(0o2750)  # what is made inside belongs to the group too
    except (OSError, LookupError) as error:
        with contextlib.suppress(OSError):
            path.rmdir()
        raise RunError("cluster.share_group", group, str(error), "Name a group that you belong to.") from None
