"""The command line: every expectation was taken from vLLM 0.9.1's own parser (see tools/extract_flags.py)."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from simulator_help import R1, settled

from jobs.core.errors import ConfigError
from jobs.core.schema import build
from jobs.core.service_config import Shape
from jobs.engines.ascend import release, releases
from jobs.engines.prediction import Layout
from jobs.engines.simulator import settings as settings_module
from jobs.engines.simulator.settings import (
    RehearsalSpec,
    StartError,
    converter,
    hardware,
    parse,
    read_spec,
    settle,
    spec_json,
)

R = release("0.9.1")

ARTICLE = """serve /models/DeepSeek-R1-0528-W8A8 --host 0.0.0.0 --port 8000 --trust-remote-code
 --gpu-memory-utilization 0.9 --no-enable-prefix-caching --max-model-len 8192 --max-num-batched-tokens 8192
 --max-num-seqs 256 --data-parallel-size 2 --data-parallel-size-local 1 --data-parallel-address 10.226.72.51
 --data-parallel-rpc-port 13389 --tensor-parallel-size 8 --block-size 128 --seed 1024 --enable-expert-parallel
 --quantization ascend
 --additional-config '{"ascend_scheduler_config":{"enabled":false},"torchair_graph_config":{"enabled":true}}'"""


def changed(*argv: str) -> dict[str, object]:
    values = dict(parse(["serve", "m", *argv], R).changed)
    assert values.pop("model") == "m"
    return values


def test_the_article_is_understood():
    words = shlex.split(ARTICLE)
    head = settle(parse(words, R).args, RehearsalSpec(shape=R1), {})
    assert (head.layout, head.local) == (Layout(8, 2, True), range(0, 1))
    assert (head.max_model_len, head.max_num_batched_tokens, head.max_num_seqs, head.block_size) == (
        8192,
        8192,
        256,
        128,
    )
    assert head.rpc_address == ("10.226.72.51", 13389) and head.http_address == ("0.0.0.0", 8000)
    assert head.chunked_prefill and not head.prefix_caching and not head.headless
    second = settle(
        parse([*words, "--headless", "--data-parallel-start-rank", "1"], R).args, RehearsalSpec(shape=R1), {}
    )
    assert second.headless and second.local == range(1, 2)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max-model", "8192"], {"max_model_len": 8192}),  # 0.9.1 accepts abbreviations
        (["--max-model-len", "8k"], {"max_model_len": 8000}),
        (["--max-model-len", "8K"], {"max_model_len": 8192}),
        (["-O", '{"level":0}'], {"compilation_config": {"level": 0}}),
        (["-tp", "8", "-dp", "2"], {"tensor_parallel_size": 8, "data_parallel_size": 2}),
        (["--additional-config", "words"], {"additional_config": "words"}),
        (["--served-model-name", "a", "b"], {"served_model_name": ["a", "b"]}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--enable-prefix-caching"], {"enable_prefix_caching": True}),
        (["--no-enforce-eager"], {}),
        (["--quantization", "ascend"], {"quantization": "ascend"}),
    ],
)
def test_values_are_read_as_vllm_reads_them(argv, expected):
    assert changed(*argv) == expected


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--nope"], "vllm: error: unrecognized arguments: --nope"),
        (["--no-headless"], "vllm: error: unrecognized arguments: --no-headless"),
        (["--port", "x"], "vllm serve: error: argument --port: invalid int value: 'x'"),
        (["--max-model-len", "8.5K"], "argument --max-model-len: invalid human_readable_int value: '8.5K'"),
        (["--max-model-len", "long"], "argument --max-model-len: invalid human_readable_int value: 'long'"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--quantization", "zz"], "argument --quantization/-q: invalid choice: 'zz' (choose from 'aqlm'"),
        (["--quantization", "None"], "invalid choice: None"),  # offered, but no choice matches it: so in vLLM
        (["--block-size", "100"], "argument --block-size: invalid choice: 100 (choose from 1, 8, 16, 32, 64, 128)"),
        (["--compilation-config", "bad"], "argument --compilation-config/-O: invalid _config value: 'bad'"),
        (["--compilation-config", "[1]"], "invalid _config value: '[1]'"),
        (["--additional-config", "{bad}"], "argument --additional-config: invalid _json_or_text value: '{bad}'"),
        (["--max-num-seqs"], "argument --max-num-seqs: expected one argument"),
        (["--data-parallel-s", "1"], "ambiguous option: --data-parallel-s could match"),
    ],
)
def test_refusals_are_argparse_s(argv, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["serve", "m", *argv], R)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_deprecated_flags_are_named():
    assert parse(["serve", "m", "--device", "cpu"], R).deprecated == ("device",)


def test_release_data():
    assert "0.9.1" in releases()
    assert len(R.flags) == 154
    assert R.flags["headless"].action == "store_true" and R.flags["data-parallel-start-rank"].aliases == ("-dpr",)
    assert "ascend" in (R.flags["quantization"].choices or ())
    for flag in R.flags.values():
        assert flag.action in ("store_true", "boolean") or converter(flag.type or "str")
    with pytest.raises(ConfigError, match="not described here"):
        release("0.9.2")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-model-len", "163841"], "User-specified max_model_len (163841) is greater than the derived"),
        (["--max-num-batched-tokens", "128", "--max-num-seqs", "256"], "greater than or equal to max_num_seqs (256)"),
        (
            ["--max-model-len", "8192", "--max-num-batched-tokens", "4096",
             "--additional-config", '{"ascend_scheduler_config":{"enabled":true}}'],
            "Ascend scheduler is enabled without chunked prefill feature. Argument max_num_batched_tokens (4096)",
        ),
        (
            ["--max-model-len", "8192", "--max-num-batched-tokens", "4096", "--no-enable-chunked-prefill"],
            "ValueError: max_num_batched_tokens (4096) is smaller than max_model_len (8192)",
        ),
        (
            ["--enforce-eager", "--additional-config", '{"torchair_graph_config":{"enabled":true}}'],
            "Can't enable graph mode and eager mode at the same time",
        ),
        (["--headless", "--data-parallel-size-local", "0"], "data_parallel_size_local must be > 0 in headless mode"),
        (["--headless", "--api-server-count", "2"], "api_server_count can't be set in headless mode"),
        (["-tp", "8", "-dp", "2"], "do not fit in the 8 NPUs of this node"),
    ],
)  # fmt: skip
def test_start_is_refused_with_vllm_s_words(argv, words):
    with pytest.raises(StartError) as error:
        settled(*argv)
    assert words in str(error.value)


def test_defaults_of_the_release():
    s = settled()
    assert (s.max_model_len, s.max_num_batched_tokens, s.max_num_seqs, s.block_size) == (163840, 2048, 256, 128)
    assert s.prefix_caching and s.chunked_prefill and s.local == range(s.layout.dp)
    assert s.rpc_address == ("127.0.0.1", 29550) and s.names == ("m",)
    assert settled("--api-key", "a", env={"VLLM_API_KEY": "b"}).api_key == "a"
    assert settled(env={"VLLM_API_KEY": "b"}).api_key == "b"


def test_spec_travels_through_the_environment():
    config = build(
        {
            "model": {"shape": {"parameters": 5e9, "token_ids": (5, 9)}},
            "engine": {"rehearsal": {"load_s": 2.0, "faults": ({"rank": 1, "kind": "crash", "when": "ready"},)}},
            "cluster": {"npus_per_node": 4},
        }
    )
    spec = read_spec(spec_json(config, 1))
    faults = ({"rank": 1, "kind": "crash", "when": "ready"},)
    assert spec == RehearsalSpec("0.9.1", 1, config.model.shape, hardware(), 4, 2.0, faults=faults)
    assert read_spec(None) == RehearsalSpec() == RehearsalSpec("0.9.1", 0, Shape(), hardware("atlas_800i_a2"), 8, 0.5)
    assert read_spec('{"rank": 3}').rank == 3


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"rnk": 1}', '{"rank": "1"}', '{"load_s": -1}', '{"lod": 1}', '{"hardware": {}}'],
)
def test_bad_spec_is_an_error(text):
    with pytest.raises(ConfigError):
        read_spec(text)


def test_a_rehearsal_runs_on_hardware_of_a_file_of_one_s_own(tmp_path):
    own = tmp_path / "npu.yaml"
    file = Path(settings_module.__file__).parent / "hardware" / "atlas_800i_a2.yaml"
    own.write_text(file.read_text().replace("hbm_gb_s: 1600.0", "hbm_gb_s: 800.0"))
    assert hardware(str(own)) == replace(hardware(), hbm_gb_s=800.0)
    config = build({"engine": {"rehearsal": {"hardware": str(own)}}})
    assert read_spec(spec_json(config, 0)).hardware.hbm_gb_s == 800.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hbm_gb_s: 1600.0", "peak_tflops"),
        ("hbm_gbs: 1600.0", "hbm_gbs"),
        ("- 1", "dictionary"),
        ("{", "no hardware file"),
        (None, "no hardware file"),
    ],
)
def test_a_bad_hardware_file_is_an_error(tmp_path, text, words):
    own = tmp_path / "npu.yaml"
    if text is not None:
        own.write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        hardware(str(own))
    assert str(error.value).startswith("engine.rehearsal.hardware")
    with pytest.raises(ConfigError, match="Valid: atlas_800i_a2"):
        hardware("atlas_900")


GOOD = {"rank": 0, "kind": "crash", "when": "start"}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (GOOD | {"wen": "load"}, "wen"),
        (GOOD | {"kind": "explode"}, "kind"),
        (GOOD | {"when": "later"}, "when"),
        (GOOD | {"after_s": -1}, "after_s"),
        ({"rank": 0, "kind": "crash"}, "when"),
        (GOOD | {"code": 3}, "kind crash has no such key"),
        (GOOD | {"kind": "exit"}, "kind exit needs it"),
        (GOOD | {"kind": "slow"}, "kind slow needs it"),
        (GOOD | {"after_requests": 2}, "only when=request has it"),
        (GOOD | {"kind": "exit", "code": 256}, "code"),
    ],
)
def test_faults_are_parsed_strictly(fault, words):
    with pytest.raises(ConfigError, match=words):
        read_spec(json.dumps({"faults": [fault]}))
