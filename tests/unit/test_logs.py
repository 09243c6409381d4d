"""What an engine's log says."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.service import logs


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
    assert logs.kv_cache_tokens(text) == tokens


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
        ("cannot source /x/set_env.sh: bash: not found\n", "cannot source /x/set_env.sh: bash: not found"),
        (
            "OSError: no checkpoint\n/usr/lib/python3/resource_tracker.py: UserWarning: leaked semaphore Error\nbye",
            "OSError: no checkpoint",
        ),
        ("OSError: tried again\nINFO\nRuntimeError: gave up\nbye", "RuntimeError: gave up"),
        ("\x1b[1;31mERROR\x1b[0m device lost\nok", "ERROR device lost"),
        ("EI0006: Getting socket times out\nlater line", "EI0006: Getting socket times out"),
        ("ValueError: " + "x" * 1000, "ValueError: " + "x" * 388),
    ],
)
def test_last_words_are_the_line_that_says_most(text: str, words: str) -> None:
    assert logs.last_words(text) == words


def test_only_the_tail_of_a_long_log_is_read_and_broken_text_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(b"\xff\xfe" * 10 + b"a" * 1000 + "ü end".encode())
    assert logs.read_tail(path, 6) == "ü end"
    assert logs.read_tail(path, 5) == "� end"
    assert logs.read_tail(path).endswith("a" * 1000 + "ü end")
    assert logs.read_all(path) == logs.read_tail(path)
    assert logs.read_tail(tmp_path / "none") == ""


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
    assert logs.load_progress(text) == shards
