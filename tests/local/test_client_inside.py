"""`vllm bench serve` in the container of rank 0's engine, in each runtime: its run, its death, its hang, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from container_fakes import REGISTRY, Fakes
from core_help import ROOT, Pipe, change, executable
from test_runtimes import EVERY, INHERITED, engine, failed, fakes, until_says  # noqa: F401

from jobs.allocation.node import client_site
from jobs.allocation.node.engine import Engine
from jobs.core import process
from jobs.core.config import Config
from jobs.measure.clients import run, vllm_bench
from jobs.measure.records import Target

RESULT = ROOT / "tests/fixtures/clients/vllm_bench" / vllm_bench.RESULT
TARGET = Target("http://127.0.0.1:9", "r1", "the-key")

GOOD = """
words = sys.argv[1:]
place = pathlib.Path(words[words.index("--result-dir") + 1])
(place / words[words.index("--result-filename") + 1]).write_text((SITE / "shown.json").read_text())
seen = {"env": dict(os.environ), "namespace": os.readlink("/proc/self/ns/mnt"), "cwd": os.getcwd()}
seen |= {"data": [pathlib.Path(word).read_text() for word in words if word.endswith("data.json")]}
(place / "seen.json").write_text(json.dumps(seen))
"""

HANGS = """
deaf = "import signal\\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\\nprint(1, flush=True)\\nsignal.pause()"
child = subprocess.Popen([sys.executable, "-SEc", deaf], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(SITE / "says", "w") as says:
    print(os.getpid(), child.pid, file=says, flush=True)
signal.pause()
"""


def client(tmp_path: Path, code: str) -> Path:
    """Put a client where the image has its programs: below a path that is mounted inside."""
    site = tmp_path / "site"
    head = f"#!{sys.executable} -SE\nimport json, os, pathlib, signal, subprocess, sys"
    program = executable(site / "bench", f"{head}\nSITE = pathlib.Path({str(site)!r})\n{code}\n")
    (site / "shown.json").write_text(RESULT.read_text())
    return program


@pytest.fixture
async def started(tmp_path: Path, fakes: Fakes, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:  # noqa: F811
    """An engine that is up in a container of the runtime that the test names."""
    one = engine(tmp_path, request.param, **asked(tmp_path))
    one._points = (one.config,)
    (tmp_path / "data.json").write_text("its prompts")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    yield one
    assert await one.stop() == []


def asked(tmp_path: Path, **more: Any) -> dict[str, Any]:
    usual = {
        "bench__client": "vllm_bench",
        "bench__program": str(client(tmp_path, GOOD)),
        "bench__workload": "sharegpt",
        "bench__dataset": str(tmp_path / "data.json"),
        "bench__num_requests": 200,
        "bench__concurrency": 8,
    }
    return usual | more


async def measured(one: Engine, stop: asyncio.Event | None = None, **more: Any) -> run.External:
    of_point: Config = change(one.config, **more)
    client = run.ExternalRun(
        of_point, client_site.of(one, of_point, {}), one.folder.path / "client", one.tag + ".client"
    )
    return await client.once(TARGET, 0, stop or asyncio.Event(), lambda _: None)


def check_nothing_left(one: Engine, tmp_path: Path) -> None:
    """The engine lives on; nothing of the client does, and no file with the key is left on the node or inside."""
    assert one._process is not None
    assert one._process.ended is None
    assert [path for path in Path(str(one._scratch)).iterdir() if path.name.startswith("client-")] == []
    for root in (tmp_path / "bin/daemon").glob("*/tmp/sv-*"):
        assert [path for path in root.iterdir() if path.name.startswith("client-")] == []


@pytest.mark.parametrize("started", EVERY, indirect=True)
async def test_a_client_runs_where_the_engine_is(started: Engine, tmp_path: Path) -> None:
    found = await measured(started)
    log = started.folder.path / "client" / run.LOG
    assert found.reason is None, log.read_text()
    assert found.result is not None
    assert found.result.figures["completed"] == 200
    seen = (started.folder.path / "client/seen.json").read_text()
    what = json.loads(seen)
    assert started.container is not None
    assert what["namespace"] == started.container.inside.proof().namespace
    assert what["namespace"] != str(Path("/proc/self/ns/mnt").readlink())
    assert what["data"] == ["its prompts"], "nothing but rank 0's mounts shows the data set inside"
    assert what["env"]["OPENAI_API_KEY"] == "the-key"
    assert [name for name in what["env"] if name.startswith(("HCCL_", "VLLM_", "SLURM_", "PMI"))] == []
    check_nothing_left(started, tmp_path)
    again = await measured(started)
    assert again.reason is None, "a second point of the service"


@pytest.mark.parametrize("started", EVERY, indirect=True)
async def test_a_client_that_dies_says_why(started: Engine, tmp_path: Path) -> None:
    client(tmp_path, "print('no tokenizer', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    found = await measured(started)
    assert found.result is None
    assert found.reason is not None
    assert found.reason.startswith("vllm_bench left no result (")
    assert found.reason.endswith("its last words: no tokenizer")
    check_nothing_left(started, tmp_path)


@pytest.mark.parametrize("started", EVERY, indirect=True)
async def test_a_client_that_is_over_its_limit_is_ended(
    started: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STOP_S", 0.1)
    client(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.pause()")
    found = await measured(started, limits__client_s=0.5)
    assert (found.result, found.truncated) == (None, False)
    assert found.reason is not None
    assert "limits.client_s=0.5 is over" in found.reason
    assert started.tag + ".client" not in process.tags()
    check_nothing_left(started, tmp_path)


@pytest.mark.parametrize("started", EVERY, indirect=True)
async def test_a_client_that_hangs_is_ended_inside_with_its_children(
    started: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STOP_S", 0.1)
    found, living = await stopped(started, tmp_path)
    assert (found.result, found.reason, found.truncated) == (None, "the window was cut short", True)
    assert living == [], "the client and its child"
    check_nothing_left(started, tmp_path)


async def stopped(one: Engine, tmp_path: Path) -> tuple[run.External, list[int]]:
    """Let a client begin, then end it. Returns what came of it, and which of its processes live."""
    says, stop = Pipe(tmp_path / "site/says"), asyncio.Event()
    client(tmp_path, HANGS)
    work = asyncio.create_task(measured(one, stop))
    pids = [int(word) for word in (await says.heard(60)).split()]
    assert all(psutil.pid_exists(pid) for pid in pids)
    stop.set()
    found = await work
    says.close()
    return found, [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("started", ["docker"], indirect=True)
async def test_dockers_processes_are_killed_by_docker(
    started: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real node they belong to root and can be neither seen nor signalled from outside."""
    monkeypatch.setattr(run, "STOP_S", 0.1)
    with monkeypatch.context() as unseen:
        unseen.setattr(process.Process, "strays", lambda _: [])
        _, living = await stopped(started, tmp_path)
    assert living == []


@pytest.mark.parametrize("runtime", EVERY)
async def test_a_program_that_the_image_lacks_is_said_before_the_engine_starts(
    tmp_path: Path,
    fakes: Fakes,  # noqa: F811
    runtime: str,
) -> None:
    one = engine(tmp_path, runtime, bench__client="ais_bench", bench__where="container")
    words = await failed(one)
    assert "bench.program = ais_bench: the image has no such program" in words
    assert "up" not in one.folder.log.read_text().split()


async def test_the_engine_of_a_headless_rank_needs_no_client(tmp_path: Path, fakes: Fakes) -> None:  # noqa: F811
    one = engine(tmp_path, "enroot", **asked(tmp_path, bench__program="/no/such"))
    one.place = type(one.place)(1, 2, "127.0.0.1", "lo", "127.0.0.1", "9", "1")
    await one.start(dict(os.environ) | INHERITED)
    await until_says(one, "up")
    assert await one.stop() == []


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_real_client_measures_the_real_engine_from_inside(
    tmp_path: Path,
    fakes: Fakes,  # noqa: F811
    real_vllm: Path,
) -> None:
    """The whole path: vLLM in a container, `vllm bench serve` joins it, and a row comes out.

    One rank starts in half the time of two; containers of two ranks are those of the rehearsal engine's tests.
    """
    its_python = (real_vllm.parent / "python").resolve().parents[1]
    shared = {ROOT, real_vllm.resolve().parents[2], its_python, Path(sys.base_prefix)}
    mounts = [f'"{path}:{path}:ro"' for path in sorted(shared) if not path.is_relative_to("/usr")]
    kept = Path.home() / ".cache/vllm"  # what vLLM learnt of a model here costs it the import of itself inside
    kept.mkdir(parents=True, exist_ok=True)
    mounts.append(f"{kept}:{kept}")
    words = (
        "launch.py -m engine=vllm_cpu model=tiny_llama parallel=dp2_tp1 parallel.data_parallel_size=1"
        " cluster=local parallel.max_model_len=2048"
        " bench.client=vllm_bench bench.concurrency=2 bench.num_requests=24 bench.input_tokens=64"
        " bench.output_tokens=16 container=enroot container.image=test/image:v1 container.shm_size=null"
    )
    site = [f"container.local_dir={tmp_path}/node"]
    site += [
        "engine.args.speculative-config={method:ngram,num_speculative_tokens:3,prompt_lookup_max:3}",
        f"engine.env.VLLM_CACHE_ROOT={kept}",
        f"container.registry='{REGISTRY}'",
        f"container.mounts=[{','.join(['/sys:/sys', *mounts])}]",
    ]
    launch = [sys.executable, *words.split(), *site, f"results.root={tmp_path}/runs", "results.name=inside"]
    done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [row] = pd.read_parquet(tmp_path / "runs/inside/table.parquet").to_dict("records")
    assert row["valid"], row["invalid_reason"]
    assert row["completed"] == 24
    assert min(json.loads(row["engine_tokens"]).values()) > 0
    assert (row["spec_tokens"], row["spec_text"]) == (3, False), "the engine's own counters, on drawn ids"
    assert 1 <= row["spec_tokens_per_step"] <= 4
    assert len(fakes.calls("enroot", "exec")) == 1
    [point] = (tmp_path / "runs/inside/points").iterdir()
    assert "Successful requests" in (point / "client" / run.LOG).read_text()
