"""Up to which length speculation pays: the crossing, its interval, and what is not said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from core_help import config
from results_help import planned, row

from jobs.core.files import write_text
from jobs.core.rundir import SweepDir
from jobs.engines.prediction import Layout
from jobs.engines.simulator.roofline import Clock
from jobs.engines.simulator.scheduler import Drafting, Request, Scheduler
from jobs.engines.simulator.settings import RehearsalSpec
from jobs.results.break_even import BreakEven, Gain, break_even, lines
from jobs.results.gather import Run, read_run
from jobs.results.intervals import Scatter
from jobs.results.page import worded
from jobs.results.verdict import judge
from jobs.sweep import plan
from jobs.sweep.points import Point

LENGTHS = tuple(4096 * 2**n for n in range(6))
ACCEPTED, COST, OUTPUT = 0.9, 0.2, 64


def gains(*percents: float, error: float = 0.01) -> list[Gain]:
    return [Gain(length, math.log1p(one / 100), error) for length, one in zip(LENGTHS, percents, strict=False)]


def test_the_crossing_lies_between_the_lengths_around_it() -> None:
    found = break_even(gains(40, 20, -10, -30))
    assert found is not None
    assert LENGTHS[1] < found.low < found.length < found.high < LENGTHS[2]
    wider = break_even(gains(40, 20, -10, -30, error=0.05))
    assert wider is not None
    assert wider.low < found.low
    assert found.high < wider.high
    assert break_even(list(reversed(gains(40, 20, -10, -30)))) == found, "the order of the lengths does not matter"


def test_the_interval_says_where_no_length_that_was_measured_tells() -> None:
    assert break_even(gains(40, 30, 20)) == BreakEven(math.inf, math.inf, math.inf)
    assert break_even(gains(-10, -20, -30)) == BreakEven(0.0, 0.0, 0.0)
    near = break_even(gains(30, 10, 1, error=0.02))
    assert near is not None
    assert (near.length, near.high) == (math.inf, math.inf)
    assert LENGTHS[1] < near.low <= LENGTHS[2]
    assert break_even(gains(10)) is None


def test_what_moves_all_lengths_at_once_from_start_to_start_is_in_the_interval() -> None:
    alone, started = (break_even(gains(3, 3, 3, error=0.002), starts=one) for one in (None, Scatter(0.02**2, 4)))
    assert alone and started
    assert alone.low == math.inf
    assert started.low == 0, "another start of the engine may be slower at every length"


def test_few_windows_make_a_wider_interval() -> None:
    few = [Gain(one.length, one.log, one.error, free=2) for one in gains(40, 20, -10, -30, error=0.03)]
    many = gains(40, 20, -10, -30, error=0.03)
    (one, two) = (break_even(each) for each in (few, many))
    assert one is not None
    assert two is not None
    assert one.high - one.low > 1.5 * (two.high - two.low)


FALLS = {
    "exponential": lambda share: 2**-share,
    "linear": lambda share: max(0.0, 1 - share / 2),
    "hyperbolic": lambda share: 1 / (1 + share),
    "logistic": lambda share: 1 / (1 + share**2),
}


@pytest.mark.parametrize("fall", FALLS)
@pytest.mark.parametrize("drafted", [1, 3])
@pytest.mark.parametrize("half", [12_000, 20_000, 33_000])
def test_without_noise_the_crossing_is_right_within_a_tenth(fall: str, drafted: int, half: int) -> None:
    def gain(length: float) -> float:
        accepted = ACCEPTED * FALLS[fall](length / half)
        return math.log(sum(accepted**n for n in range(drafted + 1)) / (1 + drafted * COST))

    fine = np.geomspace(LENGTHS[0], LENGTHS[-1], 20_000)
    true = float(fine[[gain(length) > 0 for length in fine]][-1])
    found = break_even([Gain(length, gain(length), 0.005) for length in LENGTHS])
    assert found is not None
    assert found.length == pytest.approx(true, rel=0.1)
    assert found.low < true < found.high


SPEC = RehearsalSpec(shape=config("model=tiny_llama").model.shape)
LAYOUT = Layout(1, 1)


def windows(length: int, drafted: int, half: float, seed: int) -> list[tuple[float, float]]:
    """Return the times per token of three windows on the rehearsal engine, one request at a time, in its own time."""
    drafting = Drafting(drafted, ACCEPTED, half, Random(f"{seed} {length} {drafted}")) if drafted else None
    engine = Scheduler(100_000, 16, 32_768, 16, drafting=drafting)
    clock = Clock(SPEC.shape, SPEC.hardware, LAYOUT, 1 + drafted * COST)
    now, sent, first = 0.0, 0, dict[int, float]()
    times: list[float] = []
    while len(times) < 48:
        if not engine.busy:
            engine.add(Request(sent, length, OUTPUT))
            sent += 1
        batch = engine.plan()
        now += clock.seconds(batch.work)
        got, done = engine.commit(batch)
        for key in got:
            first.setdefault(key, now)
        times += [(now - first[request.key]) / (OUTPUT - 1) * 1e3 for request in done]
    parts = np.split(np.array(times[:48]), 3)
    return [(float(part.mean()), float(part.std() / len(part) ** 0.5)) for part in parts]


Planned = tuple[SweepDir, plan.Plan]


def of_the_engine(folder: Path) -> Planned:
    """Write a sweep of the rehearsal engine over five lengths, without speculation and with three tokens."""
    lengths = LENGTHS[:5]
    return planned(
        folder, "engine=simulator", "model=tiny_llama", "parallel=dp2_tp1", "parallel.max_model_len=131072",
        "engine.args.speculative-config=null,{method:deepseek_mtp,num_speculative_tokens:3}", "bench.workload=text",
        f"bench.input_tokens={','.join(map(str, lengths))}", "bench.repeats=3",
    )  # fmt: skip


def run_of(sweep: Planned, half: float, seed: int, **known: Any) -> Run:
    """Write what it measured."""
    found, made = sweep
    for point in made.points:
        write(found, point, half, seed, known)
    return read_run(found.path)


def write(found: SweepDir, point: Point, half: float, seed: int, known: dict[str, Any]) -> None:
    length = point.config.bench.input_tokens
    drafted = 3 if point.config.engine.args.get("speculative-config") else 0
    each = windows(length, drafted, half, seed)
    text = {"spec_text": True, "spec_acceptance": 0.5, "spec_by_position": "[0.6, 0.5, 0.4]"} if drafted else {}
    row(
        found, point, tpot_ms_mean=float(np.mean([one for one, _ in each])), input_tokens_mean=float(length),
        spec_tokens=drafted, output_tok_per_s=100.0, completed=24, windows=3, **(text | (known if drafted else {})),
    )  # fmt: skip
    said = [{"tpot_ms_mean": time, "tpot_ms_std": 0.0, "completed": 24, "in_row": True} for time, _ in each]
    write_text(found.point(point.point).windows, "".join(json.dumps(line) + "\n" for line in said))


def test_what_the_report_says(tmp_path: Path) -> None:
    run = run_of(of_the_engine(tmp_path / "a"), 15_000, 0)
    [line] = lines(run)
    assert (line.drafted, line.windows, line.one_start) == (3, 3, True)
    assert [one["length"] for one in line.rows] == list(LENGTHS[:5])
    assert line.rows[0]["by_position"] == [0.6, 0.5, 0.4]
    said = {one.id: one for one in judge(run).sentences}
    words = worded({"id": "break_even", "values": said["break_even"].values})
    assert "with 3 drafted tokens" in words
    assert "speculation_one_start" in said
    assert "inf" not in words


@pytest.mark.parametrize(("half", "name"), [(1e9, "pays_everywhere"), (500.0, "pays_nowhere")])
def test_where_it_pays_everywhere_or_nowhere(tmp_path: Path, half: float, name: str) -> None:
    assert name in {one.id for one in judge(run_of(of_the_engine(tmp_path / "a"), half, 0)).sentences}


def test_with_random_ids_it_declines_to_say(tmp_path: Path) -> None:
    run = run_of(of_the_engine(tmp_path / "a"), 15_000, 0, spec_text=False)
    [line] = lines(run)
    assert (line.declined, line.found) == ("not_text", None)
    said = {one.id for one in judge(run).sentences}
    assert "break_even_not_text" in said
    assert "break_even" not in said
