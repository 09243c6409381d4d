"""Seconds from a fault to the released allocation, on the two-node Slurm lab: writes docs/faults.md.

    python benchmarks/faults.py [--runs 3] [--vllm-runs 3] [--only WORDS] [--raw runs/faults.json] [--render]

Every fault of tests/faults is run several times, one after the other, on a machine that does nothing else (as root:
the lab). Results are kept in the raw file at once, so that an interrupted benchmark goes on where it was; --render only
writes the page. Exit code 1 where a goal is missed, a row is lost, a row is valid that must not be, or a process is
left.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("fakes", "lab", "faults"))]

from cases import CASES, SLURM_GIVES_UP_S, Case, Result, run  # noqa: E402
from lab import Lab  # noqa: E402

IDLE_LOAD = 1.5
"""The cases themselves leave this behind on two cores."""

PAGE = ROOT / "docs/faults.md"


@dataclass(frozen=True)
class Record:
    """One run of one case, as it is kept in the raw file."""

    case: str
    seconds: float
    state: str
    lost_rows: int
    false_successes: int
    orphans: int
    leaked: int
    reasons: list[str]
    load: float
    """Load average of the last minute before the run: what else the machine did."""


def record(case: Case, result: Result, load: float) -> Record:
    """Judge one run."""
    end = result.end
    told = [bool(row["valid"]) or bool(row["invalid_reason"]) for row in end.rows]
    pairs = zip(end.rows, case.rows, strict=False)
    return Record(
        case=case.id,
        seconds=round(result.seconds, 2),
        state=end.state,
        lost_rows=len(case.rows) - sum(told),
        false_successes=sum(bool(row["valid"]) and not valid for row, (valid, _) in pairs),
        orphans=len(end.orphans),
        leaked=len(end.leaked),
        reasons=[str(row["invalid_reason"]) for row in end.rows if not row["valid"]],
        load=round(load, 1),
    )


def read(raw: Path) -> list[Record]:
    return [Record(**item) for item in json.loads(raw.read_text(encoding="utf-8"))] if raw.exists() else []


def measure(raw: Path, runs: int, vllm_runs: int, only: str) -> None:
    """Run every case as often as it takes to have so many records of it."""
    lab = Lab()
    lab.up()
    for number in range(max(runs, vllm_runs)):
        for case in CASES:
            records = read(raw)
            have = sum(one.case == case.id for one in records)
            if only not in case.id or have > number or have >= (vllm_runs if case.real else runs):
                continue
            load = os.getloadavg()[0]
            with tempfile.TemporaryDirectory(prefix="faults-") as folder:
                done = record(case, run(case, lab, Path(folder) / "runs"), load)
            print(f"{case.id}: {done.seconds:.2f} s, {done.state}", flush=True)
            raw.parent.mkdir(parents=True, exist_ok=True)
            raw.write_text(json.dumps([asdict(one) for one in [*records, done]], indent=1), encoding="utf-8")


def _seconds(case: Case, records: list[Record]) -> str:
    if case.goal_s is None:
        return "goes on | goes on | | "
    values = [one.seconds for one in records]
    goal = f"{case.goal_s:g}" + (f" + {case.slack_s:g}" if case.slack_s else "")
    met = "yes" if max(values) <= case.goal_s + case.slack_s else "**no**"
    return f"{statistics.median(values):.1f} | {max(values):.1f} | {goal} | {met}"


def _rows(case: Case) -> str:
    names = {(True, False): "valid", (False, True): "cut short", (False, False): "invalid"}
    return ", ".join(names[row] for row in case.rows)


def render(records: list[Record]) -> str:
    """Return the page."""
    lines = []
    for case in CASES:
        mine = [one for one in records if one.case == case.id]
        if not mine:
            continue
        states = ", ".join(sorted({one.state for one in mine}))
        engine = "vLLM" if case.real else "simulator"
        lines.append(
            f"| {case.name} | {case.on} | {engine} | {_seconds(case, mine)} | {states} | {_rows(case)} | {len(mine)} |"
        )
    table = "\n".join(lines)
    sums = {
        "runs": len(records),
        "rows lost": sum(one.lost_rows for one in records),
        "false successes": sum(one.false_successes for one in records),
        "orphan processes": sum(one.orphans for one in records),
        "leaked shared-memory segments": sum(one.leaked for one in records),
    }
    loads = [one.load for one in records]
    busy = statistics.median(loads) > IDLE_LOAD
    how = "shared with other work, which makes every figure larger" if busy else "otherwise idle"
    other = f"The machine was {how}: load average before a run {statistics.median(loads):.1f}, worst {max(loads):.1f}."
    totals = ", ".join(f"{count} {name}" for name, count in sums.items())
    slurm = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    reasons = "\n".join(f"| {case.name} | {case.on} | {_reason(case, records)} |" for case in CASES if case.reason)
    return f"""# What a fault costs

