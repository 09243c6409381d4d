"""Is the window client exact, and is it cheap? Both beside `vllm bench serve`, on one stub with a known schedule.

    python benchmarks/client_overhead.py                   256 streams of 45 tokens/s, three rounds
    python benchmarks/client_overhead.py --bodies          only the time to build one request body

A round runs the window client and then `vllm bench serve` against a fresh stub each (`stub_server.py`), so that
both meet the same machine. Printed as ratios:
    error   how far TTFT and ITL figures are from the stub's own record of when it wrote. Goal: under 2 %.
    CPU     seconds of processor time per 1,000 tokens, while all streams run: start-up and imports of either
            program do not count. Goal: at most 0.8 of `vllm bench serve`.
Where other work runs on the machine, `--realtime` (as root) gives stub and clients a priority above it, once
they are up; without it a late turn on the processor looks like an error of the client. Exit code 1 where a goal
is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from jobs.core.config import Bench, Model  # noqa: E402
from jobs.core.loop import Loop  # noqa: E402
from jobs.core.service_config import Shape  # noqa: E402
from jobs.core.sweep_settings import Limits  # noqa: E402
from jobs.measure.client import measure  # noqa: E402
from jobs.measure.records import Target  # noqa: E402
from jobs.measure.workload import Workload, numbers  # noqa: E402

MODEL = Model(name="stub", path="stub", served_model_name="stub")
LOW, HIGH = MODEL.shape.token_ids
SETTLE_S = 2.0
ERROR_GOAL, CPU_GOAL = 0.02, 0.8
FIGURES = ("mean", "p50", "p90", "p99")

Spread = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What one run of one client showed: its own figures in ms, the stub's, and its processor time."""

    seen: dict[str, Spread]
    true: dict[str, Spread]
    cpu_ms_per_1000: float
    tokens_s: float
    worst_gap_ms: float | None = None

    def errors(self) -> dict[str, float]:
        """Return seen / true - 1 of every figure."""
        return {
            f"{name} {figure}": self.seen[name][figure] / self.true[name][figure] - 1
            for name in ("TTFT", "ITL")
            for figure in FIGURES
        }


def spread(values: Any) -> Spread:
    data = np.asarray(values) * 1e3
    p50, p90, p99 = np.percentile(data, (50, 90, 99))
    return {"mean": float(data.mean()), "p50": float(p50), "p90": float(p90), "p99": float(p99)}


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return json.load(answer)


