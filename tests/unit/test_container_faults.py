"""What a runtime's program says is read as what it means, whatever images and paths are called."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from containers import apptainer, docker, enroot, faults
from containers.base import Local, Order
from containers.spec import Image, Spec
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


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("[ERROR] URL http://r.example/v2/a/manifests/v1 returned error code: 429 ", "limits downloads"),
        ("curl: (22) The requested URL returned error: 429", "limits downloads"),
        ("curl: (22) The requested URL returned error: 500", "the registry itself failed"),
        ("curl: (22) The requested URL returned error: 403", "refuses access"),
        ("curl: (22) The requested URL returned error: 404", "lacks a layer"),
        ("curl: (18) transfer closed with 121 bytes remaining to read\n\ngzip: stdin: unexpected end of file", "broke"),
        ("\ngzip: stdin: unexpected end of file", "not what the registry says"),
        ("Checksum mismatch: 7fde6747f91f6be0ed85aa8644a3c667", "not what the registry says"),
        ("[ERROR] Could not process JSON input", "no registry"),
        ("[ERROR] URL http://r.example/v2/a/manifests/v1 returned error code: 400 Bad Request", "first question"),
        ("tar: opt/x: Wrote only 5632 of 10240 bytes\ntar: Exiting with failure status", "the disk is full"),
        ("zstd: error 70 : Write error : cannot write block : No space left on device", "the disk is full"),
        ("Write failed because No space left on device\nFATAL ERROR: Failed to write to output filesystem",
         "the disk is full"),
    ],
)  # fmt: skip
def test_what_enroot_itself_was_seen_to_say_of_an_import(words: str, reason: str) -> None:
    said_first = "[INFO] Permission granted\n[INFO] Downloading 1 missing layers...\n"
    error = said("enroot", said_first + words, "docker://r.example#a:v1")
    assert reason in error.reason
    assert "by hand" not in error.remedy
    assert "[INFO]" not in error.reason, "the line that tells is shown"


BLOB = "sha256:65c67cda7ae4b820451390dd49d9c2e60656a16a339cca77a26fdfb326326d4c"
POD = "Error: initializing source docker://r.example/team/sim:v1: "


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (DAEMON + "toomanyrequests: You have reached your pull rate limit", "limits downloads"),
        ("error parsing HTTP 429 response body: invalid character 'x' looking for beginning of value", "limits"),
        (DAEMON + "received unexpected HTTP status: 503 Service Unavailable", "the registry itself failed"),
        (POD + "pinging container registry r.example: invalid status code from registry 502", "itself"),
        (f"Error: reading blob {BLOB}: Error fetching blob: invalid status code from registry 403", "refuses"),
        (f"Error: reading blob {BLOB}: Error fetching blob: invalid status code from registry 404", "lacks"),
        ("error pulling image configuration: download failed after attempts=1: unknown blob", "lacks a layer"),
        (DAEMON + "error unmarshalling content: invalid character '<' looking for beginning of value", "no registry"),
        (DAEMON + 'Get "http://r.example/v2/": EOF', "broke off"),
        ('error getting credentials - err: exec: "docker-credential-desktop": executable file not found in $PATH',
         "its credential helper"),
        (DAEMON + 'Get "https://r.example/v2/": proxyconnect tcp: dial tcp 127.0.0.1:9: connect: connection refused',
         "the proxy does not answer"),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "for other processors alone"),
        (POD + 'no image found in manifest list for architecture "arm64", variant "v8", OS "linux"', "for other"),
        ("Error: copying system image: writing blob: adding layer: potentially insufficient UIDs or GIDs available in "
         "user namespace (requested 0:42 for /etc/gshadow): lchown /etc/gshadow: invalid argument", "subordinate ids"),
        (DAEMON + "cannot share the host's network namespace when user namespaces are enabled", "userns-remap"),
        (f"filesystem layer verification failed for digest {BLOB}", "not what the registry says"),
        (f"Error: writing blob: storing blob to file: happened during read: Digest did not match, expected {BLOB}",
         "not what the registry says"),
    ],
)  # fmt: skip
def test_what_docker_and_podman_were_seen_to_say_of_a_pull(words: str, reason: str) -> None:
    error = said("docker", "v1: Pulling from team/sim\n4f0dbae730e4: Pulling fs layer\n" + words)
    assert reason in error.reason
    assert "by hand" not in error.remedy


@pytest.mark.parametrize("name", KNOWN)
def test_an_image_that_is_gone_is_known_by_one_reason(name: str) -> None:
    assert sum(faults.GONE in reason for _, reason, _ in KNOWN[name]) == 1


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


def test_a_container_that_ended_for_another_processor_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime may call it running for a moment before its shell has failed."""
    answers = {"container": "exited with code 1\n", "logs": "exec /opt/bash: exec format error\n", "exec": ""}

    def answer(argv: Sequence[str], **_: object) -> CompletedProcess[str]:
        return CompletedProcess(
            argv, argv[1] == "exec", answers[argv[1]], "Error: runc: exec failed: stopped container"
        )

    monkeypatch.setattr(docker.process, "run", answer)
    order = Order(
        Spec("docker", Image(repository="sim", tag="v1")), "1/s/0", Local(tmp_path), tmp_path, folder=tmp_path
    )
    fate = docker.Docker().reach(order, {}).fate()
    assert fate is not None and fate.startswith("its container has ended: exited with code 1; it said: exec /opt/bash")
    assert fate.endswith(f". Take the image for {platform.machine()}.")
