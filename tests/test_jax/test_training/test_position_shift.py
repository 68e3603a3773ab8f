"""Positions are shifted by document, by what the seed, the step and the row say, and no score feels it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training.position_shift import shifted
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_jax.training.step import batch_loss
from test_jax.runs import bits, check_law_6, losses
from test_jax.tiny import random_tokens, segments, tiny_config, tiny_params
from tiers import short_tier

pytestmark = pytest.mark.usefixtures("traced_once")

MOST = 40


def batch(rows: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    config = tiny_config()
    positions, segment_ids = segments(5, 7, 8, padding=4)
    return {
        "input_ids": random_tokens(config, rows, 24, seed=seed),
        "labels": random_tokens(config, rows, 24, seed=seed + 1),
        "position_ids": np.repeat(positions, rows, axis=0),
        "segment_ids": np.repeat(segment_ids, rows, axis=0),
    }


def offsets(seed: int = 0, step: int = 0, rows: int = 8) -> np.ndarray:
    """One of each document: [rows, 3]."""
    before = batch(rows)
    after = shifted(before, MOST, seed, jnp.int32(step))
    assert {name: after[name] is before[name] for name in before} == {
        "input_ids": True, "labels": True, "segment_ids": True, "position_ids": False
    }  # fmt: skip
    added = np.asarray(after["position_ids"]) - before["position_ids"]
    assert (added[:, 20:] == 0).all(), "padding"
    parts = added[:, :5], added[:, 5:12], added[:, 12:20]
    assert all((part == part[:, :1]).all() for part in parts)
    return np.stack([part[:, 0] for part in parts], axis=1)


def test_each_document_of_each_row_has_an_offset_of_its_own_from_0_to_the_most() -> None:
    drawn = np.concatenate([offsets(step=step, rows=64) for step in range(8)])
    counts = np.bincount(drawn.ravel(), minlength=MOST + 1)
    assert len(counts) == MOST + 1 and counts.min() > 0
    expected = drawn.size / (MOST + 1)
    assert ((counts - expected) ** 2 / expected).sum() < 70  # chi-square of 40 degrees; 1 in 400 draws is above 70
    assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.15


def test_offsets_depend_on_seed_step_and_row_alone() -> None:
    first = offsets()
    assert np.array_equal(first, offsets())
    assert np.array_equal(first[:4], offsets(rows=4)), "a row's draw does not feel how many rows there are"
    assert not np.array_equal(first, offsets(step=1))
    assert not np.array_equal(first, offsets(seed=1))


def test_rows_without_documents_are_shifted_whole() -> None:
    rows = {"input_ids": random_tokens(tiny_config(), 8, 24)}
    positions = np.asarray(shifted(rows, MOST, 0, jnp.int32(0))["position_ids"])
    assert np.array_equal(positions - positions[:, :1], np.tile(np.arange(24), (8, 1)))
    assert np.array_equal(positions[:, 0], offsets()[:, 0])


@pytest.mark.parametrize("position_embedding", short_tier(["xpos", "rope"], 0))
def test_no_score_feels_it(position_embedding: str) -> None:
    config = tiny_config(position_embedding=position_embedding)
    graphdef, _ = abstract_model(config)
    params = tiny_params(config)  # not inside the trace, whose tracers it would keep for others
    loss = jax.jit(lambda rows: batch_loss(graphdef, params, rows).loss)
    rows = batch()
    there = float(loss(rows))
    assert float(loss(shifted(rows, MOST, 0, jnp.int32(3)))) == pytest.approx(there, rel=1e-5)
    apart = rows | {"position_ids": rows["position_ids"] * 2}
    assert float(loss(apart)) != pytest.approx(there, rel=1e-4), "or this would show nothing"


@pytest.mark.long
def test_laws_5_and_6_with_shifted_positions_and_a_zeta_that_is_held(
    run_config: Callable[..., RunConfig], disturb: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one device; with twice as many micro-batches; interrupted; and on eight devices."""
    training = {"position_shift": MOST, "xpos_regularization_coef": 0.1}
    config = run_config(model={"xpos_learnable": True}, training=training)

    def another(name: str, **sections: dict) -> RunConfig:
        other = run_config(model={"xpos_learnable": True}, **({"training": training} | sections))
        return dataclasses.replace(other, output_dir=f"{config.output_dir}-{name}")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda mesh: make_mesh(mesh, devices=jax.devices()[:1]))
        check_law_6(config, another("interrupted"), disturb)
        parts = another("parts", training=training | {"gradient_accumulation_steps": 2})
        assert pretrain(parts)
        plain = another("plain", training={"xpos_regularization_coef": 0.1})
        assert pretrain(plain)
    spread = another("spread", mesh={"data": 2, "fsdp": 2, "tensor": 2})
    assert pretrain(spread)
    for other in (parts, plain, spread):
        assert np.allclose(losses(other.output_dir), losses(config.output_dir), rtol=1e-5, atol=0)
    assert bits(plain.output_dir) != bits(config.output_dir), "by rounding"
