"""Judge the nodes without their NPUs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobs.allocation.preflight.facts import UNKNOWN, Facts, Space
from jobs.allocation.preflight.findings import Finding, State, not_run, passed
from jobs.core.sweep_settings import Preflight

CLOCK_WARN_S = 0.5
"""Below preflight.thresholds.clock_s, but more than any clock that is kept by NTP or PTP."""

HUGEPAGES_SHARE = 0.1


def judge(facts: Sequence[Facts], settings: Preflight, *, npus: bool, on_loopback: bool) -> list[Finding]:
    """Return what is right and wrong with the nodes; `facts` are of all ranks, rank 0 first.

    With `npus` a large model is served, and too little memory or disk is a failure. Else it is a warning: tiny models
    need little. On loopback there is nothing to compare.
    """
    severity: State = "fail" if npus else "warn"
    found: list[Finding] = []
    for one in facts if not on_loopback else facts[:1]:
        found += [
            _shm(one, settings.thresholds.shm_gib, severity),
            _memory(one, settings.thresholds.memory_gib, severity),
            *_disks(one, settings.thresholds.disk_gib, severity),
            *_container(one, severity),
            _hugepages(one),
            _proxies(one),
        ]
    if len(facts) < 2 or on_loopback:
        why = "all ranks are on one host" if on_loopback else "there is one node only"
        return found + not_run(("host.versions", "host.clock"), facts[0].node, why)
    return found + _versions(facts) + _clocks(facts, settings.thresholds.clock_s)


def _shm(one: Facts, least: float, severity: State) -> Finding:
    shm = one.host.shm
    size = f"{shm.total_gib:.2f} GiB, {shm.free_gib:.2f} GiB free"
    if shm.total_gib < least:
        remedy = "Make it larger (mount -o remount,size=16G /dev/shm), or give the container its own --shm-size."
        return Finding("host.shm", severity, one.node, f"/dev/shm has {size}, {least:g} is the least", remedy)
    if shm.free_gib < least:
        left = f": {', '.join(one.host.leftovers[:4])}" if one.host.leftovers else ""
        remedy = f"Remove what killed engines left there{left}."
        return Finding("host.shm", severity, one.node, f"/dev/shm is full: {size}", remedy)
    return passed("host.shm", one.node, size)


def _memory(one: Facts, least: float, severity: State) -> Finding:
    memory = one.host.memory
    size = f"{memory.free_gib:.1f} of {memory.total_gib:.1f} GiB are available"
    if memory.free_gib < least:
        remedy = "End what uses it, or choose another node."
        return Finding("host.memory", severity, one.node, f"{size}, {least:g} is the least", remedy)
    return passed("host.memory", one.node, size)


def _disks(one: Facts, least: float, severity: State) -> list[Finding]:
    def judged(name: str, disk: Space) -> Finding:
        if disk.free_gib < least:
            reason = f"{name} has {disk.free_gib:.2f} GiB free, {least:g} is the least"
            return Finding("host.disk", severity, one.node, reason, "Free space there, or choose another directory.")
        return passed("host.disk", one.node, f"{name}: {disk.free_gib:.1f} GiB free")

    return [judged(name, disk) for name, disk in one.host.disks.items()]


def _container(one: Facts, severity: State) -> list[Finding]:
    """Return what is to be said of the container's runtime, and of the space for its image."""
    runtime = one.host.runtime
    if runtime is None or (runtime.name == "none" and not runtime.removed):
        return []
    gone = f"removed what a dead job left: {', '.join(runtime.removed)}" if runtime.removed else ""
    if runtime.problem:
        found = [Finding("host.container", "fail", one.node, runtime.problem, runtime.remedy)]
    else:
        said = f"{runtime.name} {runtime.version}".strip()
        found = [passed("host.container", one.node, f"{said}; {gone}" if gone else said)]
    for need in runtime.needs:
        if need.free_gib < need.need_gib:
            much = f"{'about ' if need.guessed else ''}{need.need_gib:.1f}"
            reason = f"{need.where}: {need.free_gib:.1f} GiB are free, the image needs {much}"
            remedy = "Free space, or choose other directories; an unknown image has preflight.thresholds.image_gib."
            state: State = "warn" if need.guessed else severity  # an import that has no space says so itself
            found.append(Finding("host.disk", state, one.node, reason, remedy))
        else:
            what = f"{need.where}: {need.free_gib:.1f} GiB free, {need.need_gib:.1f} needed"
            found.append(passed("host.disk", one.node, what))
    return found


