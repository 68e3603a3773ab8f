"""Folders of strangers, each refused in a sentence: crafted headers, links that lead out, huge JSON, pickles."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import hf_checkpoint
from stellarbyte.errors import UserError

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
NORM = "model.norm.weight"


def header(text, data=b"", length=None):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def bytes_of(content):
    return lambda folder: (folder / WEIGHTS).write_bytes(content)


def tensors(change):
    def damage(folder):
        found = load_file(folder / WEIGHTS)
        save_file(change(found), folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def valued(value):
    return tensors(lambda found: found | {NORM: np.where(np.arange(24) == 5, np.float32(value), found[NORM])})


def config(**fields):
    def damage(folder):
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(content | fields))

    return damage


def shard(name="model-00001-of-00001.safetensors", **listed):
    def damage(folder):
        (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        keys = load_file(folder / "model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(keys, name) | listed}))

    return damage


def replaced(name, make):
    def damage(folder):
        (folder / name).unlink()
        make(folder / name)

    return damage


def linked(name):
    """The file moved out of the folder, with a link in its place."""

    def damage(folder):
        shutil.move(folder / name, folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return damage


def cut(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)


def sparse(path):
    path.touch()
    os.truncate(path, 1 << 30)


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


HOSTILE = {
    "a header longer than the file": (bytes_of(header(b"{}", length=2**63)), "it ends within its header"),
    "a header of 30 MB": (bytes_of(header(b" " * 30_000_000)), "its header has 30000000 bytes"),
    "a header that is no JSON": (bytes_of(header(b'{"a":')), "its header is not valid JSON"),
    "a header that is a list": (bytes_of(header([])), "no JSON object of tensors"),
    "a header nested deep": (bytes_of(header(b'{"a":' * 1000 + b"1" + b"}" * 1000)), "nested deeper than 64"),
    "a key twice": (bytes_of(header(b'{"a":1,"a":1}')), "'a' stands twice"),
    "tensors that overlap": (
        bytes_of(header({"a": one(), "b": one(offsets=(2, 6))}, bytes(6))),
        "b begins at byte 2 of the data, where the one before ends at 4",
    ),
    "a hole between tensors": (
        bytes_of(header({"a": one(), "b": one(offsets=(8, 12))}, bytes(12))),
        "b begins at byte 8 of the data",
    ),
    "a tensor behind the end": (bytes_of(header({"a": one(offsets=(0, 8), shape=[2])}, bytes(4))), "the file holds 4"),
    "a shape whose size wraps": (bytes_of(header({"a": one(shape=[2**32, 2**32])}, bytes(4))), "in F32 has 4 bytes"),
    "a negative size": (bytes_of(header({"a": one(shape=[-1])}, bytes(4))), r"has shape \[-1\]"),
    "seventeen axes": (bytes_of(header({"a": one(shape=[1] * 17)}, bytes(4))), "up to 16 sizes"),
    "half a byte": (bytes_of(header({"a": one(dtype="F4", shape=[8])}, bytes(4))), "has dtype 'F4'"),
    "whole numbers": (tensors(lambda found: found | {NORM: found[NORM].astype(np.int32)}), "norm.weight as I32"),
    "a name that cleans the screen": (bytes_of(header({"\x1b[2J": one()}, bytes(4))), "a name is up to 1000 plain"),
    "a file cut short": (cut, "not a whole safetensors file"),
    "NaN": (valued(np.nan), "norm.weight with 1 of 24 values that are nan or infinite"),
    "infinity": (valued(-np.inf), "norm.weight with 1 of 24 values that are nan or infinite"),
    "a missing tensor": (tensors(lambda found: {k: v for k, v in found.items() if k != NORM}), "lacks model.norm"),
    "an unknown tensor": (tensors(lambda found: found | {"model.norm.bias": found[NORM]}), "did you mean model.norm"),
    "a tensor of another shape": (tensors(lambda found: found | {NORM: found[NORM][:7].copy()}), r"of shape \[7\]"),
    "absurd sizes in the config": (config(hidden_size=10**12), "hidden_size 1000000000000"),
    "another architecture": (config(model_type="gpt2"), "of type 'gpt2'"),
    "a config of a gigabyte": (replaced(CONFIG, sparse), "config.json is larger than 1 MiB"),
    "a config nested deep": (
        replaced(CONFIG, lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)),
        "nested deeper than 64",
    ),
    "a key twice in the config": (replaced(CONFIG, lambda path: path.write_text('{"a":1,"a":2}')), "stands twice"),
    "a folder in place of the weights": (replaced(WEIGHTS, lambda path: path.mkdir()), "holds neither model.safe"),
    "a pipe in place of the tokenizer": (replaced("tokenizer.json", os.mkfifo), "has no tokenizer.json"),
    "weights behind a link": (linked(WEIGHTS), "is a link to .*model.safetensors, which is not in the folder"),
    "a config behind a link": (linked(CONFIG), "is a link to .*config.json, which is not in the folder"),
    "an endless device": (replaced(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "is a link to /dev/zero"),
    "an index that points outside": (shard("../../model.safetensors"), "has no weight_map of key to model-"),
    "an index to what is not there": (shard("model-00002-of-00002.safetensors"), "00002.safetensors is missing"),
    "an index with a key too many": (shard(extra="model-00001-of-00001.safetensors"), "places extra in"),
    "an index of a gigabyte": (
        lambda folder: (shard()(folder), replaced(INDEX, sparse)(folder)),
        "index.json is larger than 16 MiB",
    ),
    "a pickle": (pickled, "in pytorch_model.bin, a pickle, .* run python -c .*save_pretrained"),
    "a pickle under another name": (bytes_of(pickle.dumps(Evil())), "not a whole safetensors file"),
}


@pytest.mark.parametrize(("damage", "sentence"), HOSTILE.values(), ids=HOSTILE.keys())
def test_each_is_refused_in_a_sentence(exported, tmp_path, monkeypatch, damage, sentence):
    folder = tmp_path / "home" / "hf"
    shutil.copytree(exported, folder)
    damage(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence) as refusal:
        hf_checkpoint.from_hf(folder, tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} == {"home"}, "neither a run nor what a pickle makes"


def test_hugging_faces_cache_is_made_of_links(exported, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1f", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in exported.iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    assert hf_checkpoint.from_hf(snapshot, tmp_path / "run").parameters == 22_012
