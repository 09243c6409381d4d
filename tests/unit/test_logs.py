"""What an engine's log says."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_help import config

from jobs.allocation.node.engine import Engine
from jobs.core.files import read_lines
from jobs.core.layout import Placement
from jobs.core.log import last_words, read_all, read_tail
from jobs.core.rundir import RankDir
from jobs.engines.vllm.serve import VllmServe

LOGS = Path(__file__).parent.parent / "fixtures/logs"
PLACE = Placement(1, 2, "127.0.0.1", "lo", "127.0.0.1", "8000", "1")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("INFO 07-01 [kv_cache_utils.py:716] GPU KV cache size: 1,234,567 tokens", 1234567),
        (
            "\x1b[1;36m(EngineCore_0 pid=9)\x1b[0;0m INFO GPU KV cache size: 256 tokens\nGPU KV cache size: 9 tokens",
            256,
        ),
        ("INFO Maximum concurrency for 8,192 tokens per request: 12.3x", None),
        ("", None),
    ],
)
def test_kv_cache_tokens(text: str, tokens: int | None) -> None:
    assert VllmServe().read_log(text).first_kv_tokens == tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("starting\nloading\n\n", "loading"),
        ("", "(its log is empty)"),
        ("  \n\n", "(its log is empty)"),
        (
            "INFO x\nRuntimeError: NPU out of memory\nTraceback (most recent call last):\n"
            "RuntimeError: Engine core initialization failed. See root cause above.",
            "RuntimeError: NPU out of memory",
        ),
        ("WARNING 11-30 libiomp is not found in LD_PRELOAD\nINFO serving", "INFO serving"),
        (
            "WARNING this can cause errors like `OSError: Too many open files`\nINFO serving",
            "INFO serving",
        ),
        ("ERROR 11-30 no log level is called INFO\nbye", "ERROR 11-30 no log level is called INFO"),
        ("cannot source /x/set_env.sh: bash: not found\n", "cannot source /x/set_env.sh: bash: not found"),
        (
            "OSError: no checkpoint\n/usr/lib/python3/resource_tracker.py: UserWarning: leaked semaphore Error\nbye",
            "OSError: no checkpoint",
        ),
        ("OSError: tried again\nINFO\nRuntimeError: gave up\nbye", "RuntimeError: gave up"),
        ("\x1b[1;31mERROR\x1b[0m device lost\nok", "ERROR device lost"),
        ("EI0006: Getting socket times out\nlater line", "EI0006: Getting socket times out"),
        (
            "slurmstepd-n1: error: pyxis: source path does not exist: /no\n"
            "slurmstepd-n1: error: spank: required plugin spank_pyxis.so: task_init() failed with rc=-1\n"
            "slurmstepd-n1: error: Failed to invoke spank plugin stack\n"
            "srun: error: n1: task 0: Exited with exit code 1",
            "slurmstepd-n1: error: pyxis: source path does not exist: /no",
        ),
        ("ValueError: " + "x" * 1000, "ValueError: " + "x" * 388),
    ],
)
def test_last_words_are_the_line_that_says_most(text: str, words: str) -> None:
    assert last_words(text) == words


def test_only_the_tail_of_a_long_log_is_read_and_broken_text_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(b"\xff\xfe" * 10 + b"a" * 1000 + "ü end".encode())
    assert read_tail(path, 6) == "ü end"
    assert read_tail(path, 5) == "� end"
    assert read_tail(path).endswith("a" * 1000 + "ü end")
    assert read_all(path) == read_tail(path)
    assert read_tail(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("text", "shards"),
    [
        ("", None),
        ("INFO loading", None),
        (
            "Loading safetensors checkpoint shards:   0% Completed | 0/163 [00:00<?, ?it/s]\r"
            "Loading safetensors checkpoint shards:  12% Completed | 20/163 [00:32<03:49,  1.60s/it]",
            "20/163",
        ),
    ],
)
def test_load_progress_is_the_last_that_was_said(text: str, shards: str | None) -> None:
    assert VllmServe().read_log(text).load_progress == shards


@pytest.mark.parametrize("name", ["healthy-rank0.log", "healthy-rank1.log"])
def test_when_the_ranks_have_met_is_read_from_real_logs(name: str) -> None:
    lines = (LOGS / name).read_text().splitlines()
    [asked] = [number for number, line in enumerate(lines) if "distributed_init_method" in line]
    [met] = [number for number, line in enumerate(lines) if VllmServe().read_log(line).ranks_met]
    assert met == asked + 1


def test_the_phases_of_a_load_are_recorded_once(tmp_path: Path) -> None:
    engine = Engine(config(), PLACE, RankDir(tmp_path), "mark")
    met = "INFO 11-24 23:26:52 [parallel_state.py:2350] rank 1 in world size 16 is assigned as DP rank 0, PP rank 0\n"
    shards = "Loading safetensors checkpoint shards:  12% Completed | 20/163 [00:10<01:00]\n"
    for words in (met, met, shards, shards):
        with engine.folder.log.open("a") as log:
            log.write(words)
        assert not engine.note_progress()
    with engine.folder.log.open("a") as log:
        log.write("INFO 11-24 23:27:52 [model_runner_v1.py:1912] Loading model weights took 41.8468 GB\n")
    assert engine.note_progress()  # the weights are read
    engine.note_phase("measuring", point="p")
    engine.folder.log.write_text(shards.replace("20/163", "163/163"))
    engine.note_progress()
    states = [entry["state"] for entry in read_lines(engine.folder.states)]
    assert states == ["rendezvous", "loading", "measuring"]
