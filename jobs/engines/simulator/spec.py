"""REHEARSAL_SPEC: what the flags of `vllm serve` cannot say, as one JSON object in one variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter, ValidationError

from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.core.fields import Count, Section, Text, Whole
from jobs.core.service_config import Rehearsal, Shape
from jobs.engines.simulator.faults import parse_faults

VARIABLE = "REHEARSAL_SPEC"


@dataclass(frozen=True)
class Spec(Section):
    """What one rank of a rehearsal pretends to be.

    Attributes:
        release: whose flags are accepted.
        rank: of this process in the allocation; faults name it.
        shape: sizes of the model.
        rehearsal: hardware and faults.
        npus_per_node: local data-parallel ranks x tensor parallel size must fit.
    """

    release: Text = "0.9.1"
    rank: Whole = 0
    shape: Shape = field(default_factory=Shape)
    rehearsal: Rehearsal = field(default_factory=Rehearsal)
    npus_per_node: Count = 8


_ADAPTER = TypeAdapter(Spec)


def spec_json(config: Config, rank: int) -> str:
    """Return the value of REHEARSAL_SPEC for one rank.

    Raises:
        ConfigError: a fault of `engine.rehearsal.faults` has an unknown key or kind.
    """
    parse_faults(config.engine.rehearsal.faults)
    spec = Spec(
        release=config.engine.release,
        rank=rank,
        shape=config.model.shape,
        rehearsal=config.engine.rehearsal,
        npus_per_node=config.cluster.npus_per_node,
    )
    return json.dumps(asdict(spec))


def read_spec(text: str | None) -> Spec:
    """Return the spec that `text` describes; without one, or for keys left out, the defaults.

    Raises:
        ConfigError: no JSON object, an unknown key, a wrong value.
    """
    if not text:
        return Spec()
    try:
        spec = _ADAPTER.validate_python(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(VARIABLE, text[:80], f"no JSON: {error}", "The tool writes it.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{VARIABLE} {key}", repr(first["input"]), first["msg"], "The tool writes it.") from None
    parse_faults(spec.rehearsal.faults)
    return spec
