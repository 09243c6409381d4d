"""`check --real` in an image, as far as no container is needed: tests/local/test_real_image.py has those."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

import pytest
from core_help import config

from containers.spec import Mount
from jobs.__main__ import main
from jobs.allocation.node import container
from jobs.engines.ascend.real import ask, image, run

HELD = ("engine=vllm_ascend", "container=podman", "container.image=a/b:v1")


def test_a_closed_container_has_the_mounts_of_the_point_that_are_here_and_nothing_else(tmp_path: Path) -> None:
    mounts = f"container.mounts=[{tmp_path}:/mine:rw,{tmp_path}/none:/none,tmpfs:/t]"
    order = container.order(config(*HELD, mounts, "container.args={privileged: true}", "container.shm_size=1g"))
    spec = image.closed(order.spec)
    assert spec.mounts == (Mount(str(tmp_path), "/mine", ("ro",)),)
    assert (spec.devices, spec.args, spec.shm_size) == ((), {}, None)
    assert (spec.writable, spec.closed) == (False, True)


def test_checkpoints_of_one_name_that_are_here_are_asked_each_with_its_own_sizes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"of": "{name}"}}')
    made = [config(HELD[0], f"model.path={tmp_path / name}") for name in ("one", "two")]
    folders = [ask.model_in(tmp_path / "models", one) for one in made]
    assert [(one / "config.json").read_text() for one in folders] == ['{"of": "one"}', '{"of": "two"}']
    absent = config(HELD[0])
    assert ask.folder_of(absent) == absent.model.name


def test_only_what_has_the_form_of_an_answer_is_one() -> None:
    lines = ("junk", '{"case": "0", "refused": "x"}', '{"case": 1, "refused": null}', '{"packages": {"vllm": 1}}',
             '{"packages": {"vllm": "0.23.0", "vllm_ascend": null}}', '{"case": 2, "refused": "no", "more": 1}',
             '{"case": 3, "config": {"a": 1}}', '{"case": 4, "config": []}', "[" * 5000)  # fmt: skip
    packages, found = ask.read_answers("\n".join(lines))
    assert packages == {"vllm": "0.23.0", "vllm_ascend": None}
    assert found == {2: {"refused": "no"}, 3: {"config": {"a": 1}}}
    assert ask.read_answers("") == (None, {})


@pytest.mark.parametrize(
    ("words", "reason", "remedy"),
    [
        ("container=enroot container.image=a/b:v1", "enroot cannot run a container here that is closed off",
         "Use container=docker or podman. `check --real-packages`"),
        ("cluster=slurm container=pyxis container.image=a/b:v1", "pyxis cannot run", "`check --real-packages`"),
        ("container=docker container.image=a/b:v1", "there is no docker on PATH", "`check --real-packages`"),
        ("container=apptainer container.image=a/b:v1", "apptainer on ", "`apptainer pull image.sif docker://a/b:v1`"),
        ("container=apptainer container.image=/no/such.sif", "there is no such file", "`check --real-packages`"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_here_is_one_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    reason: str,
    remedy: str,
) -> None:
    (tmp_path / "apptainer").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["check", "--real", HELD[0], *shlex.split(words)]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.startswith("error: container.") and reason in err and remedy in err


def test_a_port_that_is_taken_here_is_no_refusal_of_a_setting() -> None:
    with socket.socket() as other, socket.socket() as own:
        other.bind(("127.0.0.1", 0))
        other.listen()
        run.any_port(own, socket.socket.bind, other.getsockname())
        assert own.getsockname()[1] != other.getsockname()[1]
