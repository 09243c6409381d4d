"""What a host sees of engine, driver and model, and when that makes a row stale."""

from __future__ import annotations

from pathlib import Path

import pytest
from core_help import executable

from jobs.allocation.node.fingerprint import installed, model_digest, version_in
from jobs.results.fingerprint import Fingerprint, of_mapping


def environment(root: Path, *packages: str) -> str:
    """Make what pip leaves of an environment; return its program."""
    for package in packages:
        (root / "lib/python3.11/site-packages" / f"{package}.dist-info").mkdir(parents=True)
    return str(executable(root / "bin/vllm", "#!/bin/sh\n"))


def test_the_versions_of_an_environment(tmp_path: Path) -> None:
    program = environment(tmp_path / "a", "vllm-0.9.1", "vllm_ascend-0.9.1rc2", "vllm_flash-1.0", "torch-2.5.1")
    assert installed(program) == "vllm 0.9.1, vllm_ascend 0.9.1rc2"
    link = tmp_path / "usr/bin/vllm"
    link.parent.mkdir(parents=True)
    link.symlink_to(program)
    assert installed(str(link)) == "vllm 0.9.1, vllm_ascend 0.9.1rc2"
    assert installed(environment(tmp_path / "b", "torch-2.5.1")) is None
    assert installed(str(tmp_path / "nothing")) is None


def test_the_driver(tmp_path: Path) -> None:
    file = tmp_path / "version.info"
    assert version_in(file) is None
    file.write_text("Version=25.0.rc1.1\nascendhal_version=7.35.23\npackage_version=25.0.rc1.1\n")
    assert version_in(file) == "25.0.rc1.1"


def test_a_checkpoint_is_known_by_its_describing_files(tmp_path: Path) -> None:
    assert model_digest(tmp_path) is None
    (tmp_path / "config.json").write_text("{}")
    bare = model_digest(tmp_path)
    assert bare is not None
    (tmp_path / "README.md").write_text("other")
    assert model_digest(tmp_path) == bare
    (tmp_path / "quant_model_description.json").write_text("{}")
    assert model_digest(tmp_path) not in (None, bare)


def test_only_what_both_know_can_differ() -> None:
    now = Fingerprint(engine_version="vllm 0.9.2", driver_version="25.2", model_digest=None)
    row = {"engine_version": "vllm 0.9.1", "driver_version": None, "model_digest": "aa"}
    assert now.changes(row) == ["engine_version vllm 0.9.1 -> vllm 0.9.2"]
    assert now.changes({}) == []
    assert now.or_else(Fingerprint("x", "y", "z", "m")) == Fingerprint("vllm 0.9.2", "25.2", "z", "m")


@pytest.mark.parametrize(("then", "counts"), [("vllm 0.9.1", True), ("vllm 0.8.5", False), (None, False)])
def test_a_launching_host_counts_where_it_saw_what_the_nodes_saw(then: str | None, counts: bool) -> None:
    row = {"engine_version": "vllm 0.9.1"}
    now = Fingerprint(engine_version="vllm 0.9.2").trusted(Fingerprint(engine_version=then), row)
    assert bool(now.changes(row)) is counts


def test_a_record_without_a_fingerprint_is_one_that_knows_nothing() -> None:
    assert of_mapping({"point": "a"}) == Fingerprint()
