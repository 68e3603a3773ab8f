"""Each process reads what its devices need, wherever the mesh puts them; two halves of eight devices play processes."""

import dataclasses

import jax
import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import MeshConfig, TrainingConfig
from stellarbyte_jax.data.batch_placement import BatchPlacement, check_batch
from stellarbyte_jax.sharding import Layout, make_mesh


def placement(**mesh: int) -> BatchPlacement:
    config = MeshConfig(**mesh)
    return BatchPlacement(Layout.of(config, make_mesh(config)), batch_size=8, length=24)


@pytest.mark.parametrize(
    "mesh", [{}, {"data": 1, "tensor": 8}, {"data": 2, "context": 4}, {"data": 1, "fsdp": 4, "tensor": 2}]
)
def test_batches_lie_where_they_are_for(mesh: dict[str, int]) -> None:
    place = placement(**mesh)
    assert place.rows == tuple(range(8))
    batch = {"input_ids": np.arange(8 * 24, dtype=np.int32).reshape(8, 24)}
    put = place.put(batch)["input_ids"]
    assert put.sharding == place.sharding
    assert np.array_equal(put, batch["input_ids"])


class HalfOfTheDevices:
    """A sharding as one of two processes sees it."""

    def __init__(self, whole: jax.sharding.NamedSharding, devices: list[jax.Device]) -> None:
        self._whole, self._devices = whole, devices

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> dict[jax.Device, tuple[slice, ...]]:
        return {device: self._whole.devices_indices_map(shape)[device] for device in self._devices}


@pytest.mark.parametrize(
    ("mesh", "rows"),
    [
        ({}, [range(4), range(4, 8)]),
        ({"data": 1, "tensor": 8}, [range(8)] * 2),
        ({"data": 1, "context": 8}, [range(8)] * 2),
        ({"data": 2, "tensor": 4}, [range(4), range(4, 8)]),
        # Processes that do not get neighbours: each second device.
        ({"data": 8}, [range(0, 8, 2), range(1, 8, 2)]),
        ({"data": 4, "tensor": 2}, [range(8)] * 2),
    ],
)
def test_a_process_reads_the_rows_of_its_devices(mesh, rows, monkeypatch) -> None:
    place = placement(**mesh)
    whole = place.sharding
    devices = jax.devices()
    apart = rows == [range(0, 8, 2), range(1, 8, 2)] or mesh == {"data": 4, "tensor": 2}
    halves = [devices[::2], devices[1::2]] if apart else [devices[:4], devices[4:]]
    for half, expected in zip(halves, rows, strict=True):
        monkeypatch.setattr(BatchPlacement, "sharding", HalfOfTheDevices(whole, half))
        assert dataclasses.replace(place).rows == tuple(expected)


@pytest.mark.parametrize(
    ("training", "mesh", "complaint"),
    [
        ({"batch_size": 4}, {}, "batch_size 4 makes micro-batches of 4 rows, which mesh.data 8 do not divide"),
        (
            {"batch_size": 24, "gradient_accumulation_steps": 2},
            {"data": 2, "fsdp": 4},
            "micro-batches of 12 rows, which mesh.data 2 x mesh.fsdp 4 do not divide: use a multiple of 16",
        ),
        ({"batch_size": 8}, {"context": 8, "data": 1}, "sequence_length 20 is not divisible by mesh.context 8"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(training, mesh, complaint) -> None:
    config = MeshConfig(**mesh)
    with pytest.raises(UserError, match=complaint):
        check_batch(TrainingConfig(1, **training), 20, Layout.of(config, make_mesh(config)))
