"""What a checkpoint is, in a form that can be written down and compared: sizes, hashes, sampled blocks.

Two nodes have the same checkpoint if their manifests agree. Small files are hashed as a whole; of weight files,
seeded blocks are, so that 690 GB need not be read. A sample that is compared takes the blocks that the other
manifest took.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.core.errors import RunError
from jobs.core.files import public, read_json, sha256, write_json
from jobs.core.foreign import regular
from jobs.engines.checkpoint.checkpoint import CONFIG, DESCRIPTION, SMALL_BYTES, Finding, files

BLOCK_BYTES = 1 << 20
BLOCKS = 4
"""Blocks of a sampled file, the first one of them at its start."""

UNFINISHED = 2
"""So many blocks of zeros are no weights any more."""

SAMPLED = 16
"""Weight files of which blocks are hashed by default, and compared after a copy."""

HASHERS = 8

Progress = Callable[[int], None]
"""Told the bytes that were just read."""


@dataclass(frozen=True)
class Sample:
    """The SHA-256 of some blocks of one file, taken together; `offsets` None: of the whole file."""

    offsets: tuple[int, ...] | None
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A checkpoint: sizes in bytes of all files, hashes of the small ones, samples of weight files."""

    sizes: Mapping[str, int]
    hashes: Mapping[str, str]
    samples: Mapping[str, Sample]
    seed: int

    def write(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_json(path, self, public())

    @property
    def parts(self) -> dict[str, str]:
        """Short hashes of the sizes, of each describing file, and of the other small ones: for two ranks to compare."""
        named = {CONFIG, DESCRIPTION, *(name for name in self.hashes if name.endswith(".index.json"))}
        rest = {name: value for name, value in self.hashes.items() if name not in named}
        return {
            "set of file sizes": _short(self.sizes),
            **({"sampled content of weight files": _short(self.samples)} if self.samples else {}),
            "tokenizer, code or other small file": _short(rest),
            **{name: value[:12] for name, value in self.hashes.items() if name in named},
        }


def _short(values: Mapping[str, object]) -> str:
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:12]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. RunError: it is missing, or is none."""
    data = read_json(path)
    try:
        return TypeAdapter(Manifest).validate_python(data)
    except ValidationError:
        reason = "it is no manifest of a checkpoint"
        raise RunError(str(path), "(read)", reason, "Make one by `python -m jobs model verify --manifest`.") from None


def make_manifest(
    path: Path,
    *,
    sampled: int = 0,
    whole: bool = False,
    seed: int = 0,
    like: Manifest | None = None,
    progress: Progress = lambda _: None,
) -> tuple[Manifest, list[Finding]]:
    """Describe the checkpoint in `path`.

    Args:
        sampled: weight files of which blocks are hashed, chosen by `seed`.
        whole: hash every weight file as a whole instead (hours for DeepSeek-R1 on a slow file system).
        like: take the blocks that this manifest took, and its seed.

    Returns:
        the manifest, and the files that cannot be read or that hold nothing but zeros where they were looked at: a
        download that reserved its space and was not finished has the right size.
    """
    sizes = files(path)
    small = [name for name, size in sizes.items() if not name.endswith(".safetensors") and size <= SMALL_BYTES]
    wanted = _wanted(sizes, small, sampled, whole, seed, like)
    findings: list[Finding] = []

    def tried(name: str, work: Callable[[str], Any], remedy: str) -> Any:
        try:
            return work(name)
        except OSError as error:
            findings.append(Finding(name, f"it cannot be read: {error.strerror}", remedy))
            return None

    def sample(name: str) -> Sample:
        return _sample(path / name, wanted[name], progress, findings)

    with ThreadPoolExecutor(HASHERS) as pool:
        digests = pool.map(lambda name: tried(name, lambda name: sha256(path / name), "Mend its rights."), small)
        taken = pool.map(lambda name: tried(name, sample, "Mend the file or its disk."), wanted)
        hashes = {name: one or "" for name, one in zip(small, digests, strict=True)}
        samples = {name: one for name, one in zip(wanted, taken, strict=True) if one}
    return Manifest(sizes, hashes, samples, like.seed if like else seed), findings


Wanted = Mapping[str, tuple[int, ...] | None]


def _wanted(
    sizes: Mapping[str, int], small: list[str], sampled: int, whole: bool, seed: int, like: Manifest | None
) -> Wanted:
    """Return the block offsets to hash by file; None: the whole file."""
    if like is not None:
        return {name: sample.offsets for name, sample in like.samples.items() if name in sizes}
    large = [name for name in sizes if name not in small]
    if whole:
        return dict.fromkeys(large)
    chosen = sorted(random.Random(seed).sample(large, min(sampled, len(large))))
    return {name: _offsets(name, sizes[name], seed) for name in chosen}


def _offsets(name: str, size: int, seed: int) -> tuple[int, ...]:
    others = range(1, -(-size // BLOCK_BYTES))
    rest = random.Random(f"{seed} {name} {size}").sample(others, min(BLOCKS - 1, len(others)))
    return tuple(block * BLOCK_BYTES for block in sorted([0, *rest]))


def _sample(path: Path, offsets: tuple[int, ...] | None, progress: Progress, findings: list[Finding]) -> Sample:
    found = hashlib.sha256()
    with regular(path) as file:
        if offsets is None:
            while block := file.read(BLOCK_BYTES):
                found.update(block)
                progress(len(block))
            return Sample(None, found.hexdigest())
        zeros = 0
        for offset in offsets:
            file.seek(offset)
            block = file.read(BLOCK_BYTES)
            found.update(block)
            progress(len(block))
            zeros += len(block) == BLOCK_BYTES and not any(block)
    if zeros >= UNFINISHED:
        problem = f"{zeros} of {len(offsets)} blocks of 1 MiB hold nothing but zeros"
        findings.append(Finding(path.name, problem, "Its download was not finished: fetch it again."))
    return Sample(offsets, found.hexdigest())


def compare(own: Manifest, other: Manifest, whose: str) -> list[Finding]:
    """Return where a checkpoint differs from another one; `whose` names the other in the problems."""
    remedy = "The two are not the same checkpoint: fetch or stage the wrong one again."
    found = []
    for name in sorted(own.sizes.keys() | other.sizes.keys()):
        if name not in own.sizes:
            problem = f"it is in {whose} and not here"
        elif name not in other.sizes:
            problem = f"it is here and not in {whose}"
        elif own.sizes[name] != other.sizes[name]:
            problem = f"it has {own.sizes[name]:,} bytes here and {other.sizes[name]:,} in {whose}"
        elif name in own.hashes and name in other.hashes and own.hashes[name] != other.hashes[name]:
            problem = f"its content is not that in {whose}"
        elif (a := own.samples.get(name)) and (b := other.samples.get(name)) and a != b and a.offsets == b.offsets:
            problem = f"its sampled content is not that in {whose}"
        else:
            continue
        found.append(Finding(name, problem, remedy))
    return found
