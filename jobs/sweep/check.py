"""What can be said before a sweep is planned: what is wrong or risky with each point, and with all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import attrgetter
from typing import Any

from containers.spec import release_of, resolve
from jobs.allocation.node import container
from jobs.allocation.preflight.findings import check_names
from jobs.cluster.interfaces import choose_interface
from jobs.cluster.ports import derive_ports
from jobs.core import alike, masking, schema
from jobs.core.config import Config, SweepSettings, in_container
from jobs.core.errors import ConfigError
from jobs.core.layout import local_sizes
from jobs.engines.base import Finding, Severity, caught, engine_of
from jobs.engines.checkpoint.architecture import required
from jobs.engines.speculation import speculation_of
from jobs.forecast import memory as fit
from jobs.forecast.duration import load_limit
from jobs.forecast.rounds import few_requests
from jobs.measure.checks import BENCH_LOOKS, warnings
from jobs.measure.dataset import is_text
from jobs.measure.speculation import NOT_TEXT
from jobs.sweep.points import Point, canonical

SEE = "see python -m jobs check"


@dataclass(frozen=True)
class Shared:
    """A finding and the points that share it, by their place in the list that was checked."""

    finding: Finding
    points: tuple[int, ...]


def findings_of(points: Iterable[Point]) -> dict[str, tuple[Finding, ...]]:
    """Return what is wrong or risky with each point, by its id."""
    found: dict[str, tuple[Finding, ...]] = {}
    for point in points:
        if point.point not in found:
            found[point.point] = (*findings(point.config), *unused_image(point.config, point.overrides))
    return found


def refuse(found: Iterable[Finding]) -> None:
    """Raise ConfigError for the first error among the findings of one config, with the count of the others."""
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        first, others = errors[0], len(errors) - 1
        more = f" ({others} more error{'s' if others > 1 else ''}: {SEE})" if others else ""
        raise ConfigError(first.key, first.value, first.reason, first.remedy + more)


def refuse_points(points: Sequence[Point], findings: Mapping[str, tuple[Finding, ...]]) -> None:
    """Raise ConfigError where these points, with what is wrong or risky with each (by its id), can't be one sweep."""
    for point in points:
        refuse(findings[point.point])
    for point in {point.service: point for point in points}.values():
        _refuse_secrets(point)
    _refuse_unlike(points)
    _refuse_without_effect(points, findings)


