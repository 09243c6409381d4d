"""The rehearsal engine inside containers: strict stand-ins of the runtimes, real mounts and namespaces, real files."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
from container_fakes import DIGEST, REGISTRY, Fakes, need_containers
from test_rehearsal import ROOT, SHORT, engines, finish, start, the_sweep

from jobs.core.files import read_json
from jobs.core.rundir import SweepDir

pytestmark = pytest.mark.usefixtures("warm")

HARD = 'line one\nline "two" $HOME `id`'


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Put the stand-ins before everything else on PATH."""
    need_containers()
    made = Fakes(tmp_path / "bin", ("enroot", "unsquashfs", "docker"))
    monkeypatch.setenv("PATH", made.path)
    return made


def settings(tmp_path: Path, runtime: str) -> list[str]:
    """Return what a user with such a site would say: this Python and this project are mounted, nothing else."""
    needed = sorted({str(ROOT), sys.prefix, sys.base_prefix})
    mounts = ",".join(f'"{path}:{path}:ro"' for path in needed if not path.startswith("/usr"))
    return [
        f"container={runtime}",
        "container.image=test/image:v1",
        f"container.registry='{REGISTRY}'",
        f"container.mounts=[{mounts}]",
        "container.shm_size=null",
        f"container.local_dir={tmp_path}/node",
        "engine.env.PYTHONPATH=" + str(ROOT),
        f"engine.env.VLLM_TEST_WORDS='{HARD}'",
        "engine.env.VLLM_TEST_QUOTES='\"x\"'",
        *SHORT,
    ]


def check_records(sweep: SweepDir, runtime: str) -> None:
    """Both ranks were where they should be, with what they should have."""
    [service] = read_json(sweep.plan)["services"]
    for rank in (0, 1):
        effective = read_json(sweep.service(service["service"], 1).rank(rank).effective)
        assert effective["differences"] == []
        assert effective["env"]["VLLM_TEST_WORDS"] == HARD
        assert effective["env"]["VLLM_TEST_QUOTES"] == '"x"'
        inside = effective["container"]
        assert inside["runtime"] == runtime
        assert inside["proof"]["os"] == f"fake docker://{REGISTRY}#test/image:v1"
        assert inside["proof"]["namespace"] != str(Path("/proc/self/ns/mnt").readlink())
        found = Path(ROOT).stat()
        assert inside["proof"]["mounts"][str(ROOT)] == f"{found.st_dev}:{found.st_ino}"


def test_a_valid_row_comes_out_of_enroot(tmp_path: Path, fakes: Fakes) -> None:
    finish(start(tmp_path / "runs", *settings(tmp_path, "enroot")), 0)
    sweep = the_sweep(tmp_path / "runs")
    table = pd.read_parquet(sweep.table("parquet"))
    assert table["valid"].tolist() == [True]
    assert table["image_digest"].tolist() == [DIGEST]
    check_records(sweep, "enroot")
    assert len(fakes.calls("imported")) == 1, "two ranks, one import"
    assert len(fakes.calls("enroot", "create")) == 2
    assert not fakes.calls("half")
    words = [call[:2] for call in fakes.calls("enroot")]
    last = len(words) - 1 - words[::-1].index(["enroot", "create"])
    assert last < words.index(["enroot", "start"]), "no engine starts before every rank has its root"
    assert engines(tmp_path / "runs") == []
    assert [path.name for path in (tmp_path / "node/enroot/data").iterdir()] == [".serving-sweep.lock"]
    assert list((tmp_path / "node/enroot/temp").iterdir()) == []
