"""What a runtime's program says is read as what it means, whatever images and paths are called."""

from __future__ import annotations

import re

import pytest

from containers import apptainer, docker, enroot, faults
from jobs.core.errors import RunError

DAEMON = "Error response from daemon: "
KNOWN = {"docker": docker._FAULTS, "apptainer": apptainer._FAULTS, "enroot": enroot._KNOWN["faults"]}


def said(program: str, output: str, value: str = "r.example/team/sim:v1", code: int = 1, *more: str) -> RunError:
    return faults.failure([program, "pull", *more], code, output, "container.image", value, KNOWN[program])


@pytest.mark.parametrize(
    ("program", "output", "value", "reason"),
    [
        ("docker", DAEMON + "manifest for r.example/unauthorized/tls:v1 not found: manifest unknown: manifest unknown",
         "r.example/unauthorized/tls:v1", "has no such image or tag"),
        ("docker", "write /var/lib/docker/x: no space left on device\nr.example/a/unauthorized:v1",
         "r.example/a/unauthorized:v1", "disk of its images is full"),
        ("docker", DAEMON + 'Get "https://connect.example/v2/": dial tcp: i/o timeout',
         "connect.example/certificate/x:v1", "cannot be reached"),
        ("enroot", "[ERROR] URL https://r.example/v2/unauthorized/403/manifests/v1 returned error code: 500 Internal",
         "docker://r.example#unauthorized/403:v1", "the registry itself failed"),
        ("apptainer", "FATAL: While making image: pulling fakeroot/mksquashfs: dial tcp: connection refused",
         "docker://r.example#fakeroot/mksquashfs:v1", "nothing answers"),
    ],
)  # fmt: skip
def test_names_that_look_like_errors_are_none(program: str, output: str, value: str, reason: str) -> None:
    assert reason in said(program, output, value).reason


def test_a_path_that_looks_like_an_error_is_none() -> None:
    output = DAEMON + "invalid mount config for type bind: bind source path does not exist: /data/no such host"
    error = said("docker", output, "docker", 125, "-v", "/data/no such host:/x:ro", "r.example/a:v1", "bash")
    assert "something cannot be mounted" in error.reason


@pytest.mark.parametrize("code", [1, 125, 128, 255])
def test_the_reason_is_read_whatever_code_the_program_fails_with(code: int) -> None:
    """apptainer ends with 255, srun too."""
    assert "wants a login" in said("apptainer", "FATAL:   While pulling: unauthorized", code=code).reason


def test_a_program_that_was_killed_is_not_explained_by_its_last_words() -> None:
    reason = said("docker", "unauthorized", code=137).reason
    assert "was killed by SIGKILL" in reason
    assert "login" not in reason


def test_podman_under_dockers_name_is_named() -> None:
    words = "Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.\nError: template: ps:1:"
    assert said("docker", words).remedy == "Use container=podman."


@pytest.mark.parametrize("name", KNOWN)
def test_each_pattern_is_one(name: str) -> None:
    for pattern, reason, remedy in KNOWN[name]:
        assert re.compile(pattern, re.MULTILINE)
        assert reason
        assert remedy.endswith(".")
