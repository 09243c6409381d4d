"""Who listens where an engine's API will be: nobody else may, since the service's key is sent there."""

from __future__ import annotations

import os
from collections.abc import Callable

from jobs.cluster.ports import listeners
from jobs.core.errors import RunError
from jobs.core.process import name_of


def listens(address: str, port: int, owns: Callable[[int], bool]) -> bool:
    """Look who listens on this host where the API will be. Returns whether anybody does, as far as can be told.

    An engine binds its port at its start and listens after its load: until then any user could listen beside it. A
    container's engine may be root's, and then nobody but root sees its processes.

    Raises:
        RunError: it is neither this user nor root, or a process that is not of our engine.
    """
    found = listeners(port, address)
    for one in found or ():
        who = f"user {one.uid}" if one.uid not in (os.geteuid(), 0) else None
        if not who and (pids := one.pids()) and not any(map(owns, pids)):
            who = f"process {pids[0]} {name_of(pids[0])}, which is not of this service,"
        if who:
            reason, remedy = f"{who} listens there in the engine's place", "Set engine.port to another port"
            raise RunError("engine.port", port, reason, f"{remedy}, and find out what that is.")
    return found is None or bool(found)
