"""`vllm bench serve`: its command line, and its result file (vllm/benchmarks/serve.py of 0.9.1 and 0.32)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.measure.clients.base import BenchClient, register
from jobs.measure.clients.result import Result, figures, single
from jobs.measure.records import RequestRecord, Target

RESULT = "vllm_bench.json"

METRICS = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (50, 90, 99)


@register("vllm_bench")
class VllmBench(BenchClient):
    """The engine's own client, so that both are of one version."""

    of_engine = True
    install = "Install the engine here"

    def program(self, config: Config) -> str:
        """Return the engine's own program, or `bench.program`."""
        return from_root(config.bench.program or config.engine.command[0])

    async def write(self, config: Config, target: Target, folder: Path, count: int) -> list[str]:
        """Return the command line; there is nothing to write."""
        bench, chat = config.bench, config.bench.endpoint == "chat"
        # Renamed after 0.9.1, which knows the same two values by --endpoint-type.
        backend = "--endpoint-type" if config.engine.release == "0.9.1" else "--backend"
        return [
            self.program(config),
            *("bench", "serve", backend, "openai-chat" if chat else "openai"),
            *("--base-url", target.base_url),
            *("--endpoint", "/v1/chat/completions" if chat else "/v1/completions"),
            *("--model", from_root(config.model.path), "--tokenizer", from_root(config.model.path)),
            *("--served-model-name", target.model),
            *(["--trust-remote-code"] if config.model.trust_remote_code else []),
            *_dataset(config),
            *("--num-prompts", str(count), "--seed", str(bench.seed), "--temperature", f"{bench.temperature:g}"),
            *("--request-rate", "inf" if bench.request_rate is None else f"{bench.request_rate:g}"),
            *(["--max-concurrency", str(bench.concurrency)] if bench.concurrency else []),
            *(["--ignore-eos"] if bench.ignore_eos else []),
            *("--percentile-metrics", ",".join(METRICS), "--metric-percentiles", ",".join(map(str, PERCENTILES))),
            *("--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", RESULT),
            "--disable-tqdm",
        ]

    def read(self, folder: Path, count: int) -> Result:
        """Read the result file. Its texts are dropped from it: they are the largest part, and nobody's figures."""
        path = folder / RESULT
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("generated_texts", None) is not None:
                path.write_text(json.dumps(data) + "\n", encoding="utf-8")
            return _result(data, count)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RunError(str(path), "(read)", reason, "See client.log beside it.") from None


def _dataset(config: Config) -> list[str]:
    """Return the arguments that choose the prompts."""
    bench = config.bench
    if bench.workload == "sharegpt":
        return ["--dataset-name", "sharegpt", "--dataset-path", from_root(str(bench.dataset))]
    lengths = ["--random-input-len", str(bench.input_tokens), "--random-output-len", str(bench.output_tokens)]
    return ["--dataset-name", "random", *lengths]


def _result(data: Mapping[str, Any], count: int) -> Result:
    completed = int(data["completed"])
    known: dict[str, float | int | None] = {
        "completed": completed,
        "failed": count - completed,
        "truncated_requests": 0,
        "request_per_s": data["request_throughput"],
        "output_tok_per_s": data["output_throughput"],
        "total_tok_per_s": data["total_token_throughput"],
        "input_tokens_mean": data["total_input_tokens"] / completed if completed else None,
        "output_tokens_mean": data["total_output_tokens"] / completed if completed else None,
    }
    for metric in METRICS:
        known |= _spread(metric, data, completed)
    waits = data.get("queue_times") if data.get("request_rate") != "inf" else None
    if waits and completed:
        known |= {f"wait_ms_p{number}": float(np.percentile(waits, number)) * 1e3 for number in (50, 99)}
    return Result(
        requested=count,
        completed=completed,
        failed=count - completed,
        seconds=float(data["duration"]),
        output_tokens=int(data["total_output_tokens"]),
        output_lengths=_lengths(data),
        errors=[text for text in data.get("errors", ()) if text][:3],
        figures=figures(known),
        requests=_requests(data, waits),
        tells_waits=bool(waits),
    )


def _requests(data: Mapping[str, Any], waits: Sequence[float] | None) -> list[RequestRecord]:
    """Return the single requests; none where the file does not tell of each. Releases before 0.30 tell no waits."""
    columns = [data.get(name) or [] for name in ("ttfts", "itls", "output_lens", "errors")]
    count = len(columns[0])
    starts = data.get("start_times") or list(range(count))
    if {len(one) for one in (*columns, starts, waits or starts)} != {count}:
        return []
    return [
        single(float(start), float(ttft), itl, int(tokens), whole=not error and tokens > 0, wait_s=float(wait))
        for start, wait, ttft, itl, tokens, error in zip(starts, waits or [0.0] * count, *columns, strict=True)
    ]


def _spread(metric: str, data: Mapping[str, Any], completed: int) -> dict[str, float | None]:
    # Without an answer it writes zeros; a figure that does not exist is None here.
    sources = {"mean": f"mean_{metric}_ms", "std": f"std_{metric}_ms"}
    sources |= {f"p{number}": f"p{number}_{metric}_ms" for number in PERCENTILES}
    return {f"{metric}_ms_{name}": data.get(source) if completed else None for name, source in sources.items()}


def _lengths(data: Mapping[str, Any]) -> Sequence[int]:
    """Return the tokens of the answers that it counts as whole."""
    errors = data.get("errors") or []
    lengths = data.get("output_lens") or []
    return [int(n) for n, error in zip(lengths, errors or [""] * len(lengths), strict=False) if not error]
