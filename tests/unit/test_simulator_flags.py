"""The command line: every expectation was taken from vLLM 0.9.1's own parser (see tools/extract_flags.py)."""

import json
import shlex

import pytest
from simulator_help import R1, settled

from jobs.core.errors import ConfigError
from jobs.core.schema import build
from jobs.core.service_config import Rehearsal, Shape
from jobs.engines.ascend import release, releases
from jobs.engines.simulator.flags import UsageError, converter, normalise, parse
from jobs.engines.simulator.settings import StartError, settle
from jobs.engines.simulator.spec import Spec, read_spec, spec_json

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
    head = settle(parse(words, R).args, Spec(shape=R1), {})
    assert (head.tensor_parallel, head.data_parallel, head.local) == (8, 2, range(0, 1))
    assert (head.max_model_len, head.max_num_batched_tokens, head.max_num_seqs, head.block_size) == (
        8192,
        8192,
        256,
        128,
    )
    assert head.rpc_address == ("10.226.72.51", 13389) and head.http_address == ("0.0.0.0", 8000)
    assert head.expert_parallel and head.chunked_prefill and not head.prefix_caching and not head.headless
    second = settle(parse([*words, "--headless", "--data-parallel-start-rank", "1"], R).args, Spec(shape=R1), {})
    assert second.headless and second.local == range(1, 2)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max_model_len=4096"], {"max_model_len": 4096}),
        (["--max-model", "8192"], {"max_model_len": 8192}),  # 0.9.1 accepts abbreviations
        (["--max-model-len", "8k"], {"max_model_len": 8000}),
        (["--max-model-len", "8K"], {"max_model_len": 8192}),
        (["-O3"], {"compilation_config": {"level": 3}}),
        (["-O", '{"level":0}'], {"compilation_config": {"level": 0}}),
        (["-tp", "8", "-dp", "2"], {"tensor_parallel_size": 8, "data_parallel_size": 2}),
        (
            ["--additional_config.a_b.c", "1", "--additional-config.d=x"],
            {"additional_config": {"a_b": {"c": "1"}, "d": "x"}},
        ),
        (["--additional-config", "words"], {"additional_config": "words"}),
        (["--override-generation-config", "a=1"], {"override_generation_config": {"a": 1}}),
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
        (["--nope.a", "1"], "unrecognized arguments: --nope"),
        (["--port", "x"], "vllm serve: error: argument --port: invalid int value: 'x'"),
        (["--max-model-len", "8.5K"], "Decimals are not allowed with binary suffixes like K. Did you mean to use 8.5k"),
        (["--max-model-len", "long"], "argument --max-model-len: invalid human_readable_int value: 'long'"),
        (["--seed", "x"], "argument --seed: Value x cannot be converted to <class 'int'>."),
        (["--quantization", "zz"], "argument --quantization/-q: invalid choice: 'zz' (choose from 'aqlm'"),
        (["--quantization", "None"], "invalid choice: None"),  # offered, but no choice matches it: so in vLLM
        (["--block-size", "100"], "argument --block-size: invalid choice: 100 (choose from 1, 8, 16, 32, 64, 128)"),
        (["--compilation-config", "bad"], "argument --compilation-config/-O: Invalid JSON"),
        (["--compilation-config", "[1]"], "Input should be a dictionary"),
        (["--additional-config", "{bad}"], "argument --additional-config: Value {bad} cannot be converted"),
        (["--override-generation-config", "bad"], "Each item should be in the form KEY=VALUE"),
        (["--override-generation-config", "a=b"], "Failed to parse value of item a=b"),
        (["--max-num-seqs"], "argument --max-num-seqs: expected one argument"),
        (["--data-parallel-s", "1"], "ambiguous option: --data-parallel-s could match"),
    ],
)
def test_refusals_are_argparse_s(argv, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(["serve", "m", *argv], R)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err


def test_what_vllm_raises_itself(tmp_path):
    with pytest.raises(UsageError, match="instead of via the `--model` option"):
        parse(["serve", "--model", "m"], R)
    with pytest.raises(UsageError, match="IndexError"):
        normalise(["serve", "m", "--additional-config.a"])
    with pytest.raises(UsageError, match="FileNotFoundError"):
        normalise(["serve", "m", "--config", str(tmp_path / "none.yaml")])


def test_config_file_comes_before_the_command_line(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("max-num-seqs: 7\nport: 9000\nenforce-eager: true\ntrust-remote-code: false\n")
    args = parse(["serve", "m", "--config", str(file), "--port", "9001"], R).args
    assert (args.max_num_seqs, args.port, args.enforce_eager, args.trust_remote_code) == (7, 9001, True, False)


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
    assert s.prefix_caching and s.chunked_prefill and s.local_only
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
    assert spec == Spec("0.9.1", 1, config.model.shape, config.engine.rehearsal, 4)
    assert read_spec(None) == Spec() == Spec("0.9.1", 0, Shape(), Rehearsal(), 8)
    assert read_spec('{"rank": 3}').rank == 3


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"rnk": 1}', '{"rank": "1"}', '{"rehearsal": {"load_s": -1}}', '{"rehearsal": {"lod": 1}}']
)
def test_bad_spec_is_an_error(text):
    with pytest.raises(ConfigError):
        read_spec(text)


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
        read_spec(json.dumps({"rehearsal": {"faults": [fault]}}))
