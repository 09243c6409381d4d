"""Another user takes an API's port in the moment in which our engine dies: nobody sends the key there."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from forks import Zygote
from test_two_users import free_port, launch
from users import VICTIM, Host, two_users

HEIR = """
import socket, sys, time
print("waits", flush=True)
while True:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((sys.argv[2], int(sys.argv[1])))
        listening.listen(128)
        break
    except OSError:
        listening.close()
        time.sleep(0.0002)
print("listens", flush=True)
while True:
    client, _ = listening.accept()
    if sys.argv[3:]:
        listening.close()  # so that nobody sees whose it was
    client.settimeout(1)
    try:
        print(repr(client.recv(65536)), flush=True)
        client.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\nconnection: close\\r\\n\\r\\n")
    except OSError as error:
        print(error, flush=True)
    client.close()
    if sys.argv[3:]:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((sys.argv[2], int(sys.argv[1])))
        listening.listen(128)
"""


@pytest.fixture
def host() -> Iterator[Host]:
    with two_users() as made:
        yield made


def engines(port: int) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter(["cmdline", "uids"]):
        words = one.info["cmdline"] or []
        if one.info["uids"].real == VICTIM and "--port" in words and str(port) in words and "--headless" not in words:
            found.append(one)
    return found


@pytest.mark.parametrize("heir", [("127.0.0.1",), ("0.0.0.0",), ("127.0.0.1", "and closes")], ids=" ".join)
def test_who_takes_the_port_of_an_engine_that_died_gets_no_key(
    host: Host, zygote: Zygote, heir: tuple[str, ...]
) -> None:
    port, root = free_port(), host.shared / "runs"
    run = launch(zygote, host.victim, root, f"engine.port={port}", "bench.num_requests=4000", "bench.concurrency=8")
    end = time.monotonic() + 60
    while not any("measuring" in path.read_text() for path in root.glob("20*/services/*/*/rank0/*.jsonl")):
        assert time.monotonic() < end, run.output.read_text()
        time.sleep(0.05)
    with host.attacker.start(HEIR, str(port), *heir) as attacker:
        assert attacker.stdout and attacker.stdout.readline() == "waits\n"
        for one in engines(port):
            one.send_signal(signal.SIGKILL)
        said = run.finish()
        attacker.kill()
        heard = attacker.stdout.read()
    assert "listens" in heard, said
    assert "uthorization" not in heard and "prompt" not in heard
    [row] = (json.loads(path.read_text()) for path in root.glob("20*/points/*/row.json"))
    assert row["valid"] is False, said
