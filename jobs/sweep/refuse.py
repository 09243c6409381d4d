"""What stops a sweep before it is planned: an error in a point, points that differ where they must not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

from jobs.core import schema
from jobs.core.config import Config
from jobs.core.errors import ConfigError
from jobs.engines.base import Finding
from jobs.sweep import check
from jobs.sweep.points import Point, canonical


def refuse(points: Sequence[Point], findings: Mapping[str, tuple[Finding, ...]]) -> None:
    """Raise ConfigError where these points can't be one sweep.

    Args:
        points: what is asked for.
        findings: what is wrong or risky with each point, by its id.
    """
    for point in points:
        check.refuse(findings[point.point])
    _refuse_unlike(points)
    _refuse_without_effect(points, findings)


def _refuse_unlike(points: Sequence[Point]) -> None:
    """Refuse points that a group makes differ in what belongs to the whole sweep.

    What a service or a load has of such keys (engine.port, container.name) may differ between services: each is started
    with its own.
    """
    keys = [key for key, scope in schema.schema().items() if scope == "sweep"]
    mixed = {key.partition(".")[0] for key, scope in schema.schema().items() if scope != "sweep"}
    of_all = [key for key in keys if key.partition(".")[0] not in mixed]
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
