"""Sweeps that another user made where ours are looked for: they are read, and never run, gone on with or written to."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from results_help import copied as recorded_at
from users import Host, two_users
from world import ROOT

from jobs.__main__ import main
from jobs.core.errors import RunError, UserError
from jobs.core.files import write_json
from jobs.core.rundir import SweepDir, sweeps_in
from jobs.core.tasks import read_config
from jobs.sweep.contest import Contest, ask
from jobs.sweep.record import record
from jobs.sweep.resume import resume

QUICK = ("engine=simulator", "cluster=local", "bench.window_s=1", "bench.input_tokens=16")


@pytest.fixture
def host() -> Iterator[Host]:
    with two_users() as made:
        yield made


def shared_root(host: Host) -> Path:
    root = host.shared / "runs"
    root.mkdir()
    root.chmod(0o1777)
    return root


def contest(root: Path) -> Contest:
    os.chdir(ROOT)
    common = (*QUICK, f"results.root={root}")
    sides = tuple((f"parallel.max_num_seqs={count}", *common) for count in (1, 2))
    return ask((sides[0], sides[1]), "output_tok_per_s", 0.1)


def trap(root: Path, mark: Path) -> None:
    """Make the sweep that a question of somebody else would go on with: its engine is a command of ours."""
    asked = contest(root)
    made = asked.plan(0, 3)
    sweep = record(made)
    write_json(sweep.question, asked.question(made, 3, ()))
    for path in sweep.path.glob("points/*/config.yaml"):
        path.write_text(path.read_text().replace("command: null", f"command: [/bin/touch, {mark}]"))
    for path in (sweep.path, *sweep.path.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


def trapped(root: Path) -> SweepDir:
    """Return the sweep, as its victim finds it."""
    [path] = root.glob("decide-*")
    return SweepDir(path)


def past(root: Path) -> int:
    return len(contest(root).past())


def test_a_question_does_not_go_on_with_a_sweep_of_somebody_else(host: Host) -> None:
    root = shared_root(host)
    host.attacker.call(trap, root, host.attacker.home / "mark")
    assert host.attacker.call(past, root) == 1, "to its maker it is an earlier sweep of this question"
    assert host.victim.call(past, root) == 0
    sweep = trapped(root)
    with pytest.raises(RunError, match="this sweep belongs to another user"):
        host.victim.call(lambda: resume(sweep, retry_failed=False))
    assert not host.victim.call(lambda: sweep.writable), "whatever its modes are, nothing is written there"
    host.victim.call(begin, root)
    assert sorted(path.name for path in root.glob("decide-*")) == [sweep.path.name, f"{sweep.path.name}-2"]
    assert host.victim.call(past, root) == 0, "it has no question yet"


def begin(root: Path) -> None:
    """Write the next sweep of the question, as `decide` does."""
    asked = contest(root)
    record(asked.plan(0, 1))


def copied(sweep: SweepDir, folder: Path) -> None:
    point = sorted(sweep.point_names())[0]
    text = sweep.point(point).config.read_text()
    target = SweepDir(folder).point(point)
    target.path.mkdir(parents=True)
    target.config.write_text(text)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_rank_runs_no_config_that_somebody_else_put_in_its_place(host: Host) -> None:
    """Who owns results.root can rename what is in it: the directory that a rank finds may be a copy."""
    root, evil = shared_root(host), host.shared / "evil"
    host.victim.call(begin, root)
    sweep = trapped(root)
    point = sorted(sweep.point_names())[0]
    for path in (sweep.path, *sweep.path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    host.attacker.call(copied, sweep, evil)
    assert host.victim.call(read_config, SweepDir(evil), point) == host.victim.call(read_config, sweep, point)
    with pytest.raises(RunError, match="it belongs to another user"):
        host.victim.call(lambda: read_config(SweepDir(evil), point, ours=True))


def test_a_sweep_that_is_closed_to_us_hides_none_beside_it(host: Host) -> None:
    root = shared_root(host)
    host.victim.call(begin, root)
    host.attacker.call(begin, root)
    theirs, mine = sorted(root.glob("decide-*"), key=lambda path: path.stat().st_uid)
    assert host.victim.call(lambda: [one.path.name for one in sweeps_in(root)])[-1:] == [mine.name]
    for reads in ("status", "table", "collect"):
        assert "Permission denied" in host.victim.call(run, [reads, str(theirs)])


@pytest.mark.parametrize(
    "closed", ["points", "points/*", "services", "allocations/0", "plan.json", "points/*/row.json"]
)
def test_what_is_closed_to_us_in_a_sweep_ends_no_command(host: Host, tmp_path: Path, closed: str) -> None:
    """A directory may show its names and not what they stand for (0744)."""
    sweep = host.shared / "theirs"
    shutil.copytree(recorded_at(tmp_path), sweep)
    for path in (sweep, *sweep.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in sweep.glob(closed):
        path.chmod(0o744 if path.is_dir() else 0o600)
    for path in (sweep, *sweep.rglob("*")):
        os.chown(path, host.attacker.uid, host.attacker.uid)
    for command in (
        ["status"],
        ["table"],
        ["collect"],
        ["report", "--json"],
        ["diagnose"],
        ["explain", "--key", "bench.seed"],
    ):
        host.victim.call(run, [command[0], str(sweep), *command[1:]])  # an exception would be raised here


def test_an_export_of_a_sweep_of_somebody_else_goes_where_the_user_says(host: Host, tmp_path: Path) -> None:
    sweep = host.shared / "theirs"
    shutil.copytree(recorded_at(tmp_path), sweep)
    (sweep / "export").mkdir()
    for path in (sweep, *sweep.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
        os.chown(path, host.attacker.uid, host.attacker.uid)
    command, out = ["export", str(sweep), "--to", "vllm_bench"], host.victim.home / "out"
    assert "this sweep is another user's" in host.victim.call(run, command)
    assert not any((sweep / "export").iterdir())
    assert "written: " in host.victim.call(run, [*command, "--out", str(out)])
    assert any(out.iterdir())


def run(words: list[str]) -> str:
    """Run a command in this process. Returns what it said."""
    os.chdir(ROOT)
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), suppress(SystemExit):
        try:
            main(words)
        except UserError as error:
            out.write(str(error))
    return out.getvalue()
