"""Law 5 step by step: the same losses on every mesh as on one device, and a state that goes on on another mesh."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from stellarbyte_jax.config import MeshConfig, OptimizerConfig, RunConfig, TrainingConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.start import state_shardings
from stellarbyte_jax.training.state import TrainState, abstract_model, init_state
from stellarbyte_jax.training.step import make_train_step
from test_jax.runs import run_config_of
from test_jax.tiny import random_tokens, segments, tiny_config

STEPS = 4
OPTIMIZER = OptimizerConfig(1e-2, warmup_steps=2)
MODELS = {
    "dense": tiny_config(),
    "windowed": tiny_config(sliding_window=6, tie_word_embeddings=True, residual="deepnorm"),
    "moe": tiny_config(num_experts=4, num_shared_experts=1, moe_intermediate_size=8, hidden_dropout=0.1),
    "capacity": tiny_config(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, moe_capacity_factor=1.0),
}
MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(data=1, fsdp=-1),
    "tensor": MeshConfig(tensor=2),
    "fsdp x tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "two slices": MeshConfig(data=2, fsdp=4, slices=2),
    "expert": MeshConfig(expert=4),
    "all for experts": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "context": MeshConfig(context=4),
    "context x tensor": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}


@functools.cache
def batches() -> list[dict[str, np.ndarray]]:
    packed = [segments(9, 5, 8, padding=2), segments(24)]
    positions, ids = (np.concatenate([pair[i] for pair in packed] * 4) for i in (0, 1))
    tokens = [random_tokens(MODELS["dense"], 8, 25, seed=step) for step in range(STEPS)]
    packing = {"position_ids": positions, "segment_ids": ids}
    return [{"input_ids": t[:, :-1], "labels": np.where(ids > 0, t[:, 1:], -100), **packing} for t in tokens]


def run_config(name: str, optim: Any) -> RunConfig:
    return run_config_of(MODELS[name], TrainingConfig(STEPS, batch_size=8), dataclasses.replace(OPTIMIZER, optim=optim))


@functools.cache
def first_state(name: str, optim: Any) -> TrainState:
    """On the host. That parameters which a mesh draws are the same is for the whole runs of test_loop.py to see."""
    optimizer = run_optimizer(run_config(name, optim), abstract_model(MODELS[name])[1])
    return jax.device_get(jax.jit(lambda: init_state(MODELS[name], optimizer, 0))())


def train(
    name: str,
    layout: Layout,
    state: Any = None,
    steps: range = range(STEPS),
    remat: str = "none",
    optim: Any = "adamw",
):
    """Losses of these steps and the state after them; layers in a loop, as on accelerators."""
    config = run_config(name, optim)
    graphdef, abstract = abstract_model(
        config.model, Execution(attention_kernel="reference", platform="tpu", remat=remat, layout=layout)
    )
    optimizer = run_optimizer(config, abstract, layout)
    shardings, _ = state_shardings(config, abstract, optimizer, layout)
    rows = layout.sharding("batch", "length")
    step = jax.jit(
        make_train_step(graphdef, optimizer, 1, seed=0),
        in_shardings=(shardings, rows),
        out_shardings=(shardings, layout.sharding()),
    )
    state = jax.device_put(first_state(name, optim) if state is None else state, shardings)
    losses = []
    for index in steps:
        state, metrics = step(state, jax.device_put(batches()[index], rows))
        losses.append(float(metrics["loss"]))
    return losses, state


@functools.cache
def alone(name: str, optim: Any = "adamw") -> tuple[Any, TrainState]:
    return train(name, Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1])), optim=optim)


def layout_of(mesh: str) -> Layout:
    return Layout.of(MESHES[mesh], make_mesh(MESHES[mesh]))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        *(pytest.param("dense", mesh, marks=pytest.mark.long) for mesh in ("data", "fsdp", "tensor", "context")),
        ("dense", "two slices"),
        pytest.param("windowed", "fsdp x tensor", marks=pytest.mark.long),
        ("windowed", "context x tensor"),
        *(pytest.param("moe", mesh, marks=pytest.mark.long) for mesh in ("data", "expert")),
        ("capacity", "all for experts"),
        pytest.param("capacity", "context x tensor", marks=pytest.mark.long),
    ],
)
def test_law_5(name: str, mesh: str) -> None:
    losses, _ = train(name, layout_of(mesh))
    assert np.allclose(losses, alone(name)[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "optim", "mesh"),
    [
        pytest.param("dense", "muon", "fsdp x tensor", marks=pytest.mark.long),  # test_optimizer_state.py has it
        pytest.param("moe", "muon", "all for experts", marks=pytest.mark.long),
        pytest.param("moe", "adafactor", "all for experts", marks=pytest.mark.long),
    ],
)
def test_law_5_with_other_optimizers(name: str, optim: str, mesh: str) -> None:
    losses, _ = train(name, layout_of(mesh), optim=optim)
    expected, _ = alone(name, optim)
    assert np.allclose(losses, expected, rtol=1e-5, atol=0)
    assert not np.allclose(expected, alone(name)[0], rtol=1e-5, atol=0), "another optimizer than AdamW"


@pytest.mark.long  # test_loop.py has a whole run that goes on over other devices
def test_a_state_goes_on_on_another_mesh() -> None:
    _, state = train("windowed", layout_of("fsdp x tensor"), steps=range(2), remat="full")
    losses, _ = train("windowed", layout_of("context x tensor"), jax.device_get(state), range(2, STEPS))
    assert np.allclose(losses, alone("windowed")[0][2:], rtol=1e-5, atol=0)
