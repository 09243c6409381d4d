"""Rows of other sweeps: offered, taken, stale."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core_help import composer, config

from jobs.allocation.node import fingerprint
from jobs.core.files import read_json, write_json
from jobs.core.rundir import SweepDir
from jobs.core.tasks import write_config
from jobs.measure import dataset
from jobs.results.fingerprint import Fingerprint
from jobs.results.row import is_finished, make_row
from jobs.results.stale import retire
from jobs.sweep import compose, plan, reuse, road
from jobs.sweep.points import Point
from jobs.sweep.record import as_json
from jobs.sweep.resume import unfinished

OLD, NEW = Fingerprint("vllm 0.9.1", "25.0", None, "aa"), Fingerprint("vllm 0.9.2", "25.0", None, "aa")


def planned(*overrides: str) -> plan.Plan:
    return road.plan(compose.expand(["cluster=local", "bench.concurrency=1,4", *overrides]), composer)


def write(folder: Path, made: plan.Plan, seen: Fingerprint = OLD) -> SweepDir:
    found = SweepDir(folder)
    record = as_json(made)
    for item in record["services"]:
        item["seen"] = vars(seen)
    write_json(found.plan, record)
    for point in made.points:
        write_config(found, point.point, point.config)
    return found


def put(found: SweepDir, point: Point, age: float = 0.0, print_: Fingerprint = OLD, **known: Any) -> None:
    row = make_row(point.point, point.service, point.config, **({"valid": True} | vars(print_) | known))
    path = found.point(point.point).row
    write_json(path, row)
    moment = path.stat().st_mtime - age
    os.utime(path, (moment, moment))


@pytest.fixture
def sees(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fingerprint]:
    """What this host sees; a test may change `here`."""
    view = {"here": OLD}
    monkeypatch.setattr(fingerprint, "of_this_host", lambda _: view["here"])
    return view


def test_the_newest_valid_row_is_found_in_any_root(tmp_path: Path, sees: dict[str, Fingerprint]) -> None:
    made = planned()
    one, two = made.points
    put(write(tmp_path / "r/a", made), one, age=9, output_tok_per_s=1.0)
    put(write(tmp_path / "r/b", made), one, age=5, output_tok_per_s=2.0)
    put(write(tmp_path / "r/c", made), one, age=1, valid=False, invalid_reason="rank 1 (headless): gone")
    put(write(tmp_path / "r/d", made), one, age=1, truncated=True)
    other = write(tmp_path / "others/a", made)
    put(other, two)
    found = reuse.find(made.points, reuse.roots_of(str(tmp_path / "r"), [str(tmp_path / "others")]))
    assert {name: past.sweep.path for name, past in found.items()} == {
        one.point: tmp_path / "r/b",
        two.point: other.path,
    }
    assert reuse.offer_text(found, taken=False) == [
        f"2 points measured before in {tmp_path}/r/b, {tmp_path}/others/a: launch.reuse=true takes them"
    ]


def test_a_data_set_whose_content_changed_under_its_name_is_another_question(
    tmp_path: Path, sees: dict[str, Fingerprint]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 16, "output_length": 8}')
    load = (f"bench.dataset={trace}", "bench.workload=trace", "bench.concurrency=1")
    made = road.plan(compose.expand(["cluster=local", "engine=simulator", *load]), composer)
    [point] = made.points
    then = dataset.digest(point.config.bench)
    put(write(tmp_path / "r/a", made), point, dataset_digest=then)
    assert then and reuse.find(made.points, [tmp_path / "r"])[point.point].stale == ()
    trace.write_text('{"timestamp": 0, "input_length": 4096, "output_length": 8}')
    now = dataset.digest(point.config.bench)
    assert reuse.find(made.points, [tmp_path / "r"])[point.point].stale == (f"dataset_digest {then} -> {now}",)
    trace.unlink()
    assert reuse.find(made.points, [tmp_path / "r"])[point.point].stale == (), "what cannot be seen is no change"


def test_other_points_and_broken_rows_are_no_offer(tmp_path: Path, sees: dict[str, Fingerprint]) -> None:
    made = planned()
    put(write(tmp_path / "a", planned("parallel.max_model_len=4096")), made.points[0])
    half = write(tmp_path / "b", made)
    half.point(made.points[1].point).row.write_text('{"valid": tr')
    (tmp_path / "c").mkdir()
    other = planned("bench.input_tokens=99").points
    assert reuse.find(other, [tmp_path, tmp_path / "missing"]) == {}
    assert set(reuse.find(made.points, [tmp_path])) == {made.points[0].point}


def test_a_taken_row_says_where_it_was_measured_and_is_not_run(tmp_path: Path, sees: dict[str, Fingerprint]) -> None:
    made = planned()
    one, two = made.points
    first = write(tmp_path / "a", made)
    put(first, one, output_tok_per_s=7.0)
    first.point(one.point).requests.write_bytes(b"requests")
    second, third = write(tmp_path / "b", made), write(tmp_path / "c", made)
    reuse.take(second, reuse.find(made.points, [tmp_path]).values())
    row = read_json(second.point(one.point).row)
    assert (row["reused_from"], row["output_tok_per_s"]) == (str(first.path), 7.0)
    assert second.point(one.point).requests.read_bytes() == b"requests"
    assert [service.points for service in unfinished(second, retry_failed=False)] == [(two.point,)]
    # Taken over twice, it still names the sweep that measured it.
    first.point(one.point).row.unlink()
    reuse.take(third, reuse.find(made.points, [tmp_path]).values())
    assert read_json(third.point(one.point).row)["reused_from"] == str(first.path)


def test_another_engine_version_here_makes_it_stale(tmp_path: Path, sees: dict[str, Fingerprint]) -> None:
    made = planned()
    put(write(tmp_path / "a", made), made.points[0])
    sees["here"] = NEW
    [past] = reuse.find(made.points, [tmp_path]).values()
    assert past.stale == ("engine_version vllm 0.9.1 -> vllm 0.9.2",)
    [line] = reuse.offer_text({past.point: past}, taken=True)
    assert line.startswith("stale, not reused")
    assert "vllm 0.9.2" in line


def test_a_newer_row_tells_of_a_driver_that_this_host_does_not_see(
    tmp_path: Path, sees: dict[str, Fingerprint]
) -> None:
    made = planned()
    one, two = made.points
    put(write(tmp_path / "a", made), one, age=9)
    put(write(tmp_path / "b", made), two, age=1, print_=Fingerprint("vllm 0.9.1", "25.2", None, "aa"))
    sees["here"] = Fingerprint()
    found = reuse.find(made.points, [tmp_path])
    assert found[one.point].stale == ("driver_version 25.0 -> 25.2",)
    assert found[two.point].stale == ()


def test_a_host_that_never_saw_the_nodes_engine_makes_nothing_stale(
    tmp_path: Path, sees: dict[str, Fingerprint]
) -> None:
    made = planned()
    put(write(tmp_path / "a", made, seen=Fingerprint("vllm 0.6.3")), made.points[0])
    sees["here"] = Fingerprint("vllm 0.6.3")
    [past] = reuse.find(made.points, [tmp_path]).values()
    assert past.stale == ()


def test_the_allocation_takes_back_what_its_nodes_prove_stale(tmp_path: Path) -> None:
    made = planned()
    one, two = made.points
    found = write(tmp_path / "a", made)
    put(found, one, reused_from="/elsewhere")
    put(found, two, print_=NEW)
    [sentence] = retire(found, one.config, NEW)
    row = read_json(found.point(one.point).row)
    assert not row["valid"]
    assert row["invalid_reason"] == ("not run: stale: engine_version vllm 0.9.1 -> vllm 0.9.2 since /elsewhere")
    assert row["invalid_reason"] in sentence
    assert not is_finished(row, retry_failed=False)
    assert read_json(found.point(two.point).row)["valid"]


def test_a_row_of_nodes_that_were_tuned_otherwise_is_stale(tmp_path: Path) -> None:
    made = planned()
    one, two = made.points
    found = write(tmp_path / "a", made)
    put(found, one, print_=replace(OLD, host_state="aaaaaaaaaaaa"))
    put(found, two)  # by a version that did not look
    [sentence] = retire(found, one.config, replace(OLD, host_state="bbbbbbbbbbbb"))
    assert "host_state aaaaaaaaaaaa -> bbbbbbbbbbbb" in sentence
    assert [read_json(found.point(each.point).row)["valid"] for each in (one, two)] == [False, True]


def test_rows_of_another_checkpoint_are_not_compared(tmp_path: Path) -> None:
    made = planned()
    found = write(tmp_path / "a", made)
    put(found, made.points[0])
    assert retire(found, config("cluster=local", "model.path=/other"), NEW) == []


def test_a_resume_runs_stale_points_again(tmp_path: Path, sees: dict[str, Fingerprint]) -> None:
    made = planned()
    one, two = made.points
    found = write(tmp_path / "a", made)
    put(found, one)
    put(found, two, print_=NEW)
    assert unfinished(found, retry_failed=False) == []
    sees["here"] = NEW
    assert [service.points for service in unfinished(found, retry_failed=False)] == [(one.point,)]


def test_an_image_file_that_was_replaced_makes_its_rows_stale(tmp_path: Path) -> None:
    image = tmp_path / "image.sqsh"
    image.write_bytes(b"one")
    root = f"results.root={tmp_path}/r"
    made = planned("cluster=slurm", "container=enroot", f"container.image={image}", root)
    one, two = made.points
    measured = fingerprint.of_this_host(one.config)
    first = write(tmp_path / "r/a", made, measured)
    put(first, one, print_=measured)
    put(first, two, print_=measured)
    [fresh, _] = reuse.find(made.points, [tmp_path / "r"]).values()
    assert fresh.stale == ()
    image.write_bytes(b"another")
    now = fingerprint.of_this_host(one.config)
    [past, _] = reuse.find(made.points, [tmp_path / "r"]).values()
    assert past.stale == (f"image_digest {measured.image_digest} -> {now.image_digest}",)
    assert [service.points for service in unfinished(first, retry_failed=False)] == [(one.point, two.point)]
    [said, _] = retire(first, one.config, now)
    assert f"stale: image_digest {measured.image_digest} -> {now.image_digest}" in said
