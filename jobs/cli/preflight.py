"""Check the nodes without starting anything: this host, or as many nodes as a service needs through Slurm."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.allocation import submission
from jobs.allocation.control import ControlServer
from jobs.allocation.handshake import Secret
from jobs.allocation.interface import usable_interface
from jobs.allocation.preflight import report
from jobs.allocation.preflight.conduct import Preflight, Result
from jobs.allocation.preflight.findings import Finding
from jobs.allocation.preflight.station import Station, StationContext
from jobs.cli import OVERRIDES, Command
from jobs.cluster.base import ENDED, Request, cancel, scheduler
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import derive_ports
from jobs.cluster.time_limit import SIGNAL_DELAY_S
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.rundir import new_sweep
from jobs.core.tasks import AllocationTask, ServiceTask, read_outcome, write_config
from jobs.sweep import compose, road, show
from jobs.sweep.plan import Plan


def _preflight(options: argparse.Namespace) -> int:
    # Whether the service would fit is another question.
    made = road.plan(compose.expand([*options.overrides, "launch.infeasible=keep"]))
    config = made.points[0].config
    here = scheduler(config.cluster.kind).on_loopback
    record = asyncio.run(_here(config)).as_json() if here else _on_nodes(made)
    if options.json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        _show(record)
    return 1 if record["reason"] else 0


async def _here(config: Config) -> Result:
    """Check this host alone."""
    ports = derive_ports(os.getpid(), api=config.engine.port, dp_rpc=config.engine.data_parallel_rpc_port, control=None)
    host = socket.gethostname()
    interface, problem = usable_interface(config)
    task = Task(0, 1, os.getpid(), (host,), host)
    results = Path(config.results.root).absolute()
    station = Station(config, StationContext(task, interface, problem, ports, results, dict(os.environ)))
    return await Preflight(config, ports, ControlServer(1, Secret(""), 1.0), station).run()


def _on_nodes(made: Plan) -> Mapping[str, Any]:
    """Check as many nodes as the largest service needs, in an allocation of their own."""
    point, config = made.points[0], made.points[0].config
    minutes = math.ceil((config.limits.rendezvous_s + config.limits.preflight_s + SIGNAL_DELAY_S) / 60) + 1
    config = replace(config, cluster=replace(config.cluster, time_limit=str(minutes)))
    cluster = scheduler(config.cluster.kind)
    request = Request(config, max(allocation.nodes for allocation in made.allocations))
    cluster.check(request)
    root = Path(config.results.root).absolute()
    name = datetime.now().strftime("preflight_%Y-%m-%d_%H-%M-%S")
    folder = new_sweep(root, name, datetime.now(), config.cluster.share_group, latest=False).allocation(0, 1)
    # Named as a sweep's jobs: before one is cancelled its name is asked for.
    request = replace(request, name=submission.job_name(folder.sweep, 0))
    write_config(folder.sweep, point.point, config)
    work = AllocationTask((ServiceTask(point.service, (point.point,)),), 1, checks_only=True)
    job = submission.submit(folder, work, request, config.cluster.kind)
    try:
        while (state := cluster.state(job)) not in ENDED and not folder.outcome.exists():
            time.sleep(cluster.poll_s)
    except KeyboardInterrupt:
        cancel(folder)
        raise
    if not folder.preflight.exists():
        outcome = read_outcome(folder)
        ended = outcome.ended if outcome else f"its job ended ({state})"
        raise RunError("preflight", f"{request.nodes} nodes", str(ended)[-400:], f"See {folder.path}.")
    record: Mapping[str, Any] = read_json(folder.preflight)
    return record


def _show(record: Mapping[str, Any]) -> None:
    findings = [Finding(**one) for one in record["findings"]]
    out = show.console()
    nodes = list(dict.fromkeys(one["node"] for one in record["facts"]))
    out.print(report.table(findings, nodes))
    for line in report.details(findings):
        out.print(line)
    out.print(report.summary(findings, record["seconds"]))
    if record["reason"]:
        out.print(record["reason"])


COMMANDS = (
    Command("preflight", _preflight, "check the nodes and start nothing: this host, or through Slurm", (OVERRIDES,)),
)
