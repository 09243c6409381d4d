"""A site's own back ends: a distribution that is installed apart from the tool adds names, and nothing is forked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from container_fakes import need_containers
from core_help import ROOT

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir

EXAMPLE = ROOT / "tests/plugins/example_backends"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Return the environment of a site that has installed the example distribution."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, folder / "source")  # a build leaves files beside the source
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = run([*pip, "--target", str(folder / "packages"), str(folder / "source")], os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    packages = folder / "packages"
    return os.environ | {"PYTHONPATH": f"{packages}:{ROOT}", "PATH": f"{packages}/bin:{os.environ['PATH']}"}


def run(argv: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def sweep(site: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> SweepDir:
    """Run one point by all of them."""
    need_containers()
    root = tmp_path_factory.mktemp("runs")
    theirs = ("engine.name=example_engine", "cluster.kind=example_shell", "bench.client=example_bench")
    inside = ("container.runtime=example_box", "container.image=any/image", f"engine.env.PYTHONPATH={ROOT}")
    load = ("bench.concurrency=8", "bench.num_requests=24", "bench.input_tokens=64", "bench.output_tokens=8")
    short = ("bench.warmup_s=0.5", "bench.repeats=1", f"results.root={root}")
    words = ("launch.py", "-m", "engine=simulator", "cluster=local", *theirs, *inside, *load, *short)
    done = run([sys.executable, *words], site)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return SweepDir((root / "latest").resolve())


def row_of(sweep: SweepDir) -> dict[str, Any]:
    [point] = read_json(sweep.plan)["points"]
    return dict(read_json(sweep.point(point["point"]).row))


def service_of(sweep: SweepDir) -> dict[str, Any]:
    [service] = read_json(sweep.plan)["services"]
    return dict(service)


def test_its_benchmark_client_measures_a_point(sweep: SweepDir) -> None:
    row = row_of(sweep)
    assert (row["valid"], row["completed"], row["output_tokens_mean"]) == (True, 24, 8.0), row["invalid_reason"]
    assert (sweep.point(row["point"]).client / "result.json").exists()


def test_its_engine_serves_a_point(sweep: SweepDir) -> None:
    assert row_of(sweep)["engine"] == "example_engine"
    assert "its memory is not modelled" in service_of(sweep)["memory"]["unknown"]


def test_its_container_runtime_holds_an_engine(sweep: SweepDir) -> None:
    for rank in (0, 1):
        held = read_json(sweep.service(service_of(sweep)["service"], 1).rank(rank).effective)["container"]
        assert held["runtime"] == "example_box"
        assert held["proof"]["namespace"] != str(Path("/proc/self/ns/mnt").readlink())


def test_its_scheduler_runs_a_sweep(sweep: SweepDir) -> None:
    [allocation] = sweep.allocations()
    assert read_json(allocation.job)["kind"] == "example_shell"


ASKED = {
    "bench.client": ("example_bench", "test_clients_conformance"),
    "cluster.kind": ("example_shell", "test_schedulers"),
    "container.runtime": ("example_box", "test_runtimes_conformance"),
    "engine.name": ("example_engine", "test_engines"),
}
"""The keys of the seams, the names that the site adds to them, and their conformance suites."""

MANY = "import sys; from jobs.cli.launch import main; sys.exit(min(main(words.split()) for words in sys.argv[1:]))"


def test_its_names_are_among_the_valid_ones(site: Mapping[str, str]) -> None:
    calls = [f"-m engine=simulator cluster=local {key}=nonsense bench.concurrency=1" for key in ASKED]
    done = run([sys.executable, "-c", MANY, *calls], site)
    assert done.returncode == 2
    for (key, (name, _)), said in zip(ASKED.items(), done.stderr.splitlines(), strict=True):
        assert f"{key} = 'nonsense'" in said and name in said, done.stderr


def test_the_conformance_suites_run_on_them(site: Mapping[str, str]) -> None:
    names = " or ".join(name for name, _ in ASKED.values())
    files = [f"tests/unit/{suite}.py" for _, suite in ASKED.values()]
    done = run([sys.executable, "-m", "pytest", "-v", "-p", "no:xdist", *files, "-k", names], site)
    assert done.returncode == 0, done.stdout[-3000:]
    for (name, _), file in zip(ASKED.values(), files, strict=True):
        assert any(line.startswith(file) and name in line and " PASSED" in line for line in done.stdout.splitlines())
