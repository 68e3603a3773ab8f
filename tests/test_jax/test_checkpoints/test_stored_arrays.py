"""An array is read a layer at a time, whatever mesh has saved it, and damage to it is told."""

import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoint_config import CheckpointConfig
from stellarbyte_jax.checkpoints import array_specs, array_writer, saving, stored_arrays
from stellarbyte_jax.checkpoints.checkpoint import (
    Checkpointer,
    RunMetadata,
    load_params,
    open_params,
    restore,
    save_imported,
)
from stellarbyte_jax.checkpoints.checksums import checksums, part_sum

METADATA = RunMetadata({"model": {}}, {})
TREE = {
    "model": {
        "layers": {"a": {"kernel": (3, 128, 64)}, "experts": (3, 2, 64, 128), "norm": {"scale": (3, 7)}},
        "embed": (64, 192),
    }
}


def arrays(dtype: str = "float32") -> dict:
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: draw.normal(size=shape).astype(dtype), TREE, is_leaf=lambda node: isinstance(node, tuple)
    )


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stored_arrays, saving, array_writer):
        monkeypatch.setattr(module, "SMALL_BYTES", 1000)
        monkeypatch.setattr(module, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(stored_arrays, "_READ_BYTES", 20_000)


def save(folder: Path, tree: dict, how: str) -> None:
    if how == "imported":
        save_imported(folder, tree, METADATA)
        return
    with Checkpointer(folder, CheckpointConfig()) as checkpointer:
        checkpointer.save(0, tree, None, METADATA)


def pieces(folder: Path) -> dict[str, tuple[int, ...]]:
    """Dotted name -> the shape of the pieces in the files."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder / "checkpoints" / "0" / "params").item_metadata.tree
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.storage.chunk_shape for path, leaf in leaves}


def same(found: dict, expected: dict) -> bool:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) and a.dtype == b.dtype for a, b in pairs)


@pytest.mark.parametrize("how", ["imported", "trained"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_are_read_one_by_one(tmp_path: Path, how: str, dtype: str) -> None:
    tree = arrays(dtype)
    save(tmp_path, tree, how)
    assert same(load_params(tmp_path)[0], tree), "whole, by Orbax itself"
    opened, metadata, step = open_params(tmp_path)
    assert (metadata, step) == (METADATA, 0)
    assert same(opened, tree)
    for array, expected in zip(jax.tree.leaves(opened), jax.tree.leaves(tree), strict=True):
        for layer in reversed(range(3)):
            assert np.array_equal(array[layer], expected[layer])
    found = pieces(tmp_path)
    assert found["model.layers.a.kernel"][0] == found["model.layers.experts"][0] == 1
    assert found["model.layers.norm.scale"] == (3, 7), "what is small is left whole"
    assert all(np.prod(shape) * np.dtype(dtype).itemsize <= 10_000 for shape in found.values())


def test_any_mesh_can_have_saved_it(tmp_path: Path) -> None:
    tree = arrays()
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "y"))
    sharded = jax.tree.map(lambda array: jax.device_put(array, sharding if array.shape[1] > 7 else None), tree)
    save(tmp_path, sharded, "trained")
    assert same(open_params(tmp_path)[0], tree)
    assert pieces(tmp_path)["model.layers.a.kernel"][0] == 1


def test_what_earlier_versions_saved_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = arrays()
    monkeypatch.setattr(saving, "chunks", lambda tree: jax.tree.map(lambda _: ocp.SaveArgs(), tree))
    save(tmp_path, tree, "trained")
    assert pieces(tmp_path)["model.layers.a.kernel"] == (3, 128, 64)
    opened, *_ = open_params(tmp_path)
    for array, expected in zip(jax.tree.leaves(opened), jax.tree.leaves(tree), strict=True):
        for layer in (2, 0, 1, 1):
            assert np.array_equal(array[layer], expected[layer])


def compressors(folder: Path) -> set[str | None]:
    """What the pieces of an item's arrays are packed with."""
    found = [
        array._store.spec().to_json()["metadata"]["compressor"] for array in jax.tree.leaves(open_params(folder)[0])
    ]
    return {None if each is None else each["id"] for each in found}


@pytest.mark.parametrize("how", ["imported", "trained"])
def test_nothing_is_compressed(tmp_path: Path, how: str) -> None:
    save(tmp_path, arrays(), how)
    assert compressors(tmp_path) == {None}


def test_what_earlier_versions_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = jax.tree.map(jax.numpy.asarray, arrays())
    monkeypatch.setattr(saving, "_uncompressed", ocp.handlers.DefaultCheckpointHandlerRegistry)
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        checkpointer.save(0, tree, {"mu": tree}, METADATA)
    monkeypatch.undo()
    assert compressors(tmp_path) == {"zstd"}
    assert same(open_params(tmp_path)[0], tree)
    params, opt_state, *_ = restore(tmp_path, tree, {"mu": tree})
    assert same((params, opt_state), (tree, {"mu": tree}))
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:  # the run goes on
        checkpointer.save(1, params, opt_state, METADATA)
    assert compressors(tmp_path) == {None}


@pytest.mark.parametrize("name", ["kernel", "scale"])
def test_other_bits_than_those_saved_are_told(tmp_path: Path, name: str) -> None:
    tree = arrays()
    save(tmp_path / "one", tree, "imported")
    tree["model"]["layers"]["a" if name == "kernel" else "norm"][name].view(np.uint32)[1, 0] ^= 1
    save(tmp_path / "two", tree, "imported")
    for path in ("params",):
        shutil.rmtree(tmp_path / "one" / "checkpoints" / "0" / path)
        shutil.copytree(tmp_path / "two" / "checkpoints" / "0" / path, tmp_path / "one" / "checkpoints" / "0" / path)
    opened, *_ = open_params(tmp_path / "one")
    array = opened["model"]["layers"]["a" if name == "kernel" else "norm"][name]
    told = rf"checkpoints/0 cannot be read \(model.*{name} does not have the bits that were saved\): there is no other"
    with pytest.raises(UserError, match=told):
        np.asarray(array)
    with pytest.raises(UserError, match=told):
        [array[layer] for layer in range(3)]


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    save(tmp_path, arrays(), "imported")
    opened, *_ = open_params(tmp_path)
    largest = max((tmp_path / "checkpoints").rglob("d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):  # which arrays are in it is TensorStore's choice
        jax.tree.map(np.asarray, opened)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_sums_of_parts_add_up(dtype: str) -> None:
    array = (100 * np.random.default_rng(0).normal(size=(5, 1000, 20))).astype(dtype)
    parts = sum(part_sum(array[i], i * 20_000) for i in range(5)) % 2**32
    assert {"a": parts} == checksums({"a": jax.numpy.asarray(array)}) == checksums({"a": array})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_are_written_as_orbax_would(tmp_path: Path, dtype: str) -> None:
    info = ocp.type_handlers.ParamInfo(name="a.b", parent_dir=tmp_path, use_compression=False)
    shapes = (3, 128, 64), (1, 64, 64)
    theirs = ocp.type_handlers.get_json_tspec_write(info, True, *shapes, np.dtype(dtype), process_index=0)
    ours = array_specs.writing(tmp_path / array_writer.WRITTEN, "a.b", *shapes, np.dtype(dtype))
    assert ours.to_json() == array_writer.ts.Spec(theirs).to_json()
