"""Bad input: one clear error, the right exit code, no traceback, nothing left behind (processes: tests/local)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from core_help import ROOT, composer, python
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from jobs.__main__ import main as jobs_main
from jobs.cli import launch as cli
from jobs.cli.output import INTERRUPTED
from jobs.core import schema
from jobs.core.errors import ConfigError
from jobs.sweep import compose, road, start

LAUNCH = str(ROOT / "launch.py")


@dataclass(frozen=True)
class Bad:
    """One bad call: its words, its exit code, and what its error must say."""

    words: tuple[str, ...]
    code: int
    says: tuple[str, ...]


HERE = ("cluster=local", "engine.source=[]")

ISSUE: dict[str, Bad] = {
    "unknown key": Bad(("-m", "bench.concurency=1,2"), 2, ("bench.concurency = 1,2", "'bench.concurrency'")),
    "wrong type": Bad(("-m", "bench.seed=1,2", "parallel.max_model_len=long"), 2, ("'long'", "valid integer")),
    "sum of local sizes": Bad(
        ("parallel.data_parallel_size=3", "parallel.data_parallel_size_local=2"), 2, ("= 3:", "[2] add up to 2")
    ),
    "too many NPUs": Bad(("parallel.tensor_parallel_size=16",), 2, ("= 16:", "16 NPUs and has 8", "npus_per_node")),
    "no load": Bad(("bench.concurrency=null",), 2, ("= None:", "no load", "bench.request_rate")),
    "owned flag": Bad(("engine.args.headless=true",), 2, ("engine.args.headless = True", "owns --headless")),
    "no sbatch": Bad(("-m", "cluster=slurm", "bench.seed=1,2"), 2, ("cluster.kind = slurm", "sbatch", "cluster=local")),
    "no engine": Bad(
        ("-m", *HERE, "engine.checks_model_path=false", "engine.command=[no-engine]", "bench.seed=1,2"),
        1,
        ("engine.command = no-engine", "no such program"),
    ),
    "no model": Bad(
        (*HERE, "engine.command=['{python}']", "model.path=/no/such/model"),
        1,
        ("model.path = /no/such/model", "no such directory"),
    ),
}
"""One of each kind of bad input."""

FURTHER: dict[str, Bad] = {
    "sweeper": Bad(("-m", "hydra/sweeper=nosuch"), 2, ("hydra/sweeper = nosuch", "basic")),
    "launcher": Bad(("-m", "hydra/launcher=basic"), 2, ("hydra/launcher = basic",)),
    "hydra key": Bad(("-m", "hydra.nosuch=1"), 2, ("hydra.nosuch = 1",)),
    "config name": Bad(("--config-name=nosuch",), 2, ("nosuch",)),
    "two modes": Bad(("-m", "--cfg", "job"), 2, ("--cfg = --multirun",)),
    "root is a file": Bad(("-m", "results.root=/dev/null/x"), 1, ("results.root = /dev/null/x", "cannot be written")),
}
"""What only Hydra sees: it must not answer in its own way."""


def left_behind(folder: Path) -> set[str]:
    """Return the files that a call wrote."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


REAL = ("unknown key", "no engine", "sweeper")
"""Calls that are made of the real program; for the others the same main() is called in this process."""

BY_THE_PLAN = ("wrong type", "sum of local sizes", "too many NPUs", "no load", "owned flag")
"""What the plan alone refuses: `python -m jobs plan` must say the same."""


def check(bad: Bad, code: int, out: str, err: str, folder: Path) -> None:
    assert code == bad.code, err
    assert "Traceback" not in out + err
    [line] = err.strip().splitlines()
    assert line.startswith("error: ")
    assert all(words in line for words in bad.says), line
    assert not left_behind(folder)


def test_a_command_starts_without_what_only_ranks_and_tables_need(tmp_path: Path) -> None:
    """They took four fifths of the time in which `python -m jobs --help` answers."""
    heavy = ("pandas", "pyarrow", "aiohttp", "requests", "submitit")
    code = "import sys, jobs.cli.launch; from jobs.__main__ import commands; commands(); "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    out, err = python("-c", code, cwd=tmp_path).communicate(timeout=60)
    assert (out.strip(), err) == ("[]", "")


def test_ctrl_c_while_a_command_is_being_loaded_is_no_traceback(tmp_path: Path) -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background work ignores it
        "def find(name, *_):\n"
        "    if name == 'jobs.cli.plan':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, type('Finder', (), {'find_spec': staticmethod(find)}))\n"
        "sys.argv = ['jobs', '--help']\n"
        "runpy.run_module('jobs', run_name='__main__')\n"
    )
    process = python("-c", code, cwd=tmp_path)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "", INTERRUPTED)


