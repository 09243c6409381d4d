"""Config to the environment of one rank's engine. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.layout import Placement

HCCL_VARIABLES = {
    "buffsize": "HCCL_BUFFSIZE",
    "connect_timeout": "HCCL_CONNECT_TIMEOUT",
    "exec_timeout": "HCCL_EXEC_TIMEOUT",
    "algo": "HCCL_ALGO",
    "op_expansion_mode": "HCCL_OP_EXPANSION_MODE",
    "intra_pcie_enable": "HCCL_INTRA_PCIE_ENABLE",
    "intra_roce_enable": "HCCL_INTRA_ROCE_ENABLE",
}
"""Keys of the section `hccl` and their variables (CANN environment reference)."""

OWNED = {
    **{variable: f"hccl.{key}" for key, variable in HCCL_VARIABLES.items()},
    "HCCL_IF_IP": "hccl.if_ip",
    "VLLM_API_KEY": "engine.api_key",
    **{f"{library}_SOCKET_IFNAME": "hccl.socket_ifname" for library in ("HCCL", "TP", "GLOO")},
}

SCRUBBED = (
    *("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMI2_", "PMIX_", "OMPI_", "I_MPI_", "MPICH_"),
    *("SUBMITIT_", "HYDRA_", "PYXIS_"),
)
"""Prefixes of host variables that mislead an engine's own launcher (vec-inf#142: MPI variables), or the runtime of its
container. Inside a container they are taken out once more: a nested step sets some of them again."""

OURS_ALONE = ("HCCL_", "GLOO_", "TP_SOCKET_", "VLLM_")
"""Prefixes of variables that only the config may set: one left over in a user's shell would change the figures."""

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
"""Proxies break requests between the nodes (vllm-ascend installation guide, multi-node)."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_env(env: Mapping[str, Any]) -> None:
    """Raise ConfigError where `engine.env` sets a variable that has a config key of its own, or cannot be one."""
    for name, value in env.items():
        if not _NAME.fullmatch(name) or isinstance(value, Mapping | list | tuple):
            reason = "a variable has a name like A_1 and one text or number as its value"
            raise ConfigError(f"engine.env.{name}", value, reason, "Quote the value if it is meant as text.")
        if name in OWNED and value is not None:
            reason = "the variable has a key of its own"
            raise ConfigError(f"engine.env.{name}", value, reason, f"Set {OWNED[name]} instead.")


def variables(config: Config, place: Placement) -> dict[str, str]:
    """Return the variables that the config sets for one rank; a null setting is left out.

    HCCL_IF_IP is the address of this node's own interface (article, 3.2, which takes the first address of
    `hostname -I`: that may be a docker or management interface). GLOO_ and TP_SOCKET_IFNAME take the bare name;
    HCCL_SOCKET_IFNAME the setting as it is (`=name` means exactly this interface).
    """
    result: dict[str, str] = {}
    hccl = config.hccl
    if hccl.if_ip is not None:
        result["HCCL_IF_IP"] = place.address if hccl.if_ip == "auto" else hccl.if_ip
    if hccl.socket_ifname is not None:
        spec = place.interface if hccl.socket_ifname == "auto" else hccl.socket_ifname
        if config.cluster.on_loopback:
            spec = place.interface
        result["HCCL_SOCKET_IFNAME"] = spec
        bare = spec.lstrip("=") if "^" not in spec and "," not in spec else place.interface
        result["TP_SOCKET_IFNAME"] = result["GLOO_SOCKET_IFNAME"] = bare
    for key, variable in HCCL_VARIABLES.items():
        value = getattr(hccl, key)
        if value is not None:
            result[variable] = _text(value)
    for name, value in config.engine.env.items():
        if value is not None:
            result[name] = _text(value)
            for word in ("address", "interface", "master_address", "rank"):
                result[name] = result[name].replace(f"{{{word}}}", str(getattr(place, word)))
    if place.api_key is not None:
        result["VLLM_API_KEY"] = place.api_key
    return result


def whole(variables: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the engine's whole environment: what is inherited, without launcher and proxy variables, plus ours."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith((*SCRUBBED, *OURS_ALONE)) and name not in PROXIES
    }
    return kept | dict(variables)


def of_client(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an engine that a client of its own environment needs too: paths, but nothing of HCCL."""
    return {name: value for name, value in variables.items() if not name.startswith((*OURS_ALONE, "REHEARSAL_"))}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
