"""A block is written once, is read back as it was, and all of them are one folder of weights in the end."""

import json

import pytest
import torch

from stellarbyte.journal import Journal
from stellarbyte_torch.quantization.block_files import BlockFiles, kept_names
from stellarbyte_torch.quantization.quantize import LinearError, QuantizedBlock
from stellarbyte_torch.quantization.settings import QuantizationSettings

SETTINGS = QuantizationSettings(group_size=8)


@pytest.fixture
def blocks() -> list[QuantizedBlock]:
    generator = torch.Generator().manual_seed(0)
    weight = SETTINGS.grid.rounded(torch.randn(4, 16, generator=generator), torch.float32)
    layer = {"model.layers.0.mlp.up_proj.weight": weight, "model.layers.0.norm.weight": torch.ones(16)}
    return [
        QuantizedBlock("embedding", {"model.embed_tokens.weight": torch.randn(5, 16, generator=generator)}),
        QuantizedBlock("layer 0", layer, [LinearError("model.layers.0.mlp.up_proj", 0.1, 0.2, 7)]),
        QuantizedBlock("head", {"lm_head.weight": torch.randn(5, 16, generator=generator)}),
    ]


def files_of(folder) -> BlockFiles:
    return BlockFiles(folder, SETTINGS, Journal(folder, {"task": "t"}))


def test_an_interrupted_call_s_blocks_are_read_back_and_not_written_again(blocks, tmp_path) -> None:
    first = files_of(tmp_path)
    assert first.written == {}
    for block in blocks[:2]:
        first.add(block)
    written = (tmp_path / "layer 0.safetensors").stat().st_mtime_ns
    second = files_of(tmp_path)
    assert second.written.keys() == {"embedding", "layer 0"}
    again = second.written["layer 0"]()
    assert again.errors == blocks[1].errors
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(again.tensors[key].codes, blocks[1].tensors[key].codes)
    for block in (second.written["embedding"](), again, blocks[2]):
        second.add(block)
    assert (tmp_path / "layer 0.safetensors").stat().st_mtime_ns == written


def test_blocks_that_have_their_last_names_are_read_back_too(blocks, tmp_path) -> None:
    first = files_of(tmp_path)
    for block in blocks:
        first.add(block)
    hashes = first.finish().hashes
    assert {"head.safetensors", *hashes} <= kept_names(Journal(tmp_path, {"task": "t"}))
    second = files_of(tmp_path)
    assert second.written.keys() == {"embedding", "layer 0", "head"}
    for block in blocks:
        second.add(block)
    assert second.finish().hashes == hashes
    assert all((tmp_path / shard).is_file() for shard in hashes)


def test_a_damaged_file_does_not_count(blocks, tmp_path) -> None:
    first = files_of(tmp_path)
    for block in blocks[:2]:
        first.add(block)
    (tmp_path / "layer 0.safetensors").write_bytes(b"damaged")
    assert files_of(tmp_path).written.keys() == {"embedding"}


def test_in_the_end_there_is_an_index_and_an_account(blocks, tmp_path) -> None:
    files = files_of(tmp_path)
    for block in blocks:
        files.add(block)
    contents = files.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["lm_head.weight"] == "model-00003-of-00003.safetensors"
    assert index["model.layers.0.mlp.up_proj.weight_packed"] == "model-00002-of-00003.safetensors"
    assert sorted(contents.hashes) == sorted(set(index.values()))
    assert contents.quantised == 64
    assert contents.weights == 64 + 16 + 2 * 5 * 16
    assert contents.left_out == ["lm_head"]
    # 64 codes of 4 bits, 8 scales, a shape of two int64, and the floats.
    assert contents.nbytes == 32 + 8 * 4 + 16 + 4 * (16 + 2 * 5 * 16)
    assert contents.errors == blocks[1].errors
