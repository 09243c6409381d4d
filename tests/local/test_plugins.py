"""A site's own back ends: a distribution that is installed apart from the tool adds names, and nothing is forked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

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


def launch(site: Mapping[str, str], *overrides: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "launch.py", "-m", "engine=simulator", "cluster=local", *overrides], site)


def test_its_benchmark_client_measures_a_point(site: Mapping[str, str], tmp_path: Path) -> None:
    load = ("bench.concurrency=8", "bench.num_requests=24", "bench.input_tokens=64", "bench.output_tokens=8")
    done = launch(
        site, "bench.client=example_bench", *load, "bench.warmup_s=0.5", "bench.repeats=1", f"results.root={tmp_path}"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sweep = SweepDir((tmp_path / "latest").resolve())
    [point] = read_json(sweep.plan)["points"]
    row = read_json(sweep.point(point["point"]).row)
    assert (row["valid"], row["completed"], row["output_tokens_mean"]) == (True, 24, 8.0), row["invalid_reason"]
    assert (sweep.point(point["point"]).client / "result.json").exists()


def test_its_engine_serves_a_point(site: Mapping[str, str], tmp_path: Path) -> None:
    load = (
        "bench.concurrency=8",
        "bench.window_s=1",
        "bench.warmup_s=0.5",
        "bench.repeats=1",
        f"results.root={tmp_path}",
    )
    done = launch(site, "engine.name=example_engine", *load)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sweep = SweepDir((tmp_path / "latest").resolve())
    [point], [service] = (read_json(sweep.plan)[name] for name in ("points", "services"))
    row = read_json(sweep.point(point["point"]).row)
    assert (row["valid"], row["engine"]) == (True, "example_engine"), row["invalid_reason"]
    assert "its memory is not modelled" in service["memory"]["unknown"]


def test_its_container_runtime_holds_an_engine(site: Mapping[str, str], tmp_path: Path) -> None:
    need_containers()
    inside = ("container.runtime=example_box", "container.image=any/image", f"engine.env.PYTHONPATH={ROOT}")
    load = ("bench.concurrency=4", "bench.warmup_s=0.5", "bench.repeats=1", "bench.window_s=2")
    done = launch(site, *inside, *load, f"results.root={tmp_path}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sweep = SweepDir((tmp_path / "latest").resolve())
    [service] = read_json(sweep.plan)["services"]
    for rank in (0, 1):
        held = read_json(sweep.service(service["service"], 1).rank(rank).effective)["container"]
        assert held["runtime"] == "example_box"
        assert held["proof"]["namespace"] != str(Path("/proc/self/ns/mnt").readlink())


def test_its_scheduler_runs_a_sweep(site: Mapping[str, str], tmp_path: Path) -> None:
    short = ("bench.concurrency=2", "bench.warmup_s=0.5", "bench.repeats=1", "bench.window_s=2")
    done = launch(site, "cluster.kind=example_shell", *short, f"results.root={tmp_path}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [allocation] = SweepDir((tmp_path / "latest").resolve()).allocations()
    assert read_json(allocation.job)["kind"] == "example_shell"


def test_its_names_are_among_the_valid_ones(site: Mapping[str, str]) -> None:
    for key, name in (
        ("bench.client", "example_bench"),
        ("cluster.kind", "example_shell"),
        ("container.runtime", "example_box"),
        ("engine.name", "example_engine"),
    ):
        done = launch(site, f"{key}=nonsense", "bench.concurrency=1")
        assert done.returncode == 2
        assert f"{key} = 'nonsense'" in done.stderr and name in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("test_clients_conformance", "example_bench"),
        ("test_schedulers", "example_shell"),
        ("test_runtimes_conformance", "example_box"),
        ("test_engines", "example_engine"),
    ],
)
def test_the_conformance_suite_runs_on_them(site: Mapping[str, str], suite: str, name: str) -> None:
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"tests/unit/{suite}.py", "-k", name], site)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