def _refuse_secrets(point: Point) -> None:
    """Raise ConfigError where a secret stands in another place than engine.env, or is swept: it would be shown."""
    remedy = "Set it as a variable of the engine (engine.env.NAME): there it is kept out of all records."
    for key in point.values:
        if key.startswith("engine.env.") and masking.values_in({key.removeprefix("engine.env."): point.values[key]}):
            raise ConfigError(key, masking.MASK, "a secret cannot be swept: the table shows what differs", remedy)
    known = masking.known()
    for section in fields(point.config):
        for key, value in _texts(section.name, getattr(point.config, section.name)):
            if not key.startswith("engine.env.") and masking.has_secret(value, known):
                raise ConfigError(key, masking.MASK, "it holds a secret, and everybody sees what stands there", remedy)


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _texts(f"{key}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name, child in value.items():
            yield from _texts(f"{key}.{name}", f"{name}={child}" if masking.is_secret(str(name)) else child)
    elif isinstance(value, list | tuple):
        yield key, " ".join(map(str, value))


def _refuse_unlike(points: Sequence[Point]) -> None:
    """Refuse points that a group makes differ in what belongs to the whole sweep.

    What a service or a load has of such keys (engine.port, container.name) may differ between services: each is started
    with its own.
    """
    keys = [key for key, scope in schema.schema().items() if scope == "sweep"]
    whole = {one.name for one in fields(SweepSettings)}
    of_all = [key for key in keys if key.partition(".")[0] in whole]
    of_service = [key for key in keys if key not in of_all]
    _refuse_other([point.config for point in points], of_all)
    members: dict[str, list[Config]] = {}
    for point in points:
        members.setdefault(point.service, []).append(point.config)
    for configs in members.values():
        _refuse_other(configs, of_service)


def _refuse_other(configs: Sequence[Config], keys: Sequence[str]) -> None:
    """Raise ConfigError for the first of these keys in which a config differs from the first one."""
    values = attrgetter(*keys)
    first = values(configs[0])
    for config in configs[1:]:
        if (other := values(config)) != first:
            key, one, two = next(found for found in zip(keys, first, other, strict=True) if found[1] != found[2])
            reason = "the points of one sweep differ in it"
            raise ConfigError(key, f"{one} and {two}", reason, "Give it one value, or start one sweep for each.")


def _refuse_without_effect(points: Sequence[Point], findings: Mapping[str, tuple[Finding, ...]]) -> None:
    """Refuse two points that differ in nothing that their release reads: two loads would measure the same (N5)."""
    swept = tuple(points[0].values)
    unread: dict[str, set[str]] = {}
    for point in points:
        keys = {found.key for found in findings[point.point] if found.rule == "N5" and found.key in swept}
        unread.setdefault(point.config.engine.release, set()).update(keys)
    seen: dict[str, Point] = {}
    for point in points:
        without = unread[point.config.engine.release]
        if not without:
            continue
        rest = {key: value for key, value in point.values.items() if key not in without}
        other = seen.setdefault(canonical(rest | {"": point.config.engine.release}), point)
        key = next((one for one in swept if one in without and other.values.get(one) != point.values.get(one)), None)
        if key is not None:
            raise ConfigError(
                key,
                f"{other.values.get(key)} and {point.values.get(key)}",
                f"vllm-ascend {point.config.engine.release} does not read it: points that differ in it alone would"
                " load the engine again and measure the same",
                "Sweep what this release reads; the files of conf/moe name their releases.",
            )


def findings(config: Config, *, memory: bool = False) -> tuple[Finding, ...]:
    """Return everything that is wrong or risky with one config, errors first.

    `memory`: also ask the memory model whether one request of max_model_len fits (rule R19).
    """
    own = [caught(one, config, "R1" if one is local_sizes else "C1") for one in CHECKS]
    found = [
        *(one for one in own if one),
        *warnings(config),
        *few_requests(config),
        *load_limit(config),
        *engine_of(config).findings(config),
    ]
    if other := image_release(config):
        found.append(other)
    if speculation_of(config) and not is_text(config.bench):
        remedy = "Set bench.workload=text, or leave speculation out; such rows win nothing."
        found.append(Finding("C3", "warning", "bench.workload", config.bench.workload, NOT_TEXT, remedy, "vllm#52536"))
    if memory and (unfit := fits(config)):
        found.append(unfit)
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def shared(found: Iterable[Iterable[Finding]]) -> tuple[Shared, ...]:
    """Return the findings of all points, each one once, errors first. `found`: the findings of each point."""
    places: dict[str, tuple[Finding, list[int]]] = {}
    for index, of_point in enumerate(found):
        for finding in of_point:
            places.setdefault(repr(finding), (finding, []))[1].append(index)
    once = [Shared(finding, tuple(dict.fromkeys(points))) for finding, points in places.values()]
    return tuple(sorted(once, key=lambda one: one.finding.severity != "error"))


def alike_as_one(found: Sequence[Shared]) -> tuple[Shared, ...]:
    """Return the findings for people: many that differ in the figures of their reason and remedy alone are one.

    A few are each told with its points: a sweep of a hundred loads says a hundred times that its window is short.
    """
    kinds: dict[str, list[Shared]] = {}
    for one in found:
        kind = replace(one.finding, reason=alike.kind(one.finding.reason), remedy=alike.kind(one.finding.remedy))
        kinds.setdefault(repr(kind), []).append(one)
    told: list[Shared] = []
    for same in kinds.values():
        told += [_as_one(same)] if len(same) > alike.FEW else same
    return tuple(told)


def _as_one(same: Sequence[Shared]) -> Shared:
    reason = alike.as_one([one.finding.reason for one in same])
    remedy = alike.as_one([one.finding.remedy for one in same])
    points = sorted({point for one in same for point in one.points})
    return Shared(replace(same[0].finding, reason=reason, remedy=remedy), tuple(points))


def fits(config: Config) -> Finding | None:
    """Return what rule R19 finds: one request of max_model_len must fit into the KV cache of a rank.

    An error where it cannot even if the sum is as wrong as it may be, a warning where it may not.
    """
    judged = fit.judge(config, required)
    reason = judged.refusal or judged.doubt
    if reason is None:
        return None
    key, source = "parallel.max_model_len", "vllm, kv_cache_utils.py, check_enough_kv_cache_memory"
    remedy = "Lower it, raise parallel.gpu_memory_utilization, or change the layout; see python -m jobs memory."
    severity: Severity = "error" if judged.refusal else "warning"
    return Finding("R19", severity, key, config.parallel.max_model_len, reason, remedy, source)


def image_release(config: Config) -> Finding | None:
    """Return that the tag of the container's image names another release than the one that is rendered for.

    An error where a recipe of this project pins the tag, else a warning: a site may tag as it likes. What is installed
    is looked at in the container, before the engine starts.
    """
    image = config.container.image
    if not in_container(config) or image is None or not engine_of(config).traits.npus:
        return None
    try:
        said = release_of(resolve(image, config.container.registry))
    except ConfigError:  # a finding of its own
        return None
    if said is None or said[0] == config.engine.release:
        return None
    release, pinned = said
    reason = f"its tag names release {release}, and flags and environment are rendered for {config.engine.release}"
    remedy = f"Set engine.release={release} (python -m jobs explain shows what that changes), or choose another image."
    return Finding("C2", "error" if pinned else "warning", "container.image", image, reason, remedy, "this tool")


def unused_image(config: Config, overrides: Sequence[str]) -> tuple[Finding, ...]:
    """Return that an image was asked for and no runtime is: the engine is this host's. A recipe's may wait for one."""
    image = config.container.image
    asked = any(one.lstrip("+").startswith("container.image=") for one in overrides)
    if in_container(config) or image is None or not asked:
        return ()
    reason, remedy = "container=none starts the engine on the node itself", "Add container=enroot, pyxis or docker."
    return (Finding("C4", "warning", "container.image", image, reason, remedy, "this tool"),)


def _ports(config: Config) -> None:
    ports = (config.engine.port, config.engine.data_parallel_rpc_port, config.cluster.control_port)
    given = [port for port in ports if port is not None]
    if len(set(given)) < len(given):  # the others are not known before there is a job id
        derive_ports(0, api=ports[0], dp_rpc=ports[1], control=ports[2])


def _interface(config: Config) -> None:
    if config.hccl.socket_ifname is not None and config.hccl.socket_ifname != "auto":
        choose_interface(config.hccl.socket_ifname, ())


def _token_ids(config: Config) -> None:
    low, high = config.model.shape.token_ids
    if not 0 <= low < high:
        reason, remedy = "low must be below high", "Give [low, high) of ordinary ids."
        raise ConfigError("model.shape.token_ids", [low, high], reason, remedy)


CHECKS: tuple[Callable[[Config], object], ...] = (
    local_sizes,
    container.check,
    lambda config: check_names("preflight.skip", config.preflight.skip),
    lambda config: check_names("preflight.warn_only", config.preflight.warn_only),
    _interface,
    _ports,
    *BENCH_LOOKS,
    _token_ids,
)
"""What the tool itself asks of a config, in the order in which it is said."""
