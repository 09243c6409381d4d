"""AISBench (PyPI: ais_bench_benchmark, seen with 3.1): its config file, command line and result files.

URL, rate and concurrency stand in the config file, not in flags. Values of the result files are texts with units.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from jobs.core.config import Config
from jobs.core.errors import RunError
from jobs.core.fields import from_root
from jobs.core.files import write_text
from jobs.core.foreign import from_yaml
from jobs.measure.clients import prompts
from jobs.measure.clients.base import BenchClient, register, runs_inside
from jobs.measure.clients.result import Result, figures, single
from jobs.measure.records import RequestRecord, Target

CONFIG = "ais_bench_config.py"
PROMPTS = "prompts.jsonl"
"""Prompts of exact lengths (prompts.py), beside the config file; where they are, they are sent."""

MODEL, DATASET = "service", "prompts"

DEFAULT_PROGRAM = ".engines/ais_bench/bin/ais_bench"
"""Where `python tools/engines.py ais_bench` puts it: its pins (numpy<2, datasets<=3.6) suit no engine."""

_PARTS: Mapping[str, str] = from_yaml(Path(__file__).with_name("ais_bench.yaml").read_text(encoding="utf-8"))
"""Texts of the config file."""


@register("ais_bench")
class AisBench(BenchClient):
    """AISBench, on the node in an environment of its own, or in an image that has it."""

    install = "Run `python tools/engines.py ais_bench`"

    def program(self, config: Config) -> str:
        """Return `bench.program`, or where AISBench is by default: in the node's environment, or on an image's PATH."""
        return from_root(config.bench.program or ("ais_bench" if runs_inside(config) else DEFAULT_PROGRAM))

    async def write(self, config: Config, target: Target, folder: Path, count: int) -> list[str]:
        """Write prompts and the config file, and return the command line; the results come below `folder`."""
        exact = config.bench.workload == "random" and await prompts.write(config, target, folder / PROMPTS, count)
        text = config_text(config, target, count, folder / PROMPTS if exact else None)
        write_text(folder / CONFIG, text, mode=0o600)
        argv = [self.program(config), str(folder / CONFIG), "--mode", "perf"]
        argv += ["--work-dir", str(folder), "--num-warmups", "1"]
        # A conversation may hold several requests: its dataset is cut by conversations.
        return [*argv, "--num-prompts", str(count)] if config.bench.workload == "sharegpt" else argv

    def read(self, folder: Path, count: int) -> Result:
        """Read the newest results below `folder`."""
        found = sorted(folder.glob(f"*/performances/{MODEL}/{DATASET}.json"))
        path = found[-1] if found else folder / f"*/performances/{MODEL}/{DATASET}.json"
        try:
            common = json.loads(path.read_text(encoding="utf-8"))
            with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
                table = {row["Performance Parameters"]: row for row in csv.DictReader(file)}
            return _result(common, table, path, count)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RunError(str(path), "(read)", reason, "See client.log beside it.") from None

    def forget_secrets(self, target: Target, folder: Path) -> None:
        """Take the key out of the config file, and remove AISBench's own copies of it and its parameters."""
        for path in (folder / "tmp", *folder.glob("*/configs")):
            shutil.rmtree(path, ignore_errors=True)
        path = folder / CONFIG
        if target.api_key and path.exists():
            write_text(path, path.read_text(encoding="utf-8").replace(repr(target.api_key), "'(removed)'"), mode=0o600)


def config_text(config: Config, target: Target, requests: int, prompts: Path | None = None) -> str:
    """Return the config file: Python, since AISBench takes no other form. The service's key stands in it.

    Without a file of random `prompts` its "tokenid" generator makes them, longer than asked; the "string" one repeats
    one word, so that every prompt is the same and its length is in words.
    """
    bench = config.bench
    sharegpt = bench.workload == "sharegpt"
    url = urlsplit(target.base_url)
    model_type = "VLLMCustomAPIChat" if bench.endpoint == "chat" or sharegpt else "VLLMCustomAPI"
    model = {
        "attr": "service",
        "abbr": MODEL,
        "path": from_root(config.model.path),
        "model": target.model,
        "stream": True,
        "request_rate": bench.request_rate or 0,
        "use_timestamp": False,
        "retry": 1,
        "api_key": target.api_key or "",
        "host_ip": url.hostname,
        "host_port": url.port,
        "url": "",
        "max_out_len": bench.output_tokens,
        "batch_size": bench.concurrency or requests,
        "trust_remote_code": config.model.trust_remote_code,
        "generation_kwargs": {"temperature": bench.temperature, "ignore_eos": bench.ignore_eos, "seed": bench.seed},
    }
    if sharegpt:
        turns, classes = "MultiTurn", "ShareGPTDataset, ShareGPTEvaluator"
        datasets = _PARTS["sharegpt"].format(abbr=DATASET, path=from_root(str(bench.dataset)))
    else:
        turns, classes = "", "CustomDataset, MATHEvaluator" if prompts else "MATHEvaluator, SyntheticDataset"
        datasets = _random(config, requests, prompts)
    head = _PARTS["head"].format(model_type=model_type, turns=turns, classes=classes)
    models = f"models = [dict(type={model_type}, **{model!r})]\n"
    return head + "\n" + models + datasets + _PARTS["summary"]


