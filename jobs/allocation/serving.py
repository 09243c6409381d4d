"""A service that is kept up for hand tests: how to reach it, as data and for people."""

from __future__ import annotations

import getpass
import json
import shlex
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator

from jobs.core import names
from jobs.core.config import Config
from jobs.core.foreign import SMALL, load_form
from jobs.core.layout import Placement
from jobs.core.rundir import AllocationDir, SweepDir

IDLE_KEY = "limits.idle_s"
NEVER_IDLE = f"{IDLE_KEY}=31536000"
"""People think between two requests: a service for hand tests ends by its time limit, unless limits.idle_s is given."""

PROMPT = "Explain quantum entanglement."


def describe(
    config: Config, folder: AllocationDir, place: Placement, host: str, login: str | None, further: Sequence[str] = ()
) -> dict[str, Any]:
    """Return how to reach a service.

    Args:
        config: of the service.
        folder: its allocation.
        place: of its head.
        host: node of the head; `login`: host from which its job was submitted, None: this one.
        further: scheme, host and port of its replicas on other nodes; each answers by itself.
    """
    return {
        "host": host,
        "base_url": f"http://{place.address}:{place.api_port}/v1",
        "replicas": [f"{url}/v1" for url in further],
        "model": config.model.name_for_clients,
        "api_key_file": str(folder.api_key) if config.engine.api_key else None,
        "tunnel": None if place.address.startswith("127.") else _tunnel(place, login, further),
        "chat": config.bench.endpoint == "chat",
    }


def _tunnel(place: Placement, login: str | None, further: Sequence[str]) -> str:
    there = f"{getpass.getuser()}@{login or socket.gethostname()}"
    ends = [f"{place.address}:{place.api_port}", *(url.rpartition("/")[2] for url in further)]
    ways = [f"-L {int(place.api_port) + number}:{end}" for number, end in enumerate(ends)]
    return f"ssh -N {' '.join(ways)} {there}"


@dataclass(frozen=True)
class Serving:
    """serving.json as it is read: its words become lines for a shell, and the sweep may be somebody else's."""

    host: Annotated[str, AfterValidator(names.host)]
    base_url: Annotated[str, AfterValidator(names.api)]
    replicas: list[Annotated[str, AfterValidator(names.api)]]
    model: Annotated[str, AfterValidator(names.text)]
    api_key_file: str | None
    tunnel: Annotated[str, AfterValidator(names.tunnel)] | None
    chat: bool


def read(folder: AllocationDir) -> dict[str, Any]:
    """Return how to reach the service of an allocation. RunError: its record has another form."""
    found = load_form(folder.serving, Serving, SMALL)
    key = str(folder.api_key) if found.api_key_file else None  # no other file, which a curl line would send there
    return asdict(replace(found, api_key_file=key))


def ready(sweep: SweepDir) -> AllocationDir | None:
    """Return the allocation whose service can be reached now, or None."""
    return next((folder for folder in sweep.allocations() if folder.serving.exists()), None)


def text(folder: AllocationDir) -> str:
    """Return how to reach the service of an allocation, for people."""
    info = read(folder)
    lines = [
        f"serving on {info['host']} until its time limit; end it by: python -m jobs cancel {_short(folder.sweep.path)}",
        f"  base URL  {info['base_url']}",
        *(f"  replica   {url} (a whole service of its own: spread your requests over all)" for url in info["replicas"]),
        f"  model     {info['model']}",
    ]
    if info["api_key_file"]:
        lines.append(f"  API key   {info['api_key_file']} (yours alone)")
    if info["tunnel"]:
        port = urlsplit(info["base_url"]).port or 0
        here = [f"http://127.0.0.1:{port + number}/v1" for number in range(1 + len(info["replicas"]))]
        lines.append(f"  tunnel    {info['tunnel']}   then {' and '.join(here)} on your own machine")
    return "\n".join([*lines, f"  try       {request(info)}"])


def request(info: dict[str, Any]) -> str:
    """Return a curl line that asks the service; the key stands in no process list (curl(1), -H @file)."""
    body: dict[str, Any] = {"model": info["model"], "max_tokens": 100}
    if info["chat"]:
        body["messages"] = [{"role": "user", "content": PROMPT}]
    else:
        body["prompt"] = PROMPT
    path = "chat/completions" if info["chat"] else "completions"
    words = ["curl -sS"]
    if info["api_key_file"]:
        words.append(f'-H @<(echo "Authorization: Bearer $(cat {shlex.quote(info["api_key_file"])})")')
    words += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(body))}"]
    return " ".join([*words, f"{info['base_url']}/{path}"])


def _short(path: Path) -> str:
    """Return a path as it is seen from the current directory, where it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
