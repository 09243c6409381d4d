"""REHEARSAL_SPEC: what the flags of `vllm serve` cannot say, as one JSON object in one variable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import Count, NotNegative, Positive, Section, Text, Whole, from_root
from jobs.core.files import from_yaml
from jobs.core.service_config import Shape
from jobs.engines.simulator.faults import parse_faults

VARIABLE = "REHEARSAL_SPEC"
DEFAULT = "atlas_800i_a2"

_FILES = Path(__file__).parent / "hardware"
_KEY = "engine.rehearsal.hardware"


@dataclass(frozen=True)
class Hardware(Section):
    """The NPU that a rehearsal pretends to run on; hardware/*.yaml says what each figure is."""

    peak_tflops: Positive
    hbm_gb_s: Positive
    npu_memory_gib: Positive
    allowance_gib: NotNegative
    replicated_share: NotNegative
    overhead_ms: NotNegative
    prefill_overhead_ms: NotNegative
    prefill_efficiency: Positive
    decode_efficiency: Positive
    attention_flops_per_kv_byte: NotNegative
    recall_tokens: Whole


@cache
def hardware(name: str = DEFAULT) -> Hardware:
    """Return the hardware of `engine.rehearsal.hardware`: the name of a file in hardware/, or the path of a YAML file.

    Raises:
        ConfigError: there is no such file; one of its keys is unknown, missing or wrong.
    """
    path = Path(from_root(name)) if "/" in name else _FILES / f"{name}.yaml"
    valid = ", ".join(sorted(file.stem for file in _FILES.glob("*.yaml")))
    try:
        values = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        reason = f"no hardware file: {error}"
        raise ConfigError(_KEY, name, reason, f"Valid: {valid}, or the path of a YAML file.") from None
    made: Hardware = _checked(_HARDWARE, values, f"{_KEY}={name}", f"See {_FILES / DEFAULT}.yaml.")
    return made


@dataclass(frozen=True)
class RehearsalSpec(Section):
    """What one rank of a rehearsal pretends to be.

    Attributes:
        release: whose flags are accepted.
        rank: of this process in the allocation; faults name it.
        shape: sizes of the model.
        npus_per_node: local data-parallel ranks x tensor parallel size must fit.
        load_s: seconds that loading takes.
        handshake_s: how long a headless rank waits for the head (vLLM: 5 minutes), seconds.
        faults: to act out; see faults.py.
    """

    release: Text = "0.9.1"
    rank: Whole = 0
    shape: Shape = field(default_factory=Shape)
    hardware: Hardware = field(default_factory=hardware)
    npus_per_node: Count = 8
    load_s: NotNegative = 0.5
    handshake_s: Positive = 300.0
    faults: tuple[dict[str, Any], ...] = ()


_HARDWARE, _SPEC = TypeAdapter(Hardware), TypeAdapter(RehearsalSpec)


def spec_json(config: Config, rank: int) -> str:
    """Return the value of REHEARSAL_SPEC for one rank.

    Raises:
        ConfigError: `engine.rehearsal` names no hardware, or an unknown fault.
    """
    rehearsal = config.engine.rehearsal
    parse_faults(rehearsal.faults)
    spec = RehearsalSpec(
        release=config.engine.release,
        rank=rank,
        shape=config.model.shape,
        hardware=hardware(rehearsal.hardware),
        npus_per_node=config.cluster.npus_per_node,
        load_s=rehearsal.load_s,
        faults=rehearsal.faults,
    )
    return json.dumps(asdict(spec))


def read_spec(text: str | None) -> RehearsalSpec:
    """Return the spec that `text` describes; without one, or for keys left out, the defaults.

    Raises:
        ConfigError: no JSON object, an unknown key, a wrong value.
    """
    try:
        values = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(VARIABLE, str(text)[:80], f"no JSON: {error}", "The tool writes it.") from None
    spec: RehearsalSpec = _checked(_SPEC, values, VARIABLE, "The tool writes it.")
    parse_faults(spec.faults)
    return spec


def _checked(adapter: TypeAdapter[Any], values: Mapping[str, Any], whose: str, remedy: str) -> Any:
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{whose} {key}", repr(first["input"]), first["msg"], remedy) from None
