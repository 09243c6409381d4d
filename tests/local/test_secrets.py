"""Ten secrets where a config may hold one: nothing that a sweep, a search or a question leaves or says has one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forks import Zygote
from results_help import measured
from world import ONE

from jobs.__main__ import main
from jobs.allocation.searching import told
from jobs.cli.output import until_closed
from jobs.core.files import write_json
from jobs.core.rundir import SweepDir
from jobs.sweep.contest import ask as ask_which
from jobs.sweep.record import record
from jobs.sweep.space import ask

SECRETS = {
    "HF_TOKEN": "hf_plantedA1",
    "MODELSCOPE_API_TOKEN": "plantedB2",
    "TOKEN": "plantedC3",
    "DB_PASSWD": "plantedD4",
    "GH_PAT": "plantedE5",
    "AWS_ACCESS_KEY_ID": "plantedF6",
    "AWS_SECRET_ACCESS_KEY": "plantedG7",
    "HTTPS_PROXY": "http://user:plantedH8@proxy:1",
    "AUTH_HEADER": "Bearer plantedI9",
    "http_proxy": "user:plantedK0@proxy:3128",
    "CURL_OPTIONS": "-u user:plantedL1",
    "DB_QUERY": "mysql -uroot -pplantedM2 -e x",
    "CACHE_FLUSH": "redis-cli -a plantedN3 flushall",
    "SHORT_PWD": "plntJ",  # too short to be looked for by its value
}
PLANTED = re.compile(rb"planted\w+|plntJ")
ENV = tuple(f"+engine.env.{name}='{value}'" for name, value in SECRETS.items())
SIMULATED = ("engine=simulator", "cluster=local", "bench.window_s=1", "bench.input_tokens=64", *ENV)


def shown_in(folder: Path) -> dict[str, list[bytes]]:
    """Return the files below a directory in which a secret can be read."""
    texts = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return {str(path): found for path, text in texts.items() if (found := PLANTED.findall(text))}


def printed(program: Callable[[], int]) -> int | None:
    """Run a program as a shell would, with what stands before its output."""
    before = sys.stdout, sys.stderr
    try:
        return until_closed(program)
    finally:
        sys.stdout, sys.stderr = before


def test_a_sweep_leaves_and_says_no_secret(
    zygote: Zygote, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    root, output = tmp_path / "runs", tmp_path / "said"
    (tmp_path / "tmp").mkdir()
    argv = ["launch.py", *ONE, f"results.root={root}", *ENV]
    zygote.start(argv, {"TMPDIR": str(tmp_path / "tmp")}, output).wait(120)
    assert b"True" in output.read_bytes(), output.read_text()
    [sweep] = (SweepDir(path) for path in root.glob("20*"))
    commands = (
        *(["status"], ["table"], ["table", "--format", "csv"], ["report"], ["report", "--json"], ["collect"]),
        *(["diagnose", "--as-case"], ["diagnose", "--json"], ["explain", "--key", "engine.env"], ["resume"]),
        ["export", "--to", "vllm_bench"],
    )
    for name, *more in commands:
        printed(lambda argv=[name, str(sweep.path), *more]: main(argv))
    said = capfdbinary.readouterr()
    assert PLANTED.findall(said.out + said.err) == []
    assert shown_in(tmp_path) == {}
    [service] = sweep.path.glob("services/*/1/rank0/command.json")
    assert set(SECRETS) <= json.loads(service.read_text())["env"].keys(), "the engine was given them"


def test_a_search_and_a_question_keep_no_secret(tmp_path: Path) -> None:
    space = ("tune.space={parallel.max_num_seqs: [1, 16]}", "tune.budget_node_hours=1")
    asked = ask([*SIMULATED, *space, f"results.root={tmp_path}/search"])
    first = asked.plan.points[0]
    sweep = record(asked.plan, asked.search, [first.point])
    measured(sweep, first, 50.0, ttft_ms_mean=5.0, tpot_ms_mean=3.0, load_s=2.0, measure_s=2.0, windows=2)
    assert PLANTED.search(json.dumps(told(sweep)).encode()) is None
    sides = tuple((f"bench.concurrency={load}", *SIMULATED, f"results.root={tmp_path}/which") for load in (1, 8))
    which = ask_which((sides[0], sides[1]), "output_tok_per_s", 0.3)
    made = which.plan(0, 3)
    write_json(record(made).question, which.question(made, 3, ()))
    assert shown_in(tmp_path) == {}
    assert len(list(tmp_path.rglob("secrets.key"))) == len(asked.plan.points) + len(made.points)


@pytest.mark.parametrize(
    "override",
    [
        *("cluster.setup=['export HF_TOKEN=plantedA1']", "cluster.account='HF_TOKEN=plantedA1'"),
        *(
            "+engine.args.hf-token=plantedA1",
            "+engine.args.x='http://u:plantedA1@h/'",
            "model.path=/x/HF_TOKEN=plantedA1",
        ),
        *("+engine.env.HF_TOKEN=plantedA1,plantedB2", "+engine.env.HF_TOKEN=[plantedA1]"),
        *("+cluster.sbatch_args.wrap='HF_TOKEN=plantedA1 x'", "cluster.srun_args=['--export=ALL,HF_TOKEN=plantedA1']"),
        *("container.args=['--env=HF_TOKEN=plantedA1']", "cluster.setup=['curl -u me:plantedA1 http://x']"),
        *("cluster.setup=['export http_proxy=me:plantedA1@proxy:1']", "cluster.account='podman --creds me:plantedA1'"),
        *("cluster.setup=['mysql -pplantedA1 x']", "+cluster.sbatch_args.wrap='redis-cli -a plantedA1'"),
    ],
)
def test_a_secret_in_another_place_is_refused_and_not_shown(
    override: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert printed(lambda: main(["plan", "engine=simulator", "cluster=local", override])) == 2
    said = capfdbinary.readouterr()
    assert said.out + said.err and PLANTED.findall(said.out + said.err) == []