def _random(config: Config, requests: int, prompts: Path | None) -> str:
    made = {
        "Type": "tokenid",
        "RequestCount": requests,
        "TrustRemoteCode": config.model.trust_remote_code,
        "TokenIdConfig": {"RequestSize": config.bench.input_tokens},
    }
    made_here = f"type=SyntheticDataset,\n    config={made!r}"
    kind = f"type=CustomDataset,\n    path={str(prompts)!r}" if prompts else made_here
    return _PARTS["random"].format(abbr=DATASET, kind=kind)


def _result(common: Mapping[str, Any], table: Mapping[str, Mapping[str, str]], path: Path, count: int) -> Result:
    completed, failed = int(_of(common, "Success Requests")), int(_of(common, "Failed Requests"))
    known: dict[str, float | int | None] = {
        "completed": completed,
        "failed": failed,
        "truncated_requests": 0,
        "request_per_s": _of(common, "Request Throughput"),
        "output_tok_per_s": _of(common, "Output Token Throughput"),
        "total_tok_per_s": _of(common, "Total Token Throughput"),
        "input_tokens_mean": _mean(table.get("InputTokens")),
        "output_tokens_mean": _mean(table.get("OutputTokens")),
    }
    for metric in ("TTFT", "TPOT", "ITL", "E2EL"):
        known |= _spread(metric, table.get(metric))
    rows = _rows(path.with_name(f"{DATASET}_details.jsonl"))
    return Result(
        # A ShareGPT conversation is several requests: then its own count is what was asked.
        requested=max(count, int(_of(common, "Total Requests"))),
        completed=completed,
        failed=failed,
        seconds=_of(common, "Benchmark Duration") / 1e3,
        output_tokens=int(_of(common, "Total Generated Tokens")),
        output_lengths=_lengths(rows),
        errors=_errors(path.with_name(f"{DATASET}_failed.jsonl")),
        figures=figures(known),
        requests=_requests(rows, path.with_name("db_data")),
    )


def number(text: Any) -> float:
    """Return the number of "18.412 req/s" or "3475.9873 ms"; counts are numbers already."""
    return float(str(text).split()[0])


def _of(common: Mapping[str, Any], name: str) -> float:
    return number(common[name]["total"])


def _spread(metric: str, row: Mapping[str, str] | None) -> dict[str, float | None]:
    """Return mean, p50, p90, p99 in ms; AISBench gives no standard deviation."""
    names = {"mean": "Average", "p50": "Median", "p90": "P90", "p99": "P99"}
    return {f"{metric.lower()}_ms_{name}": number(row[column]) if row else None for name, column in names.items()}


def _mean(row: Mapping[str, str] | None) -> float | None:
    return number(row["Average"]) if row else None


def _requests(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[RequestRecord]:
    """Return the single requests in the order in which they were sent; none where not all of them are told.

    Their moments lie in the databases of `folder`, as arrays of numpy: of the sending, and of each chunk of the answer.
    A request that failed has none there that tells when it was sent: it stands last.
    """
    found: list[RequestRecord] = []
    try:
        moments = {name: _moments(folder / Path(name).name) for name in {str(row["db_name"]) for row in rows}}
        for row in rows:
            if not row["success"]:
                found.append(single(math.inf, 0.0, (), 0, whole=False))
                continue
            begin, *chunks = moments[str(row["db_name"])][int(row["time_points"]["__db_ref__"])]
            found.append(
                single(begin, chunks[0] - begin, np.diff(chunks).tolist(), int(row["output_tokens"]), whole=True)
            )
    except (OSError, ValueError, KeyError, IndexError, TypeError, sqlite3.Error):
        return []
    return sorted(found, key=lambda one: one.start_s)


def _moments(path: Path) -> dict[int, list[float]]:
    """Return the arrays of one database by their number."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
        rows = base.execute("SELECT id, arr_blob FROM numpy_store").fetchall()
    return {number: np.load(io.BytesIO(blob)).tolist() for number, blob in rows}


def _lengths(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the output tokens of each answer that it calls whole, as the service counted them."""
    return [int(row["output_tokens"]) for row in rows if row.get("success", True) and "output_tokens" in row]


def _errors(path: Path) -> list[str]:
    return [str(row.get("error_info") or row)[:200] for row in _rows(path, most=3)]


def _rows(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Return the first lines of a JSONL file, by default all; nothing where it is missing or torn."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")[:most]]
    except (OSError, ValueError):
        return []
