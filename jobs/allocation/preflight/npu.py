"""Judge the NPUs themselves. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jobs.allocation.preflight import pairing
from jobs.allocation.preflight.facts import Facts, Npus
from jobs.allocation.preflight.findings import NO_NPUS, Finding, State, not_run, of_group, passed
from jobs.allocation.preflight.host import compare
from jobs.allocation.preflight.tools import GONE
from jobs.core.config import Config
from jobs.core.sweep_settings import Preflight
from jobs.engines.ascend.npu_smi import Npu
from jobs.engines.base import engine_of

FROM_SMI = ("npu.health", "npu.chip", "npu.memory", "npu.processes")
GOOD, POOR = "OK", "Warning"
"""Health words of npu-smi; the others are Alarm, Critical and UNKNOWN."""


def judge(facts: Sequence[Facts], config: Config) -> list[Finding]:
    """Return what is right and wrong with the NPUs of all nodes."""
    found: list[Finding] = []
    for one in facts:
        if one.npus is None:
            found += not_run(of_group("npu"), one.node, NO_NPUS)
        else:
            found += _node(one.node, one.npus, config)
    known = [one for one in facts if one.npus is not None]
    if known:
        found += _driver(known, config)
        found += _same(known, "npu.firmware", lambda npus: npus.firmware, "the firmware's version is not known")
        found += _cann(known, config)
    return found


def _node(node: str, npus: Npus, config: Config) -> list[Finding]:
    count = config.cluster.npus_per_node
    found: list[Finding] = []
    if npus.problem:
        reason = npus.problem.reason
        if npus.problem.broken:
            remedy = "A dead NPU makes npu-smi hang or fail: restart the node, or choose another one."
            found.append(Finding("npu.devices", "fail", node, reason, remedy))
            found += not_run(FROM_SMI, node, "npu-smi info gave no answer")
        else:
            found += not_run(("npu.devices", *FROM_SMI), node, reason)
        return [*_files(node, npus.closed, count), *found]
    present = {npu.index for npu in npus.npus}
    for index in range(count):
        if index not in present:
            remedy = "The NPU is lost: restart the node, or choose another one."
            found.append(Finding("npu.devices", "fail", node, "npu-smi does not show it", remedy, f"NPU {index}"))
    if not found:
        found.append(passed("npu.devices", node, f"{len(npus.npus)} NPUs"))
    for npu in npus.npus:
        found += _sick(node, npu, config.preflight)
    if all(npu.processes is None for npu in npus.npus):
        found += not_run(("npu.processes",), node, "npu-smi info shows no table of processes")
    seen = {one.check for one in found}
    values = {
        "npu.health": f"{len(npus.npus)} x OK",
        "npu.chip": ", ".join(sorted({npu.name for npu in npus.npus})),
        "npu.memory": f"at most {max(npu.used_mb for npu in npus.npus)} MB in use",
        "npu.processes": "none",
    }
    found += [passed(check, node, value) for check, value in values.items() if check not in seen]
    return [*_files(node, npus.closed, count), *found]


def _sick(node: str, npu: Npu, settings: Preflight) -> list[Finding]:
    """Return what is wrong with one NPU."""
    found: list[Finding] = []
    limits = settings.thresholds

    def bad(check: str, reason: str, remedy: str, state: State = "fail") -> None:
        found.append(Finding(check, state, node, reason, remedy, f"NPU {npu.index}"))

    if npu.health != GOOD:
        remedy = f"See npu-smi info -t health -i {npu.index} -c 0; reset the NPU, or choose another node."
        bad("npu.health", f"its health is {npu.health}", remedy, "warn" if npu.health == POOR else "fail")
    if not npu.name.startswith(limits.chip):
        reason = f"it is a {npu.name}, and preflight.thresholds.chip is {limits.chip}"
        bad("npu.chip", reason, "Choose nodes with that chip (cluster.constraint), or set preflight.thresholds.chip.")
    if npu.total_mb < limits.npu_memory_mb:
        reason = f"it has {npu.total_mb} MB, and {limits.npu_memory_mb:g} are asked for"
        bad("npu.memory", reason, "Choose nodes with larger NPUs, or set preflight.thresholds.npu_memory_mb.")
    elif npu.used_mb > limits.npu_idle_mb:
        reason = f"{npu.used_mb} MB are in use before the start; {limits.npu_idle_mb:g} is the most for an idle one"
        bad("npu.memory", reason, "End what uses it, or reset the NPU, or choose another node.")
    for process in npu.processes or ():
        reason = f"process {process.pid} {process.name or '(no name)'} runs on it with {process.memory_mb} MB"
        bad("npu.processes", reason, "End it if it is yours; else choose another node, and tell its owner.")
    return found


def _files(node: str, closed: Mapping[str, str], count: int) -> list[Finding]:
    if all(closed.get(f"davinci{index}") == GONE for index in range(count)):
        remedy = "Choose nodes with NPUs (cluster.partition, cluster.gres), or load the driver."
        return [Finding("npu.files", "fail", node, "there is no /dev/davinci*: no NPUs, or no driver", remedy)]
    found = []
    for name, reason in closed.items():
        remedy = "The NPU is lost: restart the node, or choose another one."
        if reason != GONE:
            remedy = "Let the admin add the user to the driver's group (HwHiAiUser)."
        found.append(Finding("npu.files", "fail", node, reason, remedy, f"/dev/{name}"))
    return found or [passed("npu.files", node, f"{count} NPUs may be opened")]


def _driver(facts: Sequence[Facts], config: Config) -> list[Finding]:
    found = []
    for one in facts:
        driver = one.npus.driver if one.npus else None
        if driver is None:
            found += not_run(("npu.driver",), one.node, "the driver's version is not known")
            continue
        if not engine_of(config).traits.npus:
            found.append(passed("npu.driver", one.node, driver))
            continue
        state, text = pairing.driver_fits(driver, config.engine.release)
        remedy = "" if state == "pass" else "Update driver and firmware (HDK 25.5.0 or newer), or choose another node."
        found.append(Finding("npu.driver", state, one.node, text, remedy))
    versions = {one.node: one.npus.driver for one in facts if one.npus and one.npus.driver}
    if len(set(versions.values())) > 1:
        newest = max(versions, key=lambda node: pairing.numbers(str(versions[node])))
        for node, version in versions.items():
            if version != versions[newest]:
                reason = f"driver {version} differs from {versions[newest]} on {newest}"
                found.append(Finding("npu.driver", "fail", node, reason, "Install the same driver on all nodes."))
        found = [one for one in found if one.state != "pass" or one.node == newest]
    return found


def _same(facts: Sequence[Facts], check: str, value: Callable[[Npus], str | None], unknown: str) -> list[Finding]:
    """Compare a version that each node may know or not."""
    known = [one for one in facts if one.npus and value(one.npus)]
    missing = [one for one in facts if one not in known]
    found = [finding for one in missing for finding in not_run((check,), one.node, unknown)]
    if not known:
        return found

    def text(one: Facts) -> str:
        return str(value(one.npus)) if one.npus else ""

    name = check.partition(".")[2]
    differ = compare(check, name, known, text, "fail", "Install the same version on all nodes.")
    return found + (differ or [passed(check, one.node, text(one)) for one in known])


def _cann(facts: Sequence[Facts], config: Config) -> list[Finding]:
    absent = "CANN is not on the node: it comes with the image, or is not installed"
    found = _same(facts, "npu.cann", lambda npus: npus.cann, absent)
    wanted = pairing.CANN.get(config.engine.release) if engine_of(config).traits.npus else None
    if wanted is None:
        return found
    result = []
    for one in found:
        if one.state == "pass" and not pairing.same_cann(one.reason, wanted):
            reason = f"CANN {one.reason}; the images of vllm-ascend {config.engine.release} have {wanted}"
            one = Finding("npu.cann", "warn", one.node, reason, f"Install CANN {wanted}, or use the release's image.")
        result.append(one)
    return result
