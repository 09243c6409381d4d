"""What every external client must do, whoever wrote it: these tests run over all that is registered.

`docs/extending.md` says how to run them on a client of one's own. Each needs the files that a real run of 200 requests
of 256 and 32 tokens left behind: ours are in tests/fixtures/clients, others have `recorded/` beside their module.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from core_help import ROOT, Pipe, change, config, executable

from jobs.allocation.node.client_site import NodeSite
from jobs.core.config import Config
from jobs.core.errors import ConfigError, RunError
from jobs.measure.checks import check_client
from jobs.measure.clients import base
from jobs.measure.clients.base import CLIENTS
from jobs.measure.clients.run import External, ExternalRun
from jobs.measure.records import Target
from jobs.measure.statistics import COLUMNS

REQUESTS, OUTPUT = 200, 32
TARGET = Target("http://127.0.0.1:9", "r1", "the-key")

pytestmark = pytest.mark.parametrize("name", CLIENTS.names())


def point(name: str, *overrides: str) -> Config:
    words = ("cluster=local", "engine=vllm_cpu", "model=tiny_llama", "parallel=dp2_tp1", "model.path=/models/tiny")
    load = (f"bench.num_requests={REQUESTS}", "bench.input_tokens=256", f"bench.output_tokens={OUTPUT}")
    return config(*words, *load, f"bench.client={name}", "bench.concurrency=8", *overrides)


def recorded(name: str) -> Path:
    """Return the directory of its recorded run."""
    ours = ROOT / "tests/fixtures/clients" / name
    module = sys.modules[type(CLIENTS.get(name)).__module__]
    return ours if ours.exists() else Path(str(module.__file__)).parent / "recorded"


async def written(name: str, folder: Path, seed: int = 0) -> tuple[list[str], dict[str, str]]:
    """Return the command line, and the files that were written for it; where they are, is taken out of both."""
    folder.mkdir()
    argv = await CLIENTS.get(name).write(point(name, f"bench.seed={seed}"), TARGET, folder, REQUESTS)
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    plain = {path: text.replace(str(folder), "/place") for path, text in files.items()}
    return [text.replace(str(folder), "/place") for text in argv], plain


async def test_a_usual_point_is_accepted_and_has_a_command(name: str, tmp_path: Path) -> None:
    check_client(point(name))
    client, other = CLIENTS.get(name), point(name, "bench.program=/opt/its/program")
    argv, _ = await written(name, tmp_path / "a")
    assert argv[0] == client.program(point(name))
    assert client.program(other) == "/opt/its/program"
    assert (await client.write(other, TARGET, tmp_path, 1))[0] == "/opt/its/program"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["bench.repeats=2"], "bench.repeats"),
        (["bench.search=concurrency", "bench.slo.ttft_ms=100"], "bench.search"),
        (["bench.lengths=uniform"], "bench.lengths"),
        (["bench.workload=shared_prefix"], "bench.workload"),
        (["bench.where=container"], "bench.where"),
    ],
)
def test_what_one_run_cannot_do_is_refused(name: str, overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_client(point(name, *overrides))
    assert caught.value.key == key


async def test_the_seed_decides_what_is_sent(name: str, tmp_path: Path) -> None:
    one, same, other = [await written(name, tmp_path / str(i), seed) for i, seed in enumerate((3, 3, 4))]
    assert one == same != other


async def test_the_key_is_on_no_command_line_and_is_forgotten(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "client"
    argv, files = await written(name, folder)
    assert not [text for text in argv if "the-key" in text]
    for path in (path for path, text in files.items() if "the-key" in text):
        assert (folder / path).stat().st_mode & 0o077 == 0, f"{path} is for the owner alone"
    CLIENTS.get(name).forget_secrets(TARGET, folder)
    assert not [path for path in folder.rglob("*") if path.is_file() and "the-key" in path.read_text()]
    CLIENTS.get(name).forget_secrets(replace(TARGET, api_key=None), tmp_path / "nothing was written")


def test_its_results_are_read(name: str, tmp_path: Path) -> None:
    shutil.copytree(recorded(name), tmp_path, dirs_exist_ok=True)
    found = CLIENTS.get(name).read(tmp_path, REQUESTS)
    assert (found.requested, found.completed, found.failed) == (REQUESTS, REQUESTS, 0)
    assert found.output_tokens == OUTPUT * REQUESTS
    assert list(found.output_lengths) in ([], [OUTPUT] * REQUESTS)
    assert list(found.figures) == list(COLUMNS)
    assert found.figures["completed"] == REQUESTS
    assert found.figures["output_tok_per_s"] == pytest.approx(found.output_tokens / found.seconds, rel=0.01)
    assert CLIENTS.get(name).read(tmp_path, REQUESTS) == found, "also a second time"


def test_half_a_result_is_none(name: str, tmp_path: Path) -> None:
    client = CLIENTS.get(name)
    with pytest.raises(RunError):
        client.read(tmp_path, REQUESTS)
    shutil.copytree(recorded(name), tmp_path, dirs_exist_ok=True)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RunError):
        client.read(tmp_path, REQUESTS)


def test_a_program_that_is_missing_is_said_before_the_engine_starts(name: str, tmp_path: Path) -> None:
    there = executable(tmp_path / "program", "#!/bin/sh\n")
    one = change(point(name), engine__source=())
    base.check_node(change(one, bench__program=str(there)), None)
    with pytest.raises(RunError) as caught:
        base.check_node(change(one, bench__program="no_such"), str(tmp_path))
    assert (caught.value.key, caught.value.value) == ("bench.program", "no_such")
    assert "bench.program" in caught.value.remedy


# -- programs that stand in for the client -------------------------------------------------------------------


def program(tmp_path: Path, code: str) -> Path:
    head = f"#!{sys.executable}\nimport os, pathlib, shutil, signal, sys\n"
    return executable(tmp_path / "bin/program", head + code + "\n")


async def measured(
    name: str, tmp_path: Path, program: Path, *overrides: str, stop: asyncio.Event | None = None
) -> External:
    one = change(point(name, *overrides), bench__program=str(program))
    run = ExternalRun(one, NodeSite({"PATH": "/usr/bin:/bin"}), tmp_path / "client", "tag")
    return await run.once(TARGET, 0, stop or asyncio.Event(), lambda _: None)


async def test_a_run_that_ends_well(name: str, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "client/old").write_text("of an earlier attempt")
    code = f"shutil.copytree({str(recorded(name))!r}, '.', dirs_exist_ok=True)\n"
    code += f"pathlib.Path({str(tmp_path / 'seen')!r}).write_text(os.environ['OPENAI_API_KEY'])"
    found = await measured(name, tmp_path, program(tmp_path, code))
    assert (found.reason, found.truncated) == (None, False)
    assert found.result is not None and found.result.completed == REQUESTS
    assert (tmp_path / "seen").read_text() == "the-key"
    assert not (tmp_path / "client/old").exists()
    left = [path for path in (tmp_path / "client").rglob("*") if path.is_file()]
    assert not [path for path in left if b"the-key" in path.read_bytes()]


async def test_code_0_without_a_result_is_no_success(name: str, tmp_path: Path) -> None:
    found = await measured(name, tmp_path, program(tmp_path, "print('all is well')"))
    assert found.result is None
    assert (found.reason or "").startswith(f"{name} left no result (exited with code 0)")
    assert (found.reason or "").endswith("its last words: all is well")


async def test_a_program_that_is_not_there(name: str, tmp_path: Path) -> None:
    found = await measured(name, tmp_path, tmp_path / "nothing")
    assert "exited with code 127" in (found.reason or "")


async def test_a_client_that_hangs_ends_with_its_limit(name: str, tmp_path: Path) -> None:
    found = await measured(name, tmp_path, program(tmp_path, "signal.pause()"), "limits.client_s=0.5")
    assert "limits.client_s=0.5 is over" in (found.reason or "")
    assert not found.truncated


async def test_a_client_ends_with_the_service(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.measure.clients.run.STOP_S", 0.1)
    says, stop = Pipe(tmp_path / "says"), asyncio.Event()
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += f"with open({str(tmp_path / 'says')!r}, 'w') as says:\n    says.write('begun')\nsignal.pause()"
    work = asyncio.create_task(measured(name, tmp_path, program(tmp_path, code), stop=stop))
    await says.heard(60)
    stop.set()
    found = await work
    says.close()
    assert (found.reason, found.truncated) == ("the window was cut short", True)
