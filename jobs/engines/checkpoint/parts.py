"""Which layers of a model a pipeline stage holds, and which layers have what beside plain attention. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Indexer:
    """The indexer of sparse attention (DeepSeek-V3.2, GLM-5): it chooses the tokens to which a query attends.

    Attributes:
        heads, head: its heads, and their size.
        layers: the layers that have one; the others use the choice of the layer before.
        pool: tokens of one key in its cache (GLM-5.3-Flash: 4).
    """

    heads: int
    head: int
    layers: tuple[int, ...]
    pool: int = 1


@dataclass(frozen=True)
class Linear:
    """Linear attention (GLM-5.3-Flash: Kimi delta attention): a state of fixed size for each sequence, no KV cache.

    Attributes:
        heads, head: its heads, and the size of one.
        kernel: of its short convolution, tokens.
        layers: the layers that have it.
    """

    heads: int
    head: int
    kernel: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One pipeline stage: the layers from `begin` up to `end`, of `layers` in all; `number` counts from 1."""

    number: int
    begin: int
    end: int
    layers: int

    @property
    def first(self) -> bool:
        """It holds the embedding."""
        return self.begin == 0

    @property
    def last(self) -> bool:
        """It holds the output head, and the draft model."""
        return self.end == self.layers

    @property
    def size(self) -> int:
        """Its layers, a count."""
        return self.end - self.begin

    def of(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of some layers that it holds."""
        return tuple(layer for layer in layers if self.begin <= layer < self.end)


def stages(layers: int, count: int, partition: str | None = None) -> tuple[Stage, ...]:
    """Return the pipeline stages of a model with so many layers.

    `partition`: layers of each stage, as "31,30" (VLLM_PP_LAYER_PARTITION); None: as even as can be, and what is left
    over goes to the last stages but one.

    Raises:
        ValueError: the partition is none of these layers.
    Source: vllm, distributed/utils.py, get_pp_indices (0.9.1 to 0.32).
    """
    sizes = [layers // count] * count
    for back in range(2, layers % count + 2):
        sizes[-back] += 1
    if partition is not None:
        sizes = [int(part) for part in partition.split(",")]
        if len(sizes) != count or sum(sizes) != layers or min(sizes) < 1:
            raise ValueError(f"{count} whole numbers of at least 1 that add up to {layers} are needed")
    ends = [sum(sizes[: number + 1]) for number in range(count)]
    return tuple(Stage(n + 1, end - size, end, layers) for n, (size, end) in enumerate(zip(sizes, ends, strict=True)))
