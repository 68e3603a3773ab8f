"""Law 7 where batches change their sizes: every row once an epoch, whatever grows, is amended or goes on elsewhere."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, MeshConfig, OptimizerConfig, RunConfig, TrainingConfig
from stellarbyte_jax.data.batch_placement import BatchPlacement, check_batch
from stellarbyte_jax.data.feed import Feed
from stellarbyte_jax.data.loader import TrainLoader
from stellarbyte_jax.data.packing import PackedRows, cut
from stellarbyte_jax.sharding import Layout, make_mesh
from test_jax.conftest import VOCAB_SIZE
from test_jax.shards import manifest_of, open_shards, train_loader
from test_jax.tiny import tiny_config


def run_of(data: DataConfig, **training: Any) -> RunConfig:
    shape = {"max_steps": 60, "batch_size": 8} | training
    model = tiny_config(vocab_size=VOCAB_SIZE)
    return RunConfig("run", model, data, TrainingConfig(**shape), OptimizerConfig(warmup_steps=0))


def layout_of(devices: int = 1, **mesh: int) -> Layout:
    config = MeshConfig(**({"data": devices} | mesh))
    return Layout.of(config, make_mesh(config, jax.devices()[:devices]))


def pieces_of(rows: dict[str, np.ndarray]) -> list[bytes]:
    """The rows, in pieces of 6 tokens with what is to be predicted."""
    stacked = np.stack([rows["input_ids"], rows["labels"]], axis=-1)
    return [piece.tobytes() for piece in stacked.reshape(-1, 6, 2)]


WARM_UPS = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from((8, 16)),
        "initial_batch_size": st.sampled_from((1, 2, 4)),
        "batch_size_warmup_steps": st.integers(4, 20),
        "initial_sequence_length": st.sampled_from((6, 12)),
        "sequence_length_warmup_steps": st.integers(2, 20),
    }
)


@settings(max_examples=settings.default.max_examples // 10)
@given(trainings=st.lists(WARM_UPS | st.just({"batch_size": 5}), min_size=1, max_size=3), stops=st.data())
def test_every_row_once_an_epoch_over_growth_and_amendments(
    small_data: DataConfig, trainings: list[dict[str, int]], stops: st.DataObject
) -> None:
    """Each part of the run goes on from the rows that the one before has stored."""
    loader = TrainLoader(small_data, manifest_of(small_data), seed=3)
    layout, step, rows, seen = layout_of(), 0, 0, []
    for training in trainings:
        feed = Feed(run_of(small_data, **training), loader, layout, step, rows)
        for _ in range(stops.draw(st.integers(0, 8))):
            seen += pieces_of(loader.batch(feed.take(step)))
            step += 1
        rows = feed.rows(step)
    steady = train_loader(small_data, 1, seed=3)
    assert seen == [piece for row in range(rows) for piece in pieces_of(steady.batch(row))]
    assert len(seen) == rows * 4
    whole = len(loader) * 4
    for epoch in range(len(seen) // whole):
        assert sorted(seen[epoch * whole : (epoch + 1) * whole]) == sorted(
            piece for row in range(len(loader)) for piece in pieces_of(steady.batch(row))
        )


def test_a_feed_of_steady_batches_takes_what_it_always_took(small_data: DataConfig) -> None:
    loader = TrainLoader(small_data, manifest_of(small_data), seed=0)
    feed = Feed(run_of(small_data), loader, layout_of(), 7, 7 * 8)
    assert [feed.take(step)[:1] + feed.take(step)[2:] for step in (7, 9)] == [(56, 1), (72, 1)]
    assert feed.take(9).rows == tuple(range(8)) and feed.rows(10) == 80
    assert feed.take(9, left_out=16).first == 72 + 16, "what a run has left out comes on top"


def test_the_batch_lies_on_the_devices_as_the_steps_program_wants_it(small_data: DataConfig) -> None:
    """Over rows and within them: what is put together is the whole batch, in its order."""
    layout = layout_of(4, data=2, context=2)
    config = run_of(small_data, initial_batch_size=2, batch_size_warmup_steps=4, initial_sequence_length=6,
                    sequence_length_warmup_steps=4)  # fmt: skip
    loader = TrainLoader(small_data, manifest_of(small_data), seed=0)
    feed = Feed(config, loader, layout, 0, 0)
    for step, (rows, length) in {0: (2 * 4, 6), 2: (4 * 2, 12), 4: (8, 24)}.items():
        batch = loader.batch(feed.take(step))
        placed = feed.put(step, batch)
        assert {name: array.shape for name, array in placed.items()} == dict.fromkeys(batch, (rows, length))
        assert all(np.array_equal(placed[name], batch[name]) for name in batch)
        assert placed["labels"].sharding == BatchPlacement(layout, rows, length).sharding


@given(pieces=st.sampled_from((1, 2, 4, 8)))
def test_cut_rows_are_the_rows_of_that_length(small_data: DataConfig, pieces: int) -> None:
    shards = open_shards(small_data, "train")
    whole, short = PackedRows(shards, 24), PackedRows(shards, 24 // pieces)
    rows = [whole[index] for index in range(len(whole))]
    found = cut({name: np.stack([row[name] for row in rows]) for name in rows[0]}, pieces)
    expected = [short[index] for index in range(len(short))]
    expected += [short.padding_row()] * (len(rows) * pieces - len(short))
    for name, values in found.items():
        assert values.dtype == np.int32
        assert np.array_equal(values, np.stack([row[name] for row in expected])), name


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"initial_batch_size": 2, "batch_size_warmup_steps": 4},
            r"training\.initial_batch_size 2 makes micro-batches of 2 rows, which mesh\.data 4 do not divide: use",
        ),
        (
            {"initial_sequence_length": 3, "sequence_length_warmup_steps": 4},
            r"training\.initial_sequence_length 3 is not divisible by mesh\.context 2: use a multiple of 2",
        ),
    ],
)
def test_a_mesh_that_does_not_divide_the_first_batches_is_refused(
    training: dict[str, int], message: str, small_data: DataConfig
) -> None:
    with pytest.raises(UserError, match=message):
        check_batch(run_of(small_data, **training).training, 24, layout_of(8, data=4, context=2))


def test_a_growth_that_cuts_samples_or_divides_no_row_is_refused(small_data: DataConfig) -> None:
    grows = {"initial_sequence_length": 12, "sequence_length_warmup_steps": 4}
    chat = dataclasses.replace(small_data, kind="chat")
    with pytest.raises(UserError, match=r"training\.initial_sequence_length 12 cuts rows, and with data\.kind chat"):
        run_of(chat, **grows)
    with pytest.raises(UserError, match=r"initial_sequence_length 8 must be a half, .* of data\.sequence_length 24"):
        run_of(small_data, **grows | {"initial_sequence_length": 8})
    with pytest.raises(UserError, match=r"training\.initial_batch_size 2 is not divisible by gradient_accumulation_st"):
        run_of(small_data, initial_batch_size=2, batch_size_warmup_steps=4, gradient_accumulation_steps=4)
