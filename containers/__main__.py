"""`python -m containers FILE`: prepare the container of one rank on this node, then become its engine.

It runs in the engine's own process group, so that import and unpacking stop with it, and write to its log. What takes
long is done beforehand, by a first call that starts nothing (jobs/allocation/node/image.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from containers.base import Fetched, Order, Runtime
from jobs.core import process, session
from jobs.core.errors import UserError
from jobs.core.log import take_any_text
from jobs.core.registry import RUNTIMES


def main(path: Path) -> NoReturn:
    """Prepare and become what the order in the file says, or only bring the image: then its `result` tells how."""
    order = Order.read(path)
    with session.orderly():
        _carry_out(order)


def _carry_out(order: Order) -> NoReturn:
    # Variables of the host serve the preparation (a proxy, for the registry); the engine gets its own alone.
    host = dict(os.environ)
    try:
        runtime: Runtime = RUNTIMES.get(order.spec.runtime)
        made = runtime.fetch(order, host)
        if order.result is None:
            start = runtime.start(order)
            own = {process.TAG: host.get(process.TAG, "")}
            process.become(start.commands[-1], {**order.env, **start.env, **own})
        made.write(order.result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if order.result is not None:
            Fetched(error=(error.key, str(error.value), error.reason, error.remedy)).write(order.result)
        sys.exit(error.exit_code)
    sys.exit(0)


if __name__ == "__main__":
    take_any_text()
    main(Path(sys.argv[1]))
