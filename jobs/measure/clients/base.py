"""What an external client is to this tool: the seam, and where it runs.

`docs/extending.md` says how to add one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from jobs.core import registry
from jobs.core.config import Bench, Config, in_container
from jobs.core.errors import ConfigError, RunError
from jobs.core.load import REPEATS
from jobs.core.process import Ended
from jobs.core.registry import Registry

if TYPE_CHECKING:  # every rank asks where a client runs, and only the one that measures needs numpy
    from jobs.measure.clients.result import Result
    from jobs.measure.records import Target


class BenchClient(Protocol):
    """A benchmark program of others that measures a point in one run.

    Attributes:
        of_engine: its program is the engine's own, so it runs where the engine does, and in the engine's environment.
        install: what a person does where the program is missing; the beginning of a sentence.
        workloads: values of `bench.workload` that it can send.
        needs_tokenizer: it counts tokens by the model's tokenizer, which the rehearsal engine does not have.
    """

    of_engine: bool = False
    install: str = "Install it"
    workloads: Sequence[str] = ("random", "sharegpt")
    needs_tokenizer: bool = True

    def check(self, config: Config) -> None:
        """Raise ConfigError where it cannot do what a point asks for: its one run has a form of its own."""
        bench = config.bench
        if bench.workload not in self.workloads:
            reason = f"bench.client={bench.client} sends {' or '.join(self.workloads)} prompts only"
            raise ConfigError("bench.workload", bench.workload, reason, "Use bench.client=window.")
        for key, usual in (("search", (None,)), ("repeats", (1, REPEATS)), ("lengths", ("fixed",))):
            if getattr(bench, key) not in usual:
                reason = f"bench.client={bench.client} cannot do this"
                remedy = "Leave it out, or use bench.client=window."
                raise ConfigError(f"bench.{key}", getattr(bench, key), reason, remedy)

    def program(self, config: Config) -> str:
        """Return the program: `bench.program`, or where the client usually is."""
        raise NotImplementedError

    async def write(self, config: Config, target: Target, folder: Path, count: int) -> list[str]:
        """Write what the client reads into `folder`, with secrets for the owner alone, and return its command line.

        The service's key is in the client's environment (OPENAI_API_KEY) and stands on no command line.

        Args:
            config: of the point; its `bench.seed` is that of this run.
            target: the service, which is ready.
            folder: the client's working directory, under the path by which the client knows it.
            count: requests that it is to send.
        """
        raise NotImplementedError

    def read(self, folder: Path, count: int) -> Result:
        """Read what it left in `folder` when it was to send `count` requests.

        Raises:
            RunError: there is no result, or it is not whole.
        """
        raise NotImplementedError

    def forget_secrets(self, target: Target, folder: Path) -> None:
        """Take the service's key out of whatever the client wrote; by default it writes it nowhere."""


CLIENTS: Registry[BenchClient] = registry.CLIENTS
register = CLIENTS.register


def of(config: Config) -> BenchClient:
    """Return the external client of a point that has one (`Bench.is_external`)."""
    return CLIENTS.get(config.bench.client)


def runs_inside(config: Config) -> bool:
    """Return whether the external client of a point runs in the container of rank 0's engine.

    One that belongs to the engine is where the engine is. Others want packages that suit no engine.
    """
    bench = config.bench
    if not bench.is_external or not in_container(config):
        return False
    return bench.where == "container" or (bench.where == "auto" and of(config).of_engine)


def check_node(config: Config, path: str | None) -> None:
    """Raise RunError where a point's client is to run on this node and is not in PATH: an engine start takes long.

    One that runs in the engine's container is looked for in there, before the engine starts.
    """
    bench = config.bench
    if not bench.is_external or runs_inside(config):
        return
    client = of(config)
    program = client.program(config)
    # A file that is sourced for the engine may extend PATH.
    if (client.of_engine and config.engine.source) or shutil.which(program, path=path):
        return
    reason = f"bench.client={bench.client} is to run on the node, and there is no such program here"
    remedy = f"{client.install}, or set bench.program."
    if in_container(config) and client.of_engine:
        remedy = "Leave bench.where out: then it runs in the engine's container, or set bench.program."
    elif in_container(config):
        remedy = f"{client.install}, set bench.program, or bench.where=container if the image has it."
    raise RunError("bench.program", program, reason, remedy)


def request_count(bench: Bench) -> int:
    """Return how many requests a run sends: bench.num_requests, else about those of a window.

    An external client knows no window of time: a rate gives rate x window_s, a concurrency eight rounds.
    """
    if bench.num_requests:
        return bench.num_requests
    if bench.request_rate:
        return max(1, round(bench.request_rate * bench.window_s))
    return max(64, 8 * (bench.concurrency or 1))


class RunningClient(Protocol):
    """A client that runs."""

    async def wait(self) -> Ended:
        """Wait until it has ended."""

    @property
    def ended(self) -> Ended | None:
        """How it ended, or None while it lives."""

    async def stop(self, grace_s: float) -> list[str]:
        """End it with all its children: SIGTERM, then SIGKILL after `grace_s` s. Returns what could not be ended."""


class ClientSite(Protocol):
    """Where one run of a client takes place: on the node, or in the container of rank 0's engine."""

    @property
    def inherited(self) -> Mapping[str, str]:
        """The environment that a client begins with."""

    def place(self, folder: Path) -> Path:
        """Return the directory that the client works in, whose content ends up in `folder`."""

    async def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path, tag: str) -> RunningClient:
        """Start a client, with its output in `log`."""

    async def close(self, folder: Path) -> None:
        """Bring what the client wrote to `folder`."""
