"""Check the nodes without starting anything: this host, or as many nodes as a service needs through Slurm."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.allocation import submission
from jobs.allocation.control import ControlServer
from jobs.allocation.preflight import report
from jobs.allocation.preflight.conduct import Preflight, Result
from jobs.allocation.preflight.findings import Finding
from jobs.allocation.preflight.station import make_station
from jobs.cli import OVERRIDES, Command
from jobs.cluster.nodelist import Task
from jobs.cluster.ports import derive_ports
from jobs.cluster.sbatch import check_programs
from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.files import read_json
from jobs.core.rundir import new_sweep
from jobs.core.tasks import AllocationTask, ServiceTask, write_config, write_task
from jobs.sweep import compose, road, show
from jobs.sweep.plan import Plan


def _preflight(options: argparse.Namespace) -> int:
    # Whether the service would fit is another question.
    made = road.plan(compose.expand([*options.overrides, "launch.infeasible=keep"]))
    config = made.points[0].config
    record = _through_slurm(made) if config.cluster.kind == "slurm" else asyncio.run(_here(config)).as_json()
    if options.json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        _show(record)
    return 1 if record["reason"] else 0


async def _here(config: Config) -> Result:
    """Check this host alone."""
    from jobs.allocation import rank  # what a rank needs takes long to import, and other commands are no ranks

    ports = derive_ports(os.getpid(), api=config.engine.port, dp_rpc=config.engine.data_parallel_rpc_port, control=None)
    host = socket.gethostname()
    interface, problem = rank.usable_interface(config, local=False)
    task = Task(0, 1, os.getpid(), (host,), host)
    work = AllocationTask((), 1, local=False)
    results = Path(config.results.root).absolute()
    station = make_station(config, task, interface, problem, ports, work, results, dict(os.environ))
    return await Preflight(config, ports, ControlServer(1, "", 1.0), station, local=False).run()


def _through_slurm(made: Plan) -> Mapping[str, Any]:
    """Check as many nodes as the largest service needs, in a job of their own."""
    check_programs("slurm")
    point, config = made.points[0], made.points[0].config
    nodes = max(allocation.nodes for allocation in made.allocations)
    root = Path(config.results.root).absolute()
    name = datetime.now().strftime("preflight_%Y-%m-%d_%H-%M-%S")
    folder = new_sweep(root, name, datetime.now(), config.cluster.share_group, latest=False).allocation(0, 1)
    folder.path.mkdir(parents=True)
    folder.new_keys()
    write_config(folder.sweep, point.point, config)
    task = AllocationTask((ServiceTask(point.service, (point.point,)),), 1, local=False, checks_only=True)
    write_task(folder, task)
    limits = config.limits
    said = submission.srun(folder, config, nodes, "preflight", limits.rendezvous_s + limits.preflight_s)
    if not folder.preflight.exists():
        ended = read_json(folder.outcome)["ended"] if folder.outcome.exists() else said or "srun said nothing"
        raise RunError("srun", f"{nodes} nodes", str(ended)[-400:], f"See {folder.path}.")
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
