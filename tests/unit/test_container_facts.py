"""What enroot 4.1.2, pyxis 0.24.0, docker 20.10 and modelscope 1.40.2 were seen to do, and which test holds it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from container_fakes import DIGEST, PROGRAMS, REGISTRY, Fakes

from containers import enroot
from containers.spec import Mount, Spec, parse_image
from jobs.core.errors import ConfigError, RunError
from jobs.core.foreign import from_yaml
from jobs.core.registry import RUNTIMES

TESTS = Path(__file__).resolve().parents[1]

PAGES = from_yaml(Path(__file__).with_name("container_facts.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("page", "fact"), [(page, fact) for page, facts in PAGES.items() for fact in facts])
def test_each_fact_has_its_case(page: str, fact: str) -> None:
    path, _, name = PAGES[page][fact].partition("::")
    text = (TESTS / path).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{PAGES[page][fact]}: {fact}"


def test_every_defect_of_the_report_has_one() -> None:
    """D7 and D10 are not in it."""
    assert {fact.split()[0] for fact in PAGES["defects"] if re.match(r"D\d", fact)} == {
        f"D{number}" for number in (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)
    }


@pytest.fixture
def env(tmp_path: Path) -> tuple[Fakes, dict[str, str]]:
    fakes = Fakes(tmp_path / "bin", PROGRAMS)
    folders = {f"ENROOT_{name.upper()}_PATH": str(tmp_path / name) for name in ("data", "cache", "runtime")}
    return fakes, {**os.environ, **folders, "PATH": fakes.path}


def run(env: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def test_an_enroot_before_4_knows_no_digests(
    env: tuple[Fakes, dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fakes, variables = env
    monkeypatch.setenv("PATH", variables["PATH"])
    image = parse_image("test/image:v1", REGISTRY)
    assert enroot.digest(image, variables) == DIGEST
    fakes.tell(enroot_version="3.5.0")
    assert enroot.digest(image, variables) is None, "it cannot be asked"
    named = parse_image(f"test/image@{DIGEST}", REGISTRY)
    with pytest.raises(RunError, match="it knows no digests"):
        enroot.fetch(named, tmp_path / "x.sqsh", enroot.Local(tmp_path / "node"), variables)
    fakes.tell(private=True)
    with pytest.raises(RunError, match="the registry refused the login"):
        enroot.digest(image, variables)


STEP = ("srun", "--jobid=7", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n1")


def test_a_pyxis_before_0_15_refuses_what_it_does_not_know(env: tuple[Fakes, dict[str, str]]) -> None:
    fakes, variables = env
    fakes.tell(node="n1", pyxis_version="0.14")
    done = run(variables, *STEP, f"--container-image={REGISTRY}#test/image:v1", "--container-env=A", "true")
    assert (done.returncode, "unrecognized option" in done.stderr) == (255, True)


@pytest.mark.parametrize(
    ("version", "more", "key", "words"),
    [
        ("0.14", {}, "container.runtime", "too old: `srun --help` has no --container-env"),
        ("0.15", {}, None, ""),
        ("0.23", {"args": {"container-unshare": "ipc"}}, "container.runtime", "has no --container-unshare"),
        ("0.24", {"args": {"container-unshare": "ipc", "nice": 5}}, None, ""),
        ("0.23", {"mounts": (Mount("/a b", "/c"),)}, "container.mounts", "older than 0.24, and takes no blank"),
        ("0.24", {"mounts": (Mount("/a b", "/c"),)}, None, ""),
        ("0.24", {"mounts": (Mount("/a$(b)", "/c"),)}, "container.mounts", "into a shell script"),
    ],
)
def test_what_an_older_pyxis_cannot_do_is_said_before_the_queue(
    env: tuple[Fakes, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    more: dict[str, Any],
    key: str | None,
    words: str,
) -> None:
    fakes, variables = env
    fakes.tell(pyxis_version=version)
    monkeypatch.setenv("PATH", variables["PATH"])
    spec = Spec("pyxis", parse_image("test/image:v1", REGISTRY), **more)
    if key is None:
        RUNTIMES.get("pyxis").check(spec, here=True)
        return
    with pytest.raises((ConfigError, RunError)) as caught:
        RUNTIMES.get("pyxis").check(spec, here=True)
    assert caught.value.key == key
    assert words in caught.value.reason


def test_pyxis_unpacks_inside_of_its_step(env: tuple[Fakes, dict[str, str]]) -> None:
    fakes, variables = env
    fakes.tell(node="n1", lacks=["bash"])
    done = run(variables, *STEP, f"--container-image={REGISTRY}#test/image:v1", "bash")
    assert done.returncode == 2
    assert "execve(): bash: No such file or directory" in done.stderr
    assert "srun: error: n1: task 0: Exited with exit code 2" in done.stderr
    assert list(fakes.folder.glob("pyxis_*/root")), "it had unpacked before it looked for the program"
