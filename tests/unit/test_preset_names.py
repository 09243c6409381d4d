"""What a preset set is told by the preset's name: in one column, and in one word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.core.planfile import PlanFile, PlannedPoint, in_words
from jobs.results.columns import by_preset

SIZES = ("parallel.data_parallel_size", "parallel.tensor_parallel_size")


def chosen(*overrides: str, **values: object) -> PlannedPoint:
    """A point with its override list, which is its id as well, and its values of SIZES and others."""
    both = {f"parallel.{name}": value for name, value in values.items()}
    return PlannedPoint(" ".join(overrides), "service", both, overrides)


def presets(points: Sequence[PlannedPoint], swept: tuple[str, ...]) -> Mapping[str, Mapping[str, str]]:
    return PlanFile(tuple(points), (), swept).presets


def test_a_key_that_only_presets_set_is_told_by_the_preset() -> None:
    points = [
        chosen("parallel=dp2_tp8", data_parallel_size=2, tensor_parallel_size=8),
        chosen("parallel=dp4_tp4", data_parallel_size=4, tensor_parallel_size=4),
    ]
    told = presets(points, SIZES)
    assert told["parallel=dp4_tp4"] == dict.fromkeys(SIZES, "parallel=dp4_tp4")
    assert in_words(SIZES, points[1].values, told["parallel=dp4_tp4"]) == "parallel=dp4_tp4"
    assert by_preset((*SIZES, "bench.concurrency"), list(told.values()), ()) == {
        **dict.fromkeys(SIZES, "parallel"),
        "bench.concurrency": "bench.concurrency",
    }


def test_a_key_that_was_typed_keeps_its_own_name() -> None:
    points = [
        chosen(f"parallel={name}", f"parallel.max_num_seqs={batch}", tensor_parallel_size=size, max_num_seqs=batch)
        for name, size in (("dp2_tp8", 8), ("dp4_tp4", 4))
        for batch in (16, 64)
    ]
    keys = ("parallel.tensor_parallel_size", "parallel.max_num_seqs")
    told = presets(points, keys)
    assert in_words(keys, points[0].values, told[points[0].point]) == "parallel=dp2_tp8 parallel.max_num_seqs=16"


def test_a_key_that_differs_within_a_preset_is_not_told_by_it() -> None:
    same = [chosen("parallel=dp2_tp8", f"+x.y={n}", tensor_parallel_size=8, max_num_seqs=n) for n in (1, 2)]
    points = [*same, chosen("parallel=dp4_tp4", "+x.y=1", tensor_parallel_size=4, max_num_seqs=1)]
    told = presets(points, ("parallel.tensor_parallel_size", "parallel.max_num_seqs"))
    assert all(set(words) == {"parallel.tensor_parallel_size"} for words in told.values())


def test_two_groups_are_told_apart() -> None:
    points = [
        chosen(f"parallel={size}", f"lever=v{lever}", tensor_parallel_size=size, chunk=lever)
        for size in (4, 8)
        for lever in (1, 2)
    ]
    keys = ("parallel.tensor_parallel_size", "parallel.chunk")
    told = presets(points, keys)
    assert in_words(keys, points[1].values, told[points[1].point]) == "parallel=4 lever=v2"


def test_keys_of_the_work_and_names_that_other_columns_have_stay() -> None:
    told = [{"bench.input_tokens": "experiment=a", "engine.release": "engine=b", "hccl.buffsize": "experiment=a"}]
    assert by_preset(told[0], told, ("engine",)) == {
        "bench.input_tokens": "bench.input_tokens",
        "engine.release": "engine.release",
        "hccl.buffsize": "experiment",
    }
    assert by_preset(("hccl.buffsize",), [], ()) == {"hccl.buffsize": "hccl.buffsize"}
