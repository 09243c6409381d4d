"""Ask `npu-smi` and `hccn_tool` about the NPUs of this node. Nothing here judges.

`hccn_tool` runs once at a time on a host, so it is asked one thing after the other, and again while it is busy.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.allocation.node.fingerprint import version_in
from jobs.allocation.preflight import hccn
from jobs.allocation.preflight.facts import NpuPort, Npus, Ping, Problem
from jobs.allocation.preflight.findings import NO_TIME
from jobs.core import process
from jobs.core.errors import RunError
from jobs.engines.ascend import npu_smi

ASCEND = Path("/usr/local/Ascend")
PLACES = ("/usr/local/bin", "/usr/local/sbin", "/usr/bin", str(ASCEND / "driver/tools"))
"""Where the driver puts its tools; a batch job's PATH often lacks them."""

ANSWER_S = 15.0
"""A tool that needs longer for one answer hangs, as npu-smi does on a dead NPU."""

BUSY_S = 0.3
GONE = "it is not there"
NO_RIGHT = ("dcmi module initialize failed", "DrvMngGetConsoleLogLevel failed")
"""npu-smi without the right to the devices, or in a container without them (vllm-ascend issue 2698)."""

DEVICES = ("davinci_manager", "devmm_svm", "hisi_hdc")


@dataclass(frozen=True)
class Tools:
    """The tools of this node, by this task's PATH.

    `deadline` is on the monotonic clock: nothing is asked after it, nor once `stopped` is set, when this rank ends.
    `ascend` has driver, firmware and CANN, `dev` the device files.
    """

    path: str
    deadline: float
    stopped: threading.Event
    ascend: Path = ASCEND
    dev: Path = Path("/dev")

    def npus(self, count: int, sources: Iterable[str], *, fabric: bool) -> Npus:
        """Return what the tools say of the NPUs, of which the node should have `count`, and of their fabric.

        `sources` are the shell files that the engine sources: CANN lies beside them.
        """
        info, problem = self._smi()
        driver = version_in(self.ascend / "driver/version.info") or (info.version if info else None)
        firmware = version_in(self.ascend / "firmware/version.info") or (self._firmware() if info else None)
        ports, ports_problem = self._ports(count) if fabric else ((), Problem("preflight.skip names it"))
        return Npus(
            npus=info.npus if info else (),
            problem=problem,
            closed=self._closed(count),
            driver=driver,
            firmware=firmware,
            cann=cann_version(sources),
            ports=ports,
            ports_problem=ports_problem,
        )

    def _smi(self) -> tuple[npu_smi.Smi | None, Problem | None]:
        text, problem = self._ask("npu-smi", "info")
        if problem:
            return None, problem
        try:
            return npu_smi.parse_info(text), None
        except ValueError as error:
            words = " ".join(text.split())[:160] or "it printed nothing"
            return None, Problem(f"npu-smi info: {error}: {words}", broken=True)

    def _firmware(self) -> str | None:
        text, problem = self._ask("npu-smi", "info", "-t", "board", "-i", "0")
        return None if problem else npu_smi.parse_board(text).get("Firmware Version")

    def _closed(self, count: int) -> dict[str, str]:
        """Return device files that the engine could not open."""
        found = {}
        for name in (*(f"davinci{index}" for index in range(count)), *DEVICES):
            file = self.dev / name
            if not file.exists():
                found[name] = GONE
            elif not os.access(file, os.R_OK | os.W_OK):
                found[name] = "this user may not open it"
        return found

    def _ports(self, count: int) -> tuple[tuple[NpuPort, ...], Problem | None]:
        if not self._which("hccn_tool"):
            return (), _missing("hccn_tool")
        ports = []
        for index in range(count):
            port = self._port(index)
            if port.problem and not port.problem.broken:
                return (), port.problem
            ports.append(port)
        return tuple(ports), None

    def _port(self, index: int) -> NpuPort:
        texts = {}
        for option in ("-link", "-net_health", "-tls", "-ip"):
            text, problem = self._ask("hccn_tool", "-i", str(index), option, "-g")
            # A device without address, certificate or that option is no broken one, whatever the exit code.
            if problem and not any(words in text.lower() for words in hccn.ANSWERS):
                return NpuPort(index, problem=problem)
            texts[option] = text
        address, netmask = hccn.parse_address(texts["-ip"]) or (None, None)
        link, health = hccn.parse_link(texts["-link"]), hccn.parse_health(texts["-net_health"])
        return NpuPort(index, link, health, hccn.parse_tls(texts["-tls"]), address, netmask)

    def pings(self, rank: int, wanted: Sequence[tuple[int, str, int, int]]) -> list[Ping]:
        """Ping NPUs of other ranks, until the deadline. `wanted`: own device, address, rank and device of the peer."""
        return [self._ping(rank, *one) for one in wanted]

    def _ping(self, rank: int, device: int, address: str, peer: int, peer_device: int) -> Ping:
        if time.monotonic() > self.deadline or self.stopped.is_set():
            return Ping(rank, device, peer, peer_device, why=NO_TIME)
        text, problem = self._ask("hccn_tool", "-i", str(device), "-ping", "-g", "address", address)
        counts = hccn.parse_ping(text)  # a failed ping has an exit code of its own
        if counts is None:
            why = problem.reason if problem else f"hccn_tool says: {' '.join(text.split())[:120]}"
            return Ping(rank, device, peer, peer_device, why=why)
        return Ping(rank, device, peer, peer_device, *counts)

    def _ask(self, name: str, *words: str) -> tuple[str, Problem | None]:
        """Return what a tool prints, and why it cannot be asked or says nothing good."""
        program = self._which(name)
        if not program:
            return "", _missing(name)
        while not self.stopped.is_set():
            left = self.deadline - time.monotonic()
            if left <= 0:
                return "", Problem(NO_TIME)
            try:
                done = process.run([program, *words], timeout_s=min(ANSWER_S, left))
            except RunError as error:
                reason = f"{name} {' '.join(words)}: {error.reason}"
                hangs = error.value == "(command)" and left > ANSWER_S
                return "", Problem(reason if hangs or error.value != "(command)" else NO_TIME, broken=hangs)
            said = f"{done.stdout}\n{done.stderr}".strip()
            if hccn.BUSY in said:
                self.stopped.wait(BUSY_S)
                continue
            return done.stdout, _refusal(name, words, done.returncode, said)
        return "", Problem("this rank was ended")

    def _which(self, name: str) -> str | None:
        return shutil.which(name, path=os.pathsep.join((self.path, *PLACES)))


def _refusal(name: str, words: Sequence[str], code: int, said: str) -> Problem | None:
    plain = " ".join(said.split())
    if any(tag in said for tag in NO_RIGHT) or any(tag in said.lower() for tag in hccn.DENIED):
        return Problem(f"no right to ask {name}: {plain[:160]}")
    if code == 0:
        return None
    return Problem(f"{name} {' '.join(words)}: exit code {code}: {plain[:200] or 'no words'}", broken=True)


def _missing(name: str) -> Problem:
    return Problem(f"{name} is not on this node")


def cann_version(sources: Iterable[str]) -> str | None:
    """Return the version of the CANN toolkit beside the set_env.sh that the engine sources; None: none is there.

    The toolkit's own record is `latest/<arch>-linux/ascend_toolkit_install.info`; from CANN 8.5 on without `latest`.
    """
    patterns = ("latest/*-linux/ascend_toolkit_install.info", "*-linux/ascend_toolkit_install.info")
    for source in sources:
        for file in (path for pattern in patterns for path in sorted(Path(source).parent.glob(pattern))):
            if version := version_in(file):
                return version
    return None
