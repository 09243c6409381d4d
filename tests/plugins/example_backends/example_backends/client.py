"""The benchmark client of bench.py, for `bench.client=example_bench`."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.measure.clients.base import BenchClient, register
from jobs.measure.clients.result import Result, figures
from jobs.measure.records import Target

RESULT = "result.json"


@register("example_bench")
class ExampleBench(BenchClient):
    """It sends random token ids, so it needs no tokenizer and can measure the rehearsal engine too."""

    needs_tokenizer = False
    install = "Install example-backends on the node"
    workloads = ("random",)

    def program(self, config: Config) -> str:
        return config.bench.program or "example-bench"

    async def write(self, config: Config, target: Target, folder: Path, count: int) -> list[str]:
        bench, (low, high) = config.bench, config.model.shape.token_ids
        options = {
            "url": target.base_url, "model": target.model, "requests": count, "concurrency": bench.concurrency or count,
            "input": bench.input_tokens, "output": bench.output_tokens, "low": low, "high": high, "seed": bench.seed,
            "result": folder / RESULT,
        }  # fmt: skip
        return [self.program(config), *(f"--{name}={value}" for name, value in options.items())]

    def read(self, folder: Path, count: int) -> Result:
        path = folder / RESULT
        try:
            said = json.loads(path.read_text())
            tokens, seconds, errors = said["output_tokens"], said["seconds"], said["errors"]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(str(path), "(read)", f"{type(error).__name__}: {error}", "See client.log.") from None
        known = {
            "completed": len(tokens),
            "failed": len(errors),
            "request_per_s": len(tokens) / seconds,
            "output_tok_per_s": sum(tokens) / seconds,
            "output_tokens_mean": sum(tokens) / len(tokens) if tokens else None,
        }
        return Result(count, len(tokens), len(errors), seconds, sum(tokens), tokens, errors[:3], figures(known))