# --- the same without a new process


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def jobs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`python -m jobs WORDS`: exit code, stdout, stderr. Anything but a clean exit is an error of the test."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = jobs_main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`python launch.py WORDS` in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # restored afterwards

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [LAUNCH, *words])
        try:
            code = cli.main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        return (code, *capsys.readouterr())

    return run


BAD_OVERRIDES = [
    ["parallel=nosuch"],
    ["model=nosuch,tiny_llama"],
    ["model=glob(x*)"],
    ["model=null"],
    ["bench={a:1}"],
    ["+x.y=1"],
    ["~bench.seed"],
    ["~bench.nosuch"],
    ["bench.seed=${nosuch.key}"],
    ["bench.seed=${bench.seed}"],
    [""],
    ["foo"],
    ["bench.seed=range(0,1,0)"],
    ["bench.seed=interval(0,1)"],
    ["bench.seed=1 2"],
    ["bench.seed='a"],
    ["bench.window_s=inf"],
    ["bench.window_s=nan"],
    ["cluster.time_limit=soon"],
    ["model@foo=tiny_llama"],
    ["limits.load_s=1,2"],
    ["cluster=slurm,local"],
    ["engine.env={A:[1,2]}"],
    ["engine.rehearsal.faults=[{kind:nosuch}]", "engine=simulator"],
    ["engine.command=null"],
    ["launch.dry_run=maybe"],
]


