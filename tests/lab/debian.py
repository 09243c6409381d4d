"""What the machine must be, and the Debian packages that the lab is made of."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import LabError, run

PACKAGES = (
    "iproute2",
    "mariadb-server",
    "munge",
    "slurm-client",
    "slurm-wlm-mysql-plugin",
    "slurmctld",
    "slurmd",
    "slurmdbd",
)
BESIDE = ("docker-registry", "docker.io", "podman", "runc")
"""What tests beside the lab want: they skip without it."""

POLICY = Path("/usr/sbin/policy-rc.d")


def unavailable() -> str | None:
    """Return why the lab cannot be on this machine, or None if it can."""
    if os.geteuid() != 0:
        return "the lab needs root (network namespaces, Slurm's daemons); this is not root"
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        return "the lab needs Debian or a system made from it (apt-get, dpkg-query); this is not one"
    try:
        run(["unshare", "--net", "--uts", "true"])
    except LabError as error:
        return f"the lab needs namespaces, and root may not make them here: {error}"
    return None


def missing(packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """Return those of the packages that are not installed."""
    query = run(["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Abbrev}\n", *packages], check=False)
    installed = {line.split()[0] for line in query.stdout.splitlines() if line.split()[1:] == ["ii"]}
    return [package for package in packages if package not in installed]


def install(packages: list[str], log: Path) -> None:
    """Install packages without starting their services. LabError if apt cannot.

    The package lists are fetched only if the first try fails: a fresh image has none.
    """
    options = ["-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
    with _services_stay_off(), log.open("ab") as output:

        def apt(*words: str) -> bool:
            env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(
                ["apt-get", *words],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
            )
            return done.returncode == 0

        if not (apt("install", *options, *packages) or (apt("update") and apt("install", *options, *packages))):
            raise LabError(f"apt-get could not install {' '.join(packages)}; its words are in {log}")


@contextmanager
def _services_stay_off() -> Iterator[None]:
    """Keep packages from starting their services (Debian policy, section 9.11.1): the lab starts its own."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\n# tests/lab: while it installs packages\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
