"""`python -m jobs.engines.simulator serve MODEL FLAGS...`: see the package's text."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from jobs.core.errors import ConfigError
from jobs.engines.ascend import release
from jobs.engines.simulator.faults import Player, parse_faults
from jobs.engines.simulator.headless import run_headless
from jobs.engines.simulator.log import Log, traceback_line
from jobs.engines.simulator.settings import VARIABLE, Settings, StartError, parse, read_spec, settle


async def _run(settings: Settings, log: Log) -> int:
    player = Player(parse_faults(settings.spec.faults), settings.spec.rank, log)
    player.reach("start")
    await player.loads.wait()
    if settings.headless:
        return await run_headless(settings, player)
    from jobs.engines.simulator.head import Head  # with the HTTP server, which a headless rank has not

    return await Head(settings, player).run()


def main(argv: Sequence[str]) -> int:
    """Act as `vllm`; return the exit code (2: bad command line or spec, 1: cannot start, 0: told to stop)."""
    try:
        spec = read_spec(os.environ.get(VARIABLE))
        line = parse(argv, release(spec.release))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    log = Log(os.environ.get("VLLM_LOGGING_LEVEL", "INFO"))
    for name in line.deprecated:
        log.write("deprecated", name=name)
    if not line.args.headless:
        log.write("version", release=spec.release)
        log.write("args", args=dict(line.changed))
    try:
        return asyncio.run(_run(settle(line.args, spec, os.environ), log))
    except StartError as error:
        traceback_line(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