@pytest.mark.parametrize("overrides", BAD_OVERRIDES, ids=" ".join)
def test_jobs_plan_refuses(jobs: Cli, overrides: list[str], tmp_path: Path) -> None:
    code, out, err = jobs("plan", "--json", *overrides)
    assert (code, err) == (2, "")
    assert json.loads(out)["error"].keys() == {"key", "value", "reason", "remedy"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overrides", BAD_OVERRIDES[::5], ids=" ".join)
def test_launch_refuses(launch: Cli, overrides: list[str], tmp_path: Path) -> None:
    code, _, err = launch("-m", "launch.dry_run=true", *overrides)
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("name", [name for name in ISSUE | FURTHER if name not in REAL + BY_THE_PLAN[1:]])
def test_launch_answers_bad_input_with_one_line(
    launch: Cli, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    bad = (ISSUE | FURTHER)[name]
    check(bad, *launch(*bad.words), tmp_path)


@pytest.mark.parametrize("name", BY_THE_PLAN)
def test_the_plan_answers_bad_input_with_the_same_line(jobs: Cli, name: str, tmp_path: Path) -> None:
    words = [word for word in ISSUE[name].words if word != "-m"]
    check(ISSUE[name], *jobs("plan", *words), tmp_path)


def test_a_comma_without_m_is_an_error_that_tells_the_way(launch: Cli) -> None:
    code, _, err = launch("bench.seed=1,2")
    assert code == 2
    assert "error: bench.seed = 1,2: several values need a sweep. Add -m" in err


@pytest.mark.parametrize(
    "override",
    [
        "engine.env={A: 1}",
        "cluster.mem=0",
        "engine.release=0.23.0",
        "engine.additional_config={ascend_scheduler_config:{1:x,b:y}}",
        "bench.seed=0,0",
    ],
)
def test_what_looks_odd_and_is_right(jobs: Cli, override: str) -> None:
    code, out, err = jobs("plan", override)
    assert (code, err) == (0, "")
    assert out.startswith("1 point in 1 service")


def test_hydras_flag_run_is_what_is_done_anyway(launch: Cli) -> None:
    code, out, err = launch("--run", "launch.dry_run=true")
    assert (code, err) == (0, "")
    assert out.startswith("1 point in 1 service")


def test_words_with_brackets_are_shown_as_they_are(launch: Cli) -> None:
    code, out, _ = launch("-m", "launch.dry_run=true", "engine.env.A='[/red] :smile:','[bold]x'")
    assert code == 0
    assert "engine.env.A='[/red] :smile:' " in out
    assert "engine.env.A='[bold]x' " in out


def test_a_point_that_is_asked_for_twice_is_run_once(launch: Cli) -> None:
    code, out, _ = launch("-m", "bench.seed=0,0", "bench.concurrency=16,3", "launch.dry_run=true")
    assert code == 0
    assert out.startswith("2 points in 1 service")


def test_all_points_reach_the_planner_in_one_call(launch: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[list[str]]] = []

    def record(points: list[list[str]]) -> cli.Outcome:
        calls.append(points)
        return cli.Outcome()

    monkeypatch.setattr(cli, "launch", record)
    assert launch("-m", "parallel.max_model_len=8192,32768", "bench.concurrency=1,4")[0] == 0
    assert calls == [compose.expand(["parallel.max_model_len=8192,32768", "bench.concurrency=1,4"])]
    assert launch("bench.seed=5")[0] == 0
    assert calls[1] == [["bench.seed=5"]]


def test_hydra_does_not_compose_every_point(launch: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[object] = []
    original = ConfigLoaderImpl.load_configuration

    def count(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], *more: Any, **options: Any) -> Any:
        composed.append(overrides)
        return original(self, config_name, overrides, *more, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", count)
    compose._composed.cache_clear()
    code, out, _ = launch("-m", "bench.seed=range(0,30)", "parallel=dp2_tp8,dp4_tp4", "launch.dry_run=true")
    assert code == 0
    assert out.startswith("60 points in 2 services")
    assert composed == [["parallel=dp2_tp8"], ["parallel=dp4_tp4"]]


@pytest.mark.parametrize("moment", ["expand", "plan", "find", "record"])
def test_ctrl_c_before_anything_was_submitted_is_one_line(
    launch: Cli, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    places = {"expand": compose, "plan": road, "find": cli.reuse, "record": start}
    monkeypatch.setattr(places[moment], moment, interrupted)
    code, _, err = launch("-m", *HERE, "engine=simulator", "launch.dry_run=false")
    assert code == 130
    assert err.strip().startswith("interrupted: ") and len(err.strip().splitlines()) == 1


def test_the_sweepers_objective_is_the_output_rate_of_each_asked_point() -> None:
    made = road.plan([["bench.seed=1"], ["bench.concurrency=3"], ["bench.seed=1", "bench.concurrency=16"]], composer)
    rows = {
        made.asked[0]: {"output_tok_per_s": 10.0, "valid": True},
        made.asked[1]: {"output_tok_per_s": 20.0, "valid": False},
    }
    outcome = cli.Outcome(made.asked, rows)
    assert [outcome.objective(index) for index in range(3)] == [10.0, None, 10.0]


def test_dry_run_shows_the_plan_and_both_commands_and_writes_nothing(launch: Cli, tmp_path: Path) -> None:
    code, out, err = launch("-m", "engine=simulator", "parallel.max_model_len=8192,32768", "launch.dry_run=true")
    assert (code, err) == (0, "")
    assert out.startswith("2 points in 2 services (engine starts) in 1 allocation, about ")
    assert out.count("(head)") == out.count("(headless)") == 2
    assert out.count(" --headless ") == 2
    assert out.endswith("dry run: nothing was submitted\n")
    assert not left_behind(tmp_path)


def test_a_key_of_hydra_goes_through_hydra_to_the_same_planner(launch: Cli) -> None:
    words = ("-m", "bench.seed=1,2", "launch.dry_run=true")
    direct = launch(*words)
    assert direct[0] == 0
    assert launch(*words, "hydra.verbose=false") == direct


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_exit_code_of_a_sweep_comes_back_through_hydra(
    launch: Cli, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(cli, "launch", lambda *_: cli.Outcome(("a",), code=code))
    assert launch("bench.seed=5", "hydra.verbose=false")[0] == code
    assert launch("bench.seed=5")[0] == code


def test_cfg_and_help_stay_useful(launch: Cli) -> None:
    code, out, _ = launch("--cfg", "job", "bench.seed=7")
    assert code == 0
    assert "seed: 7" in out
    code, out, _ = launch("--help")
    assert code == 0
    assert "experiment: article" in out
    assert "python launch.py -m parallel.max_model_len=8192,32768" in out


def test_keys_lists_every_leaf_with_scope_and_help(jobs: Cli) -> None:
    code, out, _ = jobs("keys", "--json")
    assert code == 0
    keys = {row["key"]: row for row in json.loads(out)}
    assert keys.keys() == schema.schema().keys()
    assert all(row["help"] and row["scope"] in ("service", "point", "sweep") for row in keys.values())
    assert len(jobs("keys")[1].splitlines()) == len(keys)


@pytest.mark.parametrize("command", ["status", "follow", "table", "cancel"])
def test_a_directory_that_is_no_sweep_is_refused(jobs: Cli, command: str, tmp_path: Path) -> None:
    code, out, err = jobs(command, str(tmp_path))
    assert (code, out) == (1, "")
    assert err.startswith(f"error: RUN = {tmp_path}: there is no plan.json")
    code, out, err = jobs(command, "--json", str(tmp_path))
    assert (code, err) == (1, "")
    assert json.loads(out)["error"]["key"] == "RUN"


def test_error_texts_do_not_double_their_full_stops() -> None:
    assert str(ConfigError("a", 1, "it is so.", "Do that.")) == "a = 1: it is so. Do that."


def test_an_image_as_pyxis_takes_it_reaches_hydra_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image = "container.image=quay.example#ascend/vllm-ascend:v0.9.1-openeuler"
    assert cli.main(["-m", "cluster=slurm", "container=enroot", image, "launch.dry_run=true"]) == 0
    assert "docker://quay.example#ascend/vllm-ascend:v0.9.1-openeuler" in capsys.readouterr().out
