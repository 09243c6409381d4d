"""What is said of a checkpoint that is good, cut short, mixed, wrongly quantized, or changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_help import CONFIG, layer, safetensors, shard, write
from core_help import config

from jobs.core.errors import RunError
from jobs.engines.checkpoint import manifest as manifests
from jobs.engines.checkpoint.architecture import from_hf_config
from jobs.engines.checkpoint.checkpoint import INDEX, Damaged, read_header, read_shards, shard_names, weight_bytes
from jobs.engines.checkpoint.manifest import make_manifest, read_manifest
from jobs.engines.checkpoint.verify import Expected, Report, check_sizes, verify

W8A8 = Expected(from_hf_config(CONFIG), quantized="W8A8")


def problems(report: Report) -> list[str]:
    return [f"{finding.file}: {finding.problem}" for finding in report.findings]


@pytest.mark.parametrize("index", ["", "quant_model_weights.safetensors.index.json"])
def test_a_good_checkpoint(tmp_path: Path, index: str) -> None:
    report = verify(write(tmp_path, shards=3, index=index), W8A8)
    assert problems(report) == []
    assert report.shards == 3
    assert report.shares is not None
    assert report.shares.by_type["W8A8_DYNAMIC"] == pytest.approx((64 * 128 + 128) / (64 * 128 + 192))
    assert report.shares.by_dtype["I8"] == pytest.approx(64 * 128 / (64 * 128 + 192))
    assert len(report.manifest.samples) == 3


def cut(path: Path) -> None:
    with shard(path).open("r+b") as file:
        file.truncate(shard(path).stat().st_size - 3)


def cut_in_header(path: Path) -> None:
    shard(path).write_bytes(shard(path).read_bytes()[:100])


def empty(path: Path) -> None:
    shard(path).write_bytes(b"")


def lengthened(path: Path) -> None:
    with shard(path).open("ab") as file:
        file.write(b"xx")


def web_page(path: Path) -> None:
    shard(path).write_bytes(b"<!DOCTYPE html><html>please log in</html>" * 10)


def gone(path: Path) -> None:
    shard(path, 2).unlink()


def other_tensors(path: Path) -> None:
    shard(path).write_bytes(safetensors(layer(7)))


def stray(path: Path) -> None:
    (path / "model-old.safetensors").write_bytes(shard(path).read_bytes())


def no_index(path: Path) -> None:
    (path / "model.safetensors.index.json").unlink()


def half_index(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    index.write_text(index.read_text()[:200])


def no_description(path: Path) -> None:
    (path / "quant_model_description.json").unlink()


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def no_code(path: Path) -> None:
    (path / "configuration_deepseek.py").unlink()


def other_model(path: Path) -> None:
    (path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 3}))


def longer_context(path: Path) -> None:
    (path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 3}))


def shape_against_bytes(path: Path) -> None:
    data = shard(path).read_bytes()
    shard(path).write_bytes(data.replace(b'"shape": [64, 128]', b'"shape": [64, 129]'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, ": 3 bytes are missing"),
        (cut_in_header, "cut short, or no safetensors"),
        (empty, "model-00001-of-00002.safetensors: it has 0 bytes"),
        (lengthened, "2 bytes too many"),
        (web_page, "cut short, or no safetensors"),
        (gone, "model-00002-of-00002.safetensors: the index names it and it is not there"),
        (other_tensors, "4 tensors that model.safetensors.index.json puts there are not in it, model.layers.0."),
        (stray, "1 weight files are not in the index, model-old.safetensors"),
        (no_index, "there is no index for 2 weight files"),
        (half_index, "model.safetensors.index.json: it is not JSON"),
        (no_description, "quant_model_description.json: it is not there"),
        (no_tokenizer, "there is no tokenizer"),
        (no_code, "configuration_deepseek.py: config.json names it and it is not there"),
        (other_model, "config.json: it is another model: layers is 3, expected is 2"),
        (shape_against_bytes, "which is not I8 x [64, 129]"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(write(tmp_path))
    report = verify(tmp_path, W8A8)
    found = problems(report)
    assert any(words in text for text in found), found
    assert all(finding.remedy for finding in report.findings)


def test_a_longer_context_is_no_other_model(tmp_path: Path) -> None:
    longer_context(write(tmp_path))
    assert problems(verify(tmp_path, W8A8)) == []


@pytest.mark.parametrize(
    ("dtype", "quantized", "words"),
    [
        ("BF16", "FLOAT", "only 0% of the model is W8A8"),
        ("F8_E4M3", "FLOAT", "2 weights are described as FLOAT and not so in the shards"),
        ("BF16", "W8A8_DYNAMIC", "2 weights are described as W8A8 and not INT8 in the shards"),
        ("I8", "W4A8_DYNAMIC", "some weights are W4A8_DYNAMIC, not W8A8"),
        ("I8", "FLOAT", "described as FLOAT and not so in the shards"),
    ],
)
def test_another_quantization_is_told_by_content(tmp_path: Path, dtype: str, quantized: str, words: str) -> None:
    found = problems(verify(write(tmp_path, dtype=dtype, quantized=quantized), W8A8))
    assert any(words in text for text in found), found
    assert problems(verify(tmp_path, replace(W8A8, quantized=""))) == [], "only where W8A8 is asked for"


def test_int8_without_scale_or_description(tmp_path: Path) -> None:
    write(tmp_path)
    tensors = {name: value for name, value in layer(0).items() if not name.endswith("_scale")}
    shard(tmp_path).write_bytes(safetensors(tensors | {"model.layers.0.extra.weight": ("I8", (2, 2))}))
    found = problems(verify(tmp_path, W8A8))
    assert any("2 weights are INT8 without a scale beside them" in text for text in found), found
    assert any("1 weights are INT8 in the shards and not described" in text for text in found), found


def test_holes_and_overlaps_are_refused(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]},
        "b": {"dtype": "I8", "shape": [4], "data_offsets": [2, 6]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(6))
    with pytest.raises(Damaged, match="overlap or leave holes"):
        read_header(tmp_path / "x.safetensors")


def test_a_reserved_and_unfinished_download_has_zeros(tmp_path: Path) -> None:
    write(tmp_path)
    big = {
        "model.layers.0.mlp.down_proj.weight": ("I8", (2048, 2048)),
        **{k: v for k, v in layer(0).items() if "scale" in k or "norm" in k or "offset" in k},
    }
    data = safetensors(big)
    shard(tmp_path).write_bytes(data[: 1 << 20] + bytes(len(data) - (1 << 20)))
    found = problems(verify(tmp_path, W8A8))
    assert any("hold nothing but zeros" in text for text in found), found


def test_one_changed_byte_is_seen_against_the_other_node(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    verify(one, W8A8).manifest.write(tmp_path / "manifest.json")
    other = read_manifest(tmp_path / "manifest.json")
    assert problems(verify(two, W8A8, against=other)) == []
    data = bytearray(shard(two).read_bytes())
    data[-1] ^= 1
    shard(two).write_bytes(data)
    assert problems(verify(two, W8A8, against=other)) == [
        "model-00001-of-00002.safetensors: its sampled content is not that in the manifest"
    ]
    (two / "tokenizer.json").write_text(json.dumps({"model": 11}))
    (two / "extra.txt").write_text("x")
    assert [text.partition(":")[0] for text in problems(verify(two, W8A8, against=other))] == [
        "extra.txt", "model-00001-of-00002.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_the_sample_is_seeded_and_follows_the_other_manifest(tmp_path: Path) -> None:
    write(tmp_path, shards=9)
    first, _ = make_manifest(tmp_path, sampled=3, seed=1)
    again, _ = make_manifest(tmp_path, sampled=3, seed=1)
    another, _ = make_manifest(tmp_path, sampled=3, seed=2)
    assert first == again
    assert first.samples.keys() != another.samples.keys()
    like, _ = make_manifest(tmp_path, like=another)
    assert like.samples == another.samples
    whole, _ = make_manifest(tmp_path, whole=True)
    assert len(whole.samples) == 9
    assert all(sample.offsets is None for sample in whole.samples.values())


def test_a_file_that_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"sizes": 3}')
    with pytest.raises(RunError, match="it is no manifest"):
        read_manifest(tmp_path / "x.json")


def test_only_headers_and_samples_of_large_weights_are_read(tmp_path: Path) -> None:
    """160 shards of 4 GiB, as holes on the disk: what is read is counted."""
    write(tmp_path, shards=1)
    shard(tmp_path).unlink()
    placed = {}
    for number in range(160):
        tensor, size = f"layers.{number}.weight", 1 << 32
        header = {tensor: {"dtype": "I8", "shape": [65536, 65536], "data_offsets": [0, size]}}
        text = json.dumps(header).encode()
        file = tmp_path / f"model-{number:03}.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(file, 8 + len(text) + size)
        placed[tensor] = file.name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    read: list[int] = []
    report = verify(tmp_path, Expected(), sampled=4, progress=read.append)
    assert report.shards == 160
    assert sum(read) == 4 * manifests.BLOCKS * manifests.BLOCK_BYTES


# --- the quick check of every rank


def test_the_quick_check_sees_sizes_and_config(tmp_path: Path) -> None:
    manifest, findings = check_sizes(write(tmp_path), weights=True)
    assert findings == []
    assert manifest.parts.keys() == {
        "set of file sizes", "tokenizer, code or other small file", "config.json", "quant_model_description.json",
        "model.safetensors.index.json",
    }  # fmt: skip
    cut(tmp_path)
    _, findings = check_sizes(tmp_path, weights=True)
    assert ["3 bytes are missing" in finding.problem for finding in findings] == [True]


def test_a_model_without_weights_has_its_config_compared(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    manifest, findings = check_sizes(tmp_path, weights=False)
    assert findings == []
    assert manifest.sizes.keys() == manifest.hashes.keys() == {"config.json"}
    (tmp_path / "config.json").unlink()
    assert str(next(iter(check_sizes(tmp_path, weights=False)[1]))).startswith("config.json: it is not there")


def test_other_formats_are_compared_by_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    _, findings = check_sizes(tmp_path, weights=True)
    assert [one.problem for one in findings] == ["there is no index and no weight file"]
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    manifest, findings = check_sizes(tmp_path, weights=True)
    assert findings == []
    assert manifest.sizes["pytorch_model.bin"] == 1


@pytest.mark.parametrize(
    "name", ["/abs/model.safetensors", "../model.safetensors", "a/../../x", ".x", 5, None, [1], "a\nb"]
)
def test_an_index_names_files_of_its_own_directory_alone(tmp_path: Path, name: Any) -> None:
    path = write(tmp_path / "copy")
    index = json.loads((path / INDEX).read_text())
    index["weight_map"]["evil"] = name
    (path / INDEX).write_text(json.dumps(index))
    assert any("names a file outside the checkpoint" in one.problem for one in read_shards(path).findings)
    with pytest.raises(RunError, match="names a file outside the checkpoint"):
        shard_names(path)
    assert weight_bytes(path) is None or weight_bytes(path).source.startswith("total_size")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a": {"dtype": "I8", "shape": [Infinity], "data_offsets": [0, 1]}}',
        b'{"a": 5}',
        b'{"a": "\\ud800"}',
    ],
)
def test_a_hostile_header_is_damage(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(Damaged):
        read_header(path)


def test_w4a8_is_told_by_content(tmp_path: Path) -> None:
    asked = replace(W8A8, quantized="W4A8")
    assert problems(verify(write(tmp_path / "packed", quantized="W4A8_DYNAMIC"), asked)) == []
    [wrong] = problems(verify(write(tmp_path / "w8a8"), asked))
    assert "no weight is W4A8" in wrong
    plain = problems(verify(write(tmp_path / "plain", dtype="BF16", quantized="W4A8_DYNAMIC"), asked))
    assert any("described as W4A8 and not INT8 or INT32 in the shards" in one for one in plain)
    assert any("of the model is INT8 or INT32" in one for one in plain)


@pytest.mark.parametrize(("bits", "kind"), [(4, "W4A8"), (8, "W8A8"), (None, "W8A8")])
def test_the_model_file_says_what_is_asked(bits: int | None, kind: str) -> None:
    made = config("model=deepseek_v3_1_w8a8", f"model.shape.expert_bits={'null' if bits is None else bits}")
    assert made.model.quantized == kind
    assert config("model=tiny_llama", "parallel=dp2_tp1").model.quantized == ""
