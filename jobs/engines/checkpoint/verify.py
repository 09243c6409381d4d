"""Is this the checkpoint that is meant, whole, W8A8 or W4A8? Headers, small files, sampled blocks; minutes at most.

W8A8 is told by content: dtypes in the shards against `quant_model_description.json`. The article's FAQ: answers of poor
quality come from a wrong checkpoint. The description gives every tensor a type (msModelSlim: FLOAT, W8A8,
W8A8_DYNAMIC, W4A8_DYNAMIC, ...); vllm-ascend chooses a layer's method by the type of its `.weight` (vllm-ascend 0.9.1,
quantization/quant_config.py). A W8A8 weight is INT8 with a scale beside it. In a W4A8 checkpoint the experts are W4A8,
two weights in an INT8 or eight in an INT32, and the rest is W8A8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jobs.core.errors import ConfigError, RunError
from jobs.core.files import is_there
from jobs.engines.checkpoint.architecture import Architecture, from_hf_config
from jobs.engines.checkpoint.checkpoint import (
    CONFIG,
    DESCRIPTION,
    FETCH_AGAIN,
    TOKENIZERS,
    Finding,
    Header,
    Shards,
    Tensor,
    files,
    modules,
    read_object,
    read_shards,
)
from jobs.engines.checkpoint.manifest import SAMPLED, Manifest, Progress, compare, make_manifest

W8A8, W4A8 = ("W8A8", "W8A8_DYNAMIC"), "W4A8_DYNAMIC"
DESCRIBED = {"W8A8": W8A8, "W4A8": (*W8A8, W4A8)}
"""Types of the quantized weights of a checkpoint, by what it shall be (`model.quantized`)."""

STORED = {"W8A8": ("I8",), "W4A8": ("I8", "I32")}
FLOATS = ("BF16", "F16", "F32")
LEAST_SHARE = 0.9
"""Share of all elements that INT8 weights have at least: 97.8 % in DeepSeek-R1 (embedding, output head, kv_b and the
prediction layer stay in 16 bits)."""

OFFICIAL = "Fetch the official checkpoint (`python -m jobs model fetch`); a home-made one answers poorly."


@dataclass(frozen=True)
class Shares:
    """Shares of all elements of the checkpoint, from 0 to 1: by described type, and by dtype in the shards."""

    by_type: Mapping[str, float]
    by_dtype: Mapping[str, float]


@dataclass(frozen=True)
class Expected:
    """What the checkpoint shall be. `architecture` None: any; `quantized`: see `model.quantized`."""

    architecture: Architecture | None = None
    quantized: str = ""


@dataclass(frozen=True)
class Report:
    """What was found: nothing wrong where `findings` is empty."""

    path: Path
    findings: tuple[Finding, ...]
    manifest: Manifest
    shares: Shares | None
    shards: int

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "path": str(self.path),
            "good": not self.findings,
            "findings": [asdict(finding) for finding in self.findings],
            "shards": self.shards,
            "bytes": sum(self.manifest.sizes.values()),
            "shares": asdict(self.shares) if self.shares else None,
        }


def verify(
    path: Path,
    expected: Expected,
    *,
    sampled: int = SAMPLED,
    whole: bool = False,
    seed: int = 0,
    against: Manifest | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Verify a checkpoint; `sampled`, `whole` and `seed` as `make_manifest` has them.

    `against` is a manifest that it must agree with, for example the other node's; `progress` is told the bytes that
    were read for hashes.
    """
    if (there := is_there(path)) is None or not path.is_dir():
        lacks = Finding(str(path), "there is no such directory", "Fetch the checkpoint, or set model.path.")
        if there is None:
            lacks = Finding(str(path), "this user cannot see it", "Open the directory above it, or set model.path.")
        return Report(path, (lacks,), Manifest({}, {}, {}, seed), None, 0)
    config, wrong = read_object(path / CONFIG)
    findings = [wrong] if wrong else _config(config, path, expected.architecture)
    shards = read_shards(path)
    findings += shards.findings
    shares, found = _quantized(path, shards, expected.quantized) if expected.quantized else (None, [])
    findings += found
    findings += _tokenizer(path)
    manifest, unreadable = make_manifest(path, sampled=sampled, whole=whole, seed=seed, like=against, progress=progress)
    findings += unreadable
    if against:
        findings += compare(manifest, against, "the manifest")
    return Report(path, tuple(findings), manifest, shares, len(shards.headers))


def _quantized(path: Path, shards: Shards, quantized: str) -> tuple[Shares | None, list[Finding]]:
    """Return what speaks against W8A8 or W4A8, and the shares of all types where the checkpoint is described."""
    description, wrong = read_object(path / DESCRIPTION)
    return (None, [wrong]) if wrong else examine(description, shards.headers, quantized)


def _config(config: Mapping[str, Any], path: Path, expected: Architecture | None) -> list[Finding]:
    try:
        found = from_hf_config(config)
    except ConfigError as error:
        return [Finding(CONFIG, f"{error.key} = {error.value}: {error.reason}", FETCH_AGAIN)]
    findings = []
    # A longer context is often set in config.json by hand: max_length does not tell another model.
    names = [item.name for item in fields(Architecture) if item.name != "max_length"]
    for name in names if expected else ():
        have, want = getattr(found, name), getattr(expected, name)
        if have != want:
            problem = f"it is another model: {name} is {have}, expected is {want}"
            findings.append(Finding(CONFIG, problem, "Check model.path and model.name."))
    try:
        code = modules(config)  # that the checkpoint brings along (model.trust_remote_code)
    except RunError as error:
        return [*findings, Finding(CONFIG, f"auto_map has {error.value}: {error.reason}", error.remedy)]
    for name in code:
        if not (path / name).is_file():
            findings.append(Finding(name, "config.json names it and it is not there", FETCH_AGAIN))
    return findings


