import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import shards, weights
from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of
from stellarbyte.journal import Journal
from test_convert.models import random_params, tiny


@pytest.fixture
def tensors():
    config = tiny()
    return weights.to_hf(random_params(config), config)


def write(tensors, folder, max_shard_size):
    written, total = [], sum(tensor.nbytes for tensor in tensors.values())
    journal = Journal(folder, {})
    hashes = shards.write(tensors, folder, max_shard_size, lambda *done: written.append(done), journal)
    journal.remove()
    assert written == sorted(written)
    assert written[-1] == (total, total)
    assert hashes == {path.name: sha256_of(path) for path in folder.glob("*.safetensors")}


def values(tensors):
    return {key: (str(t.dtype), t.shape, np.asarray(t).tobytes()) for key, t in tensors.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("max_shard_size", [10**9, 9000])
def test_written_and_read_are_the_same_bits(tmp_path, dtype, max_shard_size):
    config = tiny()
    tensors = weights.to_hf(random_params(config, dtype=dtype), config)
    write(tensors, tmp_path, max_shard_size)
    assert values(shards.read(tmp_path)) == values(tensors)


def test_shards_and_index_are_those_of_transformers(tmp_path, tensors):
    from huggingface_hub.serialization import split_state_dict_into_shards_factory

    write(tensors, tmp_path, 5000)
    theirs = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=5000,
    )
    index = json.loads((tmp_path / shards.INDEX).read_text())
    assert index["weight_map"] == theirs.tensor_to_filename
    assert index["metadata"]["total_size"] == theirs.metadata["total_size"]
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == sorted(theirs.filename_to_tensors)


def test_a_tensor_larger_than_a_shard_gets_its_own(tensors):
    files = shards.plan(tensors, 1)
    assert len(files) == len(tensors)
    assert all(len(keys) == 1 for keys in files.values())


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5kb", 1500), (" 20 MB ", 2 * 10**7)])
def test_sizes(text, size):
    assert shards.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "GB", "0GB", "-1GB", "5GiB", "1e3MB"])
def test_wrong_sizes_are_refused(text):
    with pytest.raises(UserError, match="write 5GB"):
        shards.parse_size(text)


def test_no_weights(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        shards.read(tmp_path)


def test_a_missing_shard_is_named(tmp_path, tensors):
    write(tensors, tmp_path, 5000)
    first = sorted(tmp_path.glob("*.safetensors"))[0]
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name} is missing"):
        shards.read(tmp_path)


def test_a_truncated_file_is_named(tmp_path, tensors):
    write(tensors, tmp_path, 10**9)
    path = tmp_path / shards.WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
        shards.read(tmp_path)


def test_a_key_in_two_shards_is_refused(tmp_path, tensors):
    write(tensors, tmp_path, 5000)
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    save_file(load_file(last) | {"model.embed_tokens.weight": np.zeros(1, np.float32)}, last)
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight is both in .*model-00001.* and in model-00010"):
        shards.read(tmp_path)


def test_an_index_that_disagrees_is_refused(tmp_path, tensors):
    write(tensors, tmp_path, 5000)
    path = tmp_path / shards.INDEX
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"places model\.norm\.weight in no file"):
        shards.read(tmp_path)
    index["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="has no weight_map"):
        shards.read(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="not a readable JSON file"):
        shards.read(tmp_path)


def test_integers_are_refused(tmp_path):
    save_file({"a": np.zeros(3, np.int64)}, tmp_path / shards.WEIGHTS)
    with pytest.raises(UserError, match="holds a as I64"):
        shards.read(tmp_path)


def test_a_file_that_somebody_cuts_short_while_it_is_written_is_told(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 5)
    with pytest.raises(OSError, match="shorter"):
        shards._hash(shards._Written(file, 2, 10), hashlib.sha256())