Made by `python benchmarks/faults.py` on {date.today():%d %B %Y}: the two-node lab of `tests/lab` ({slurm},
`SlurmdTimeout=30`, `KillWait=30`, `MessageTimeout=10`) on {os.cpu_count()} cores, which slurmctld, both nodes and
both engines share.
`limits.heartbeat_s=4`, `limits.probe_s=3`, `limits.stop_s=5`, `parallel.max_model_len=1024`. Two points a sweep: the
first is measured before the fault, the fault comes in the window of the second. `tests/faults` asserts the end of
each of them.

{other}

**{totals}.**

Seconds from the fault until no node that is alive is held any more (`squeue`): median and worst of the runs.
Goals: 10 s for a dead process, `limits.heartbeat_s` + 10 s for a hang or a cut.

| fault | on | engine | median s | worst s | goal s | met | job ends | rows | runs |
|---|---|---|---|---|---|---|---|---|---|
{table}

What the figures hold:
- Every failure is settled for 1.5 s before it is named (`SETTLE_S`): the first failing rank is the one whose own
  report is the earliest, not the one that was heard first.
- SIGSTOP: half of `limits.heartbeat_s` without a new token, then a one-token probe of `limits.probe_s` plus 1 ms for
  each token that the engine may have to read first: one step of `parallel.max_num_batched_tokens` or the longest
  request, and no more than is in flight. With the defaults (15 s, 10 s) an idle engine, or one with short requests, is
  given up after 18 s, one with 8,192 tokens in flight after 26 s, at any `parallel.max_model_len`. Where lengths are
  not fixed, or others may send requests, it is 1 ms a token of `max_model_len`: 150 s at 131,072 tokens, since a
  prefill of that length takes 46 to 100 s on two Atlas 800I A2, and must not look like a hang.
- Not ours, stated apart as "+": the network cut of rank 0 cuts off the node with `srun`. Both ranks have stopped
  their engines and rank 1 has cancelled the job within 9 s; then slurmstepd on rank 1's node waits for `srun` about
  {SLURM_GIVES_UP_S:g} s (two time-outs of `MessageTimeout`) before Slurm gives that node back. Without `scancel` by
  the rank it was 45 to 50 s here, and 300 s with Slurm's default `SlurmdTimeout`.
- Network cut and node down: a node that does not answer stays "completing" or "down" until it is back; the time is
  that of the other one.
- Time limit: from Slurm's SIGUSR2, which is asked for 90 s before the limit. Slurm looks at time limits every 30 s,
  so the signal may come that much later; this is not in the figure.
- Disk full, read-only, rank 0: the fault is met when the window of 4 s is over and its row is to be written (+ 4).
  The rows go into space that the allocation held (`allocations/*/reserve`); on a read-only directory
  `python -m jobs follow` writes them from the ranks' own output once it can be written.
- "goes on": the job is not touched by the fault and ends by itself with every row valid.

## The reasons in the rows

| fault | on | `invalid_reason` (one run; paths shortened) |
|---|---|---|
{reasons}
"""


def _reason(case: Case, records: list[Record]) -> str:
    found = [reason for one in records if one.case == case.id for reason in one.reasons]
    words = found[-1] if found else ""
    short = " ".join(f"…/{word.rpartition('/')[2]}" if word.startswith("/tmp/") else word for word in words.split())
    return short.replace("|", "/")[:300]


def missed(records: list[Record]) -> list[str]:
    """Return what is not as it must be."""
    cases = {case.id: case for case in CASES}
    found = []
    for one in records:
        case = cases[one.case]
        if one.lost_rows or one.false_successes or one.orphans or one.leaked:
            found.append(f"{one.case}: {one}")
        if case.goal_s is not None and one.seconds > case.goal_s + case.slack_s:
            found.append(f"{one.case}: {one.seconds:.1f} s, the goal is {case.goal_s + case.slack_s:g} s")
    return found


def main() -> int:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--vllm-runs", type=int, help="runs of a case with the real vLLM; default: --runs")
    parser.add_argument("--only", default="", help="a part of the names of the cases, as pytest shows them")
    parser.add_argument("--raw", type=Path, default=ROOT / "runs/faults.json")
    parser.add_argument("--render", action="store_true", help="only write the page")
    options = parser.parse_args()
    if not options.render:
        vllm_runs = options.runs if options.vllm_runs is None else options.vllm_runs
        measure(options.raw, options.runs, vllm_runs, options.only)
    known = {case.id for case in CASES}
    records = [one for one in read(options.raw) if one.case in known]
    PAGE.write_text(render(records))
    print(f"{PAGE.relative_to(ROOT)}: {len(records)} runs")
    for line in missed(records):
        print(f"missed: {line}")
    return 1 if missed(records) else 0


if __name__ == "__main__":
    sys.exit(main())