def _hugepages(one: Facts) -> Finding:
    held = one.host.hugepages_gib
    if held > HUGEPAGES_SHARE * one.host.memory.total_gib:
        reason = f"static huge pages hold {held:.1f} of {one.host.memory.total_gib:.1f} GiB, which no engine uses"
        return Finding("host.hugepages", "warn", one.node, reason, "Lower vm.nr_hugepages.")
    return passed("host.hugepages", one.node, f"{held:.1f} GiB")


def _proxies(one: Facts) -> Finding:
    if one.host.proxies:
        names = ", ".join(f"{name}={value}" for name, value in one.host.proxies.items())
        remedy = "Unset them in engine.env, or name the nodes in engine.env.no_proxy."
        return Finding("host.proxies", "fail", one.node, f"requests between the nodes go to {names}", remedy)
    taken = ", ".join(one.host.shell_proxies)
    return passed("host.proxies", one.node, f"none ({taken}: not passed on to the engine)" if taken else "none")


def _versions(facts: Sequence[Facts]) -> list[Finding]:
    found: list[Finding] = []
    unknown: list[Finding] = []
    for name in sorted({name for one in facts for name in one.host.versions}):
        blind = [one.node for one in facts if one.host.versions.get(name) == UNKNOWN]
        if blind:
            unknown += [each for node in blind for each in not_run(("host.versions",), node, f"{name} unknown")]
            continue
        taken = name == "image" and all(_version_of(name)(one).startswith("sha256:") for one in facts)
        severity: State = "warn" if name == "kernel" or taken else "fail"
        remedy = _TAKEN if taken else "Use the same installation or image on all nodes."
        found += compare("host.versions", name, facts, _version_of(name), severity, remedy)
    if all(map(_runtime_of, facts)):
        found += compare("host.versions", "container runtime", facts, _runtime_of, "warn", "Install one version.")
    if found or unknown:
        return found + unknown
    shown = ", ".join(f"{name} {value}" for name, value in facts[0].host.versions.items())
    return [passed("host.versions", one.node, shown) for one in facts]


_TAKEN = "Each rank takes that of rank 0, if a registry has it by its digest; pull the tag again to spare it."


def _runtime_of(one: Facts) -> str:
    runtime = one.host.runtime
    return f"{runtime.name} {runtime.version}" if runtime and runtime.version else ""


def _version_of(name: str) -> Callable[[Facts], str]:
    return lambda one: one.host.versions.get(name, "not there")


def compare(
    check: str, name: str, facts: Sequence[Facts], value: Callable[[Facts], str], severity: State, remedy: str
) -> list[Finding]:
    """Return a finding for each node whose value differs from the first node's; no blame, since either may be right."""
    first, node = value(facts[0]), facts[0].node
    return [
        Finding(check, severity, "", f"{name} is {first} on {node} and {value(one)} on {one.node}", remedy)
        for one in facts[1:]
        if value(one) != first
    ]


def _clocks(facts: Sequence[Facts], limit_s: float) -> list[Finding]:
    found = [passed("host.clock", facts[0].node, "the others are compared with it")]
    for one in facts[1:]:
        if one.clock_s is None:
            found += not_run(("host.clock",), one.node, "it was not measured")
            continue
        away = abs(one.clock_s)
        way = "ahead of" if one.clock_s > 0 else "behind"
        text = f"{away:.3f} s {way} {facts[0].node}"
        state: State = "fail" if away > limit_s else "warn" if away > CLOCK_WARN_S else "pass"
        remedy = (
            "" if state == "pass" else "Mend its time service (chronyc tracking): logs are compared by their times."
        )
        found.append(Finding("host.clock", state, one.node, text, remedy))
    return found
