"""Which driver and CANN belong to which release of vllm-ascend. Pure.

Sources: vllm-ascend's versioning policy (release and CANN); the release notes of CANN 8.5.0 (HDK 25.0 to 25.5) and of
MindCluster 26.1.0 (CANN 9.1.0 with HDK 26.1); vllm-ascend issues 5947, 5993 and 9005: EI0007 on two A2 nodes
with drivers before 25.5, cured by an upgrade.
"""

from __future__ import annotations

import re

from jobs.allocation.preflight.findings import State

CANN = {"0.9.1": "8.2.RC1", "0.11.0": "8.3.RC2", "0.13.0": "8.5.0", "0.18.0": "8.5.1", "0.23.0": "9.1.0"}
"""CANN of the images of a release."""

_LEAST = (((0, 13), (25, 0), "CANN 8.5 and later need HDK 25.0 or newer"),)
_BETTER = (
    ((0, 23), (26, 1), "CANN 9.1.0 is paired with HDK 26.1"),
    ((0, 13), (25, 5), "drivers before 25.5 fail in MC2 with EI0007 (vllm-ascend issue 9005)"),
    ((0, 0), (25, 0), "drivers before 25.0 fail in MC2 with EI0007 (vllm-ascend issue 5947)"),
)


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `25.3.rc1` is (25, 3), `24.1.0.3` is (24, 1, 0, 3)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def driver_fits(driver: str, release: str) -> tuple[State, str]:
    """Return how a driver suits a release, and why: fail where it cannot work, warn where it is known to be weak."""
    have, wanted = numbers(driver), numbers(release)
    if not have or not wanted:
        return "warn", f"driver {driver} cannot be compared with release {release}"
    for since, least, why in _LEAST:
        if wanted >= since and have < least:
            return "fail", f"driver {driver} with vllm-ascend {release}: {why}"
    for since, good, why in _BETTER:
        if wanted >= since and have < good:
            return "warn", f"driver {driver} with vllm-ascend {release}: {why}"
    return "pass", driver


def same_cann(one: str, other: str) -> bool:
    """Return whether two spellings mean the same CANN: `8.2.RC1`, `8.2.rc1` and `8.2.RC1.alpha003` begin alike."""
    one, other = one.lower(), other.lower()
    return one.startswith(other) or other.startswith(one)
