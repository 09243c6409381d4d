"""Is this the checkpoint that is meant, whole and W8A8? Headers, small files and sampled blocks; minutes at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jobs.core.errors import ConfigError
from jobs.core.files import is_there
from jobs.engines.checkpoint.architecture import Architecture, from_hf_config
from jobs.engines.checkpoint.checkpoint import (
    CONFIG,
    DESCRIPTION,
    FETCH_AGAIN,
    TOKENIZERS,
    Finding,
    Shards,
    files,
    read_object,
    read_shards,
)
from jobs.engines.checkpoint.manifest import Manifest, Progress, compare, make_manifest
from jobs.engines.checkpoint.quantization import Shares, examine

SAMPLED = 16
"""Weight files of which blocks are hashed by default."""


@dataclass(frozen=True)
class Expected:
    """What the checkpoint shall be. `architecture` None: any; `w8a8`: W8A8 weights (model.quantization=ascend)."""

    architecture: Architecture | None = None
    w8a8: bool = False


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
    """Verify a checkpoint.

    Args:
        path: its directory.
        expected: what it shall be.
        sampled, whole, seed: see `make_manifest`.
        against: a manifest that it must agree with, for example the other node's.
        progress: told the bytes that were read for hashes.
    """
    if is_there(path) is None:
        unseen = Finding(str(path), "this user cannot see it", "Open the directory above it, or set model.path.")
        return Report(path, (unseen,), Manifest({}, {}, {}, seed), None, 0)
    if not path.is_dir():
        missing = Finding(str(path), "there is no such directory", "Fetch the checkpoint, or set model.path.")
        return Report(path, (missing,), Manifest({}, {}, {}, seed), None, 0)
    config, wrong = read_object(path / CONFIG)
    findings = [wrong] if wrong else _config(config, path, expected.architecture)
    shards = read_shards(path)
    findings += shards.findings
    shares, found = _w8a8(path, shards) if expected.w8a8 else (None, [])
    findings += found
    findings += _tokenizer(path)
    manifest, unreadable = make_manifest(path, sampled=sampled, whole=whole, seed=seed, like=against, progress=progress)
    findings += unreadable
    if against:
        findings += compare(manifest, against, "the manifest")
    return Report(path, tuple(findings), manifest, shares, len(shards.headers))


def _w8a8(path: Path, shards: Shards) -> tuple[Shares | None, list[Finding]]:
    """Return what speaks against W8A8, and the shares of all types where the checkpoint is described."""
    description, wrong = read_object(path / DESCRIPTION)
    return (None, [wrong]) if wrong else examine(description, shards.headers)


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
    # Code that the checkpoint brings along (model.trust_remote_code): "module.Class", or "repository--module.Class".
    codes = config.get("auto_map") or {}
    references = [item for value in codes.values() for item in (value if isinstance(value, list) else [value]) if item]
    for module in sorted({str(item).split(".")[0] for item in references if "--" not in str(item)}):
        if not (path / f"{module}.py").is_file():
            findings.append(Finding(f"{module}.py", "config.json names it and it is not there", FETCH_AGAIN))
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


def check_sizes(path: Path, *, weights: bool, w8a8: bool = False, sampled: int = 0) -> tuple[Manifest, list[Finding]]:
    """Check quickly, as every rank does before its engine starts: config.json, every shard's size, and its dtypes.

    Args:
        path: the checkpoint.
        weights: False where none are loaded (model.load_format=dummy): then only config.json counts.
        w8a8: the weights shall be W8A8 (model.quantization=ascend); the headers that are read anyway say so.
        sampled: weight files of which blocks are hashed, for two ranks to compare.
    """
    _, wrong = read_object(path / CONFIG)
    if not weights:
        manifest, findings = _config_alone(path)
        return manifest, [wrong] if wrong else findings
    manifest, findings = make_manifest(path, sampled=sampled)
    safetensors = any(name.endswith(".safetensors") or name.endswith(".index.json") for name in files(path))
    # Other formats (.bin) have no header that tells their size: they are compared between the nodes alone.
    shards = read_shards(path) if safetensors or not _other_weights(path) else Shards()
    found = [*([wrong] if wrong else []), *shards.findings, *findings]
    # A shard that is not whole is the first thing to mend: what is missing with it says nothing more.
    return manifest, found + (_w8a8(path, shards)[1] if w8a8 and not found else [])


def _config_alone(path: Path) -> tuple[Manifest, list[Finding]]:
    manifest, findings = make_manifest(path)
    kept = {CONFIG: manifest.sizes.get(CONFIG, 0)}
    hashes = {name: value for name, value in manifest.hashes.items() if name == CONFIG}
    return Manifest(kept, hashes, {}, 0), [one for one in findings if one.file == CONFIG]


def _other_weights(path: Path) -> bool:
    return any(next(path.glob(pattern), None) for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf"))
