"""The same question the stock way: Hydra's submitit launcher, one job a point, one engine start a job.

Run by benchmarks/node_hours.py. The command line, environment, ports, load and judgement are those of this tool, so
that only the way of running differs: each job starts the engine on its nodes, measures one window, and stops it.

    python benchmarks/stock_launcher.py -m hydra/launcher=submitit_slurm 'fixed=[...]' max_model_len=8192,32768 ...
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jobs.allocation.interface import own_interface  # noqa: E402
from jobs.cluster.nodelist import task_from_slurm  # noqa: E402
from jobs.cluster.ports import derive_ports  # noqa: E402
from jobs.core.config import Config  # noqa: E402
from jobs.core.layout import Placement  # noqa: E402
from jobs.engines.vllm import command, environment  # noqa: E402
from jobs.measure import client, queueing, statistics, validity  # noqa: E402
from jobs.measure.gate.case import Case  # noqa: E402
from jobs.measure.records import Target  # noqa: E402
from jobs.sweep import compose  # noqa: E402


def overrides(cfg: DictConfig) -> list[str]:
    """Return the point of this job as overrides of this tool's config."""
    point = [f"parallel.max_model_len={cfg.max_model_len}", f"bench.concurrency={cfg.concurrency}"]
    return [*cfg.fixed, "engine.api_key=null", *point]


@hydra.main(config_path=None, config_name="stock", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run one rank of one point."""
    config = resolved(overrides(cfg))
    task = task_from_slurm(os.environ)
    interface, address, _ = own_interface(config)
    ports = derive_ports(task.job_id)
    place = Placement(
        rank=task.rank,
        ranks=task.ranks,
        address=address,
        interface=interface,
        master_address=socket.gethostbyname(task.hosts[0]),
        api_port=str(ports.api),
        rpc_port=str(ports.dp_rpc),
    )
    folder = Path(cfg.out) / str(task.job_id)
    folder.mkdir(parents=True, exist_ok=True)
    env = environment.whole(environment.variables(config, place), os.environ)
    with (folder / f"server-{task.rank}.log").open("w") as log:
        engine = subprocess.Popen(
            command.argv(config, place), env=env, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
        )
    done = folder / "done"
    try:
        if task.rank == 0:
            url = f"http://127.0.0.1:{ports.api}"
            wait_ready(engine, url, config.limits.load_s)
            target = Target(url, config.model.name_for_clients)
            window = asyncio.run(client.measure(config.bench, config.limits, config.model, target))
            figures = statistics.summarize(window, config.bench)
            reason, _ = validity.judge(Case(config, window, figures, queueing.trend(window, config.bench)))
            row = {"point": overrides(cfg), "valid": reason is None, "invalid_reason": reason}
            (folder / "row.json").write_text(json.dumps(row | figures))
        else:
            while engine.poll() is None and not done.exists():
                time.sleep(0.2)
    finally:
        done.touch()
        stop(engine, config.limits.stop_s)


def resolved(words: list[str]) -> Config:
    """Compose a point inside a Hydra job, whose own Hydra must stand aside meanwhile."""
    state = Singleton.get_state()
    GlobalHydra.instance().clear()
    [config] = compose.configs([words])
    Singleton.set_state(state)
    return config


def wait_ready(engine: subprocess.Popen[bytes], url: str, limit_s: float) -> None:
    """Wait until the engine is healthy."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until and engine.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the engine is not ready, exit code {engine.poll()}")


def stop(engine: subprocess.Popen[bytes], limit_s: float) -> None:
    """End the engine and what it started."""
    for number, wait_s in ((signal.SIGTERM, limit_s), (signal.SIGKILL, 10)):
        if engine.poll() is None:
            os.killpg(engine.pid, number)
            try:
                engine.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue


if __name__ == "__main__":
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(
        name="stock", node={"fixed": [], "max_model_len": 8192, "concurrency": 1, "out": "stock"}
    )
    main()