def _tokenizer(path: Path) -> list[Finding]:
    findings = []
    if not any(all((path / name).is_file() for name in names) for names in TOKENIZERS):
        findings.append(Finding("tokenizer.json", "there is no tokenizer", FETCH_AGAIN))
    for name in ("tokenizer_config.json", "tokenizer.json"):
        wrong = read_object(path / name)[1] if (path / name).exists() else None
        findings += [wrong] if wrong else []
    if not (path / "tokenizer_config.json").is_file():
        findings.append(Finding("tokenizer_config.json", "it is not there", FETCH_AGAIN))
    return findings


def check_sizes(path: Path, *, weights: bool, quantized: str = "", sampled: int = 0) -> tuple[Manifest, list[Finding]]:
    """Check quickly, as every rank does before its engine starts: config.json, every shard's size, and its dtypes.

    Args:
        weights: False where none are loaded (model.load_format=dummy): then only config.json counts.
        quantized: what the weights shall be (`model.quantized`); the headers that are read anyway say so.
        sampled: weight files of which blocks are hashed, for two ranks to compare.
    """
    _, wrong = read_object(path / CONFIG)
    manifest, findings = make_manifest(path, sampled=sampled if weights else 0)
    if not weights:
        hashes = {name: value for name, value in manifest.hashes.items() if name == CONFIG}
        alone = Manifest({CONFIG: manifest.sizes.get(CONFIG, 0)}, hashes, {}, 0)
        return alone, [wrong] if wrong else [one for one in findings if one.file == CONFIG]
    safetensors = any(name.endswith(".safetensors") or name.endswith(".index.json") for name in files(path))
    # Other formats (.bin) have no header that tells their size: they are compared between the nodes alone.
    others = any(next(path.glob(pattern), None) for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf"))
    shards = Shards() if others and not safetensors else read_shards(path)
    found = [*([wrong] if wrong else []), *shards.findings, *findings]
    # A shard that is not whole is the first thing to mend: what is missing with it says nothing more.
    return manifest, found + (_quantized(path, shards, quantized)[1] if quantized and not found else [])


def examine(
    description: Mapping[str, Any], headers: Mapping[str, Header], quantized: str = "W8A8"
) -> tuple[Shares, list[Finding]]:
    """Return the shares, and what speaks against W8A8 or W4A8."""
    tensors: dict[str, Tensor] = {}
    for header in headers.values():
        tensors |= header.tensors
    shares = Shares(
        _shares(tensors, {name: _type(description.get(name)) for name in tensors}),
        _shares(tensors, {name: tensor.dtype for name, tensor in tensors.items()}),
    )
    findings = [*_quantized_shares(shares, quantized), *_contradictions(description, tensors)] if tensors else []
    return shares, findings


def _type(value: Any) -> str:
    return value if isinstance(value, str) else "not described"


def _shares(tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        counts[kinds[name]] += tensor.elements
    total = counts.total() or 1
    return {kind: count / total for kind, count in counts.most_common()}


def _quantized_shares(shares: Shares, quantized: str) -> list[Finding]:
    kinds, dtypes = DESCRIBED[quantized], STORED[quantized]
    described = sum(shares.by_type.get(kind, 0.0) for kind in kinds)
    stored = sum(shares.by_dtype.get(dtype, 0.0) for dtype in dtypes)
    others = {kind for kind in shares.by_type if kind.startswith("W") and kind not in kinds}
    names = " or ".join(dtype.replace("I", "INT") for dtype in dtypes)
    wrong = [
        (described < LEAST_SHARE, f"only {described:.0%} of the model is {quantized} ({_text(shares.by_type)})"),
        (stored < LEAST_SHARE, f"only {stored:.0%} of the model is {names} ({_text(shares.by_dtype)})"),
        (others, f"some weights are {', '.join(sorted(others))}, not {quantized}"),
        (quantized == "W4A8" and W4A8 not in shares.by_type, "no weight is W4A8"),
    ]
    files = (DESCRIPTION, "*.safetensors", DESCRIPTION, DESCRIPTION)
    return [Finding(file, problem, OFFICIAL) for file, (found, problem) in zip(files, wrong, strict=True) if found]


def _text(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())


def _contradictions(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Finding]:
    """Return where description and shards differ, one finding a kind with the first tensor as its example."""
    kinds: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if not name.endswith(".weight"):
            continue
        kind = _type(description.get(name))
        if kind in W8A8 and tensor.dtype != "I8":
            kinds.setdefault("described as W8A8 and not INT8 in the shards", []).append(f"{name} ({tensor.dtype})")
        elif kind == W4A8 and tensor.dtype not in STORED["W4A8"]:
            kinds.setdefault("described as W4A8 and not INT8 or INT32 in the shards", []).append(name)
        elif kind == "FLOAT" and tensor.dtype not in FLOATS:
            kinds.setdefault("described as FLOAT and not so in the shards", []).append(f"{name} ({tensor.dtype})")
        elif kind == "not described" and tensor.dtype == "I8":
            kinds.setdefault("INT8 in the shards and not described", []).append(name)
        if tensor.dtype == "I8" and f"{name}_scale" not in tensors:
            kinds.setdefault("INT8 without a scale beside them", []).append(name)
    # The description also has plain values (version, model_quant_type): only names of tensors count.
    if absent := [n for n in description if n.endswith(".weight") and n not in tensors]:
        kinds["described and not in the shards"] = absent
    return [
        Finding(DESCRIPTION, f"{len(names)} weights are {what}, {names[0]} among them", OFFICIAL)
        for what, names in kinds.items()
    ]