@contextmanager
def stub(args: argparse.Namespace, lockstep: bool) -> Iterator[int]:
    """Run a stub of its own process; give its port."""
    words = ["--ttft-ms", str(args.ttft_ms), "--rate", str(args.rate), *(["--lockstep"] if lockstep else [])]
    command = [sys.executable, str(ROOT / "benchmarks" / "stub_server.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            hurry(process.pid, args)
            yield port
        finally:
            process.terminate()


def hurry(pid: int, args: argparse.Namespace) -> None:
    """Raise every thread of a process to real-time priority, where that was asked for."""
    if args.realtime:
        for thread in psutil.Process(pid).threads():
            os.sched_setscheduler(thread.id, os.SCHED_FIFO, os.sched_param(10))


def cpu_s(process: psutil.Process) -> float:
    """Return the processor seconds of a process and its children so far."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total


def run(command: list[str], port: int, args: argparse.Namespace) -> tuple[float, float]:
    """Run a client to its end; return its CPU ms per 1,000 tokens and the tokens/s while all streams ran."""
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        watched = psutil.Process(process.pid)

        def check() -> None:
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"the client ended too early:\n{log.read()[-2000:]}")

        while get(port, "/stats")["active"] < args.streams:
            check()
            time.sleep(0.2)
        hurry(process.pid, args)
        time.sleep(SETTLE_S)
        begun, before, tokens = time.perf_counter(), cpu_s(watched), get(port, "/stats")["tokens"]
        time.sleep(args.seconds)
        check()
        used, tokens = cpu_s(watched) - before, get(port, "/stats")["tokens"] - tokens
        elapsed = time.perf_counter() - begun
        if process.wait():
            log.seek(0)
            raise SystemExit(f"the client failed:\n{log.read()[-2000:]}")
    return used * 1e6 / tokens, tokens / elapsed


def window_client(args: argparse.Namespace, port: int) -> Outcome:
    """Run the window client in a process of its own and match each of its requests with the stub's record."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "records.json"
        words = ["--child", str(port), "--records", str(file)]
        words += ["--streams", str(args.streams), "--seconds", str(args.seconds)]
        words += ["--input", str(args.input), "--output", str(args.output)]
        cpu, tokens_s = run([sys.executable, __file__, *words], port, args)
        records = json.loads(file.read_text("utf-8"))
    truth = get(port, "/truth")
    seen_ttft, seen_itl, true_ttft, true_itl = [], [], [], []
    for record in records:
        key = ",".join(map(str, numbers(0, record["index"], args.input, LOW, HIGH)[:8].tolist()))
        sent = truth[key]["sent"]
        seen_ttft.append(record["times"][0] - record["start"])
        true_ttft.append(sent[0] - truth[key]["received"])
        seen_itl.append(np.diff(record["times"]))
        true_itl.append(np.diff(sent))
    seen, true = np.concatenate(seen_itl), np.concatenate(true_itl)
    return Outcome(
        {"TTFT": spread(seen_ttft), "ITL": spread(seen)},
        {"TTFT": spread(true_ttft), "ITL": spread(true)},
        cpu,
        tokens_s,
        float(np.percentile(np.abs(seen - true), 99)) * 1e3,
    )


async def child(args: argparse.Namespace) -> None:
    """Run as the measured process: the window client, and its records as JSON."""
    bench = Bench(
        concurrency=args.streams,
        input_tokens=args.input,
        output_tokens=args.output,
        warmup_s=SETTLE_S,
        window_s=args.seconds + 2 * SETTLE_S,
    )
    window = await measure(bench, Limits(), MODEL, Target(f"http://127.0.0.1:{args.child}", "stub"))
    counted = [record for record in window.records if record.in_window]
    wrong = [record for record in counted if record.status != "ok"]
    if wrong or not counted:
        raise SystemExit(f"{len(wrong)} of {len(counted)} requests are not ok: {wrong[:1]}")
    rows = [{"index": r.index, "start": r.start_s, "times": r.chunk_times.tolist()} for r in counted]
    args.records.write_text(json.dumps(rows), "utf-8")


def vllm_bench(args: argparse.Namespace, port: int) -> Outcome:
    """Run `vllm bench serve`; all its requests count, as it has no window."""
    answer_s = args.ttft_ms / 1e3 + args.output / args.rate
    waves = math.ceil((args.seconds + 3 * SETTLE_S) / answer_s) + 1
    with tempfile.TemporaryDirectory() as folder:
        command = [str(args.vllm), "bench", "serve", "--backend", "openai"]
        command += ["--base-url", f"http://127.0.0.1:{port}", "--model", "stub", "--tokenizer", str(args.tokenizer)]
        command += ["--dataset-name", "random", "--random-input-len", str(args.input)]
        command += ["--random-output-len", str(args.output), "--num-prompts", str(args.streams * waves)]
        command += ["--max-concurrency", str(args.streams), "--ignore-eos", "--disable-tqdm"]
        command += ["--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,90,99"]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        cpu, tokens_s = run(command, port, args)
        result = json.loads((Path(folder) / "result.json").read_text("utf-8"))
    seen = {name: {f: result[f"{f}_{name.lower()}_ms"] for f in FIGURES} for name in ("TTFT", "ITL")}
    truth = get(port, "/truth").values()
    true = {
        "TTFT": spread([one["sent"][0] - one["received"] for one in truth]),
        "ITL": spread(np.concatenate([np.diff(one["sent"]) for one in truth])),
    }
    return Outcome(seen, true, cpu, tokens_s)


def describe(name: str, outcome: Outcome) -> None:
    errors = "  ".join(f"{key} {error:+.2%}" for key, error in outcome.errors().items())
    gap = f"  99 % of gaps within {outcome.worst_gap_ms:.2f} ms" if outcome.worst_gap_ms is not None else ""
    print(f"  {name:<17} {outcome.cpu_ms_per_1000:6.2f} CPU ms/1000 tok at {outcome.tokens_s:,.0f} tok/s{gap}")
    print(f"    error: {errors}", flush=True)


def bodies() -> None:
    """Print the time to build one body: at 100 requests/s, 1 ms is a tenth of a processor."""
    for endpoint in ("completions", "chat"):
        for tokens in (1024, 32768, 131072):
            model = Model(shape=Shape(token_ids=(1000, 120000)))
            workload = Workload(Bench(endpoint=endpoint, input_tokens=tokens), model, "stub")
            begun = time.perf_counter()
            for index in range(50):
                workload.body(index)
            print(f"{endpoint:<12} {tokens:>7} tokens: {(time.perf_counter() - begun) * 20:.2f} ms a body")


def compare(args: argparse.Namespace) -> bool:
    """Run all rounds; return whether the goals are met."""
    with_vllm = args.vllm.exists() and args.tokenizer.exists()
    if not with_vllm:
        missing = args.vllm if not args.vllm.exists() else args.tokenizer
        print(f"vllm bench serve is left out: {missing} does not exist. Make it with tools/engines.py.")
    met = True
    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for lockstep in (False, True):
        kind = "all streams in step, as a batching engine writes" if lockstep else "streams out of step"
        print(f"{args.streams} streams x {args.rate:g} tokens/s, {kind}")
        errors, ratios = [], []
        for _ in range(args.rounds):
            with stub(args, lockstep) as port:
                ours = window_client(args, port)
            describe("window client", ours)
            errors.append(max(map(abs, ours.errors().values())))
            if with_vllm:
                with stub(args, lockstep) as port:
                    theirs = vllm_bench(args, port)
                describe("vllm bench serve", theirs)
                ratios.append(ours.cpu_ms_per_1000 / theirs.cpu_ms_per_1000)
        error = float(np.median(errors))
        met &= error < ERROR_GOAL
        print(f"  largest error of a figure, median of {args.rounds}: {error:.2%} (goal < {ERROR_GOAL:.0%})")
        if ratios:
            met &= float(np.median(ratios)) <= CPU_GOAL
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"  CPU, window client / vllm bench serve: {np.median(ratios):.2f} of [{each}] (goal <= {CPU_GOAL})")
    return met


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, default=ROOT / ".engines" / "vllm_cpu" / "bin" / "vllm")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / ".engines" / "models" / "tiny_llama")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=45.0, help="tokens/s of one stream")
    parser.add_argument("--ttft-ms", type=float, default=500.0)
    parser.add_argument("--input", type=int, default=256, help="prompt tokens")
    parser.add_argument("--output", type=int, default=128, help="output tokens")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring in each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--realtime", action="store_true", help="real-time priority for stub and clients")
    parser.add_argument("--bodies", action="store_true", help="only the time to build a request body")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--records", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(child(args))
    elif args.bodies:
        bodies()
    else:
        return 0 if compare(args) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
