"""Pruning in the train step: what goes, that it stays zero, and that a cut takes nothing else."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from stellarbyte_jax.config import ByteConfig, OptimizerConfig, PruneConfig, RunConfig, TrainingConfig
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.adafactor import AdafactorState
from stellarbyte_jax.training.cut_model import cut
from stellarbyte_jax.training.gradual_pruning import GradualPruning
from stellarbyte_jax.training.loss import token_loss
from stellarbyte_jax.training.programs import Programs
from stellarbyte_jax.training.prune_state import first_state
from stellarbyte_jax.training.state import (
    Params,
    TrainState,
    abstract_model,
    init_params,
    run_prune_state,
    run_state,
)
from stellarbyte_jax.training.step import batch_loss
from test_jax.runs import run_config_of
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_params

MODEL = tiny_config(attention_bias=True)
PRUNE = PruneConfig(from_step=1, to_step=7, every_steps=2, keep_channels=0.5, keep_heads=0.5, multiple=4)


def run_of(optim: Any = "adamw", model: ByteConfig = MODEL, **fields: Any) -> RunConfig:
    training = {"max_steps": 12, "batch_size": 2, "ema_decay": 0.9, "prune": PRUNE} | fields
    return run_config_of(model, TrainingConfig(**training), OptimizerConfig(optim=optim, warmup_steps=0))


def one_device(config: RunConfig) -> Layout:
    return Layout.of(config.mesh, make_mesh(config.mesh, jax.devices()[:1]))


def batch(step: int = 0, model: ByteConfig = MODEL) -> dict[str, jax.Array]:
    ids = random_tokens(model, 2, 16, seed=step)
    return {"input_ids": jnp.asarray(ids), "labels": jnp.asarray(np.roll(ids, -1, axis=1))}


def trained(config: RunConfig, steps: int) -> tuple[Programs, list[TrainState], list[dict[str, jax.Array]]]:
    """The programs of a run, its states before and after each step, and the steps' metrics."""
    programs = Programs.of(config, one_device(config))
    states, metrics = [jax.jit(lambda: run_state(config, programs.optimizer))()], []
    copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))  # for a step takes the state that it is given
    for step in range(steps):
        state, figures = programs.train_step(copied(states[-1]), batch(step), {}, {})
        states.append(state)
        metrics.append(figures)
    return programs, states, metrics


def kept_of(state: TrainState) -> dict[str, np.ndarray]:
    assert state.pruned is not None
    return jax.tree.map(np.asarray, state.pruned.kept)


def channels_of(config: RunConfig, optimizer: Any, state: TrainState) -> list[tuple[str, np.ndarray]]:
    """(axis, values with that axis after the layers') of all arrays that have channels or heads, average included."""
    rule = GradualPruning.of(config, optimizer)
    assert rule is not None
    found = []
    for tree, axes in (
        (state.params, rule.params_axes),
        (state.ema, rule.params_axes),
        (state.opt_state, rule.opt_state_axes),
    ):
        for array, names in zip(jax.tree.leaves(tree), (each.names for each in jax.tree.leaves(axes)), strict=True):
            for name in {"feed_forward", "heads", "kv_heads"} & set(names):
                found.append((name, np.moveaxis(np.asarray(array), names.index(name), 1)))
    return found


@pytest.mark.parametrize(
    "optim", ["adamw", *(pytest.param(optim, marks=pytest.mark.long) for optim in ("lion", "muon", "adafactor"))]
)
def test_what_is_pruned_stays_zero_and_a_cut_takes_nothing_else(optim: str) -> None:
    config = run_of(optim)
    programs, states, metrics = trained(config, 8)
    before = kept_of(states[0])
    for state, figures in zip(states[1:], metrics, strict=True):
        kept = kept_of(state)
        for kind, values in kept.items():
            assert not (values & ~before[kind]).any(), "masks only grow"
            assert figures[f"kept_{kind}"] == pytest.approx(values.mean())
        H, groups = MODEL.head_dim, kept["heads"].reshape(2, 2, 2).any(axis=2)
        assert H is not None
        of_axis = {
            "feed_forward": kept["channels"],
            "heads": np.repeat(kept["heads"], H, axis=1),
            "kv_heads": np.repeat(groups, H, axis=1),
        }
        arrays = channels_of(config, programs.optimizer, state)
        # Gates, ups, downs; queries, keys, values and their biases; outputs: each, its average and its moments.
        assert len(arrays) > 2 * 10
        for name, values in arrays:
            gone = ~of_axis[name]
            assert (values[gone] == 0).all(), name
            assert not gone.any() or (values[~gone] != 0).any()
        before = kept

    config_after, smaller = cut(config, programs.pruning, states[-2])
    model = config_after.model
    assert config_after.training.prune is None and smaller.pruned is None
    assert sum(model.intermediate_sizes) == before["channels"].sum() < 2 * 24
    assert model.pruned_heads == tuple(tuple(np.flatnonzero(~row)) for row in before["heads"])
    before_and_after = ((MODEL, states[-2].params), (model, smaller.params))
    loss, loss_after = (
        jax.jit(functools.partial(batch_loss, abstract_model(each)[0]))(params, batch(9)).loss
        for each, params in before_and_after
    )
    assert relative_error(loss_after, loss) < 1e-6
    programs_after = Programs.of(config_after, one_device(config_after))
    wanted = jax.eval_shape(lambda: run_state(config_after, programs_after.optimizer))
    assert jax.tree.map(jnp.shape, smaller) == jax.tree.map(jnp.shape, wanted)
    if optim in ("adamw", "lion"):  # whose updates do not depend on the other channels
        again, figures = programs_after.train_step(smaller, batch(7), {}, {})
        assert relative_error(figures["loss"], metrics[7]["loss"]) < 1e-6
        keys, before_the_cut = (each.params["model"]["layers"]["self_attn"]["k_proj"] for each in (again, states[-1]))
        assert relative_error(keys["kernel"], before_the_cut["kernel"]) < 1e-5


def test_the_cubic_of_zhu_and_gupta() -> None:
    model = tiny_config(intermediate_size=400)
    prune = PruneConfig(from_step=2, to_step=10, every_steps=3, keep_channels=0.25, multiple=1)
    config = run_of(model=model, prune=prune)
    rule = GradualPruning.of(config, optax.identity())
    assert rule is not None
    params = jax.jit(init_params, static_argnums=(0, 1))(model, 0)
    after, state = jax.jit(rule.after), run_prune_state(config)
    shares = []
    for step in range(1, 13):
        state = after(state, params, params, step)
        shares.append(np.mean(state.kept["channels"]))

    def cubic(step: int) -> float:
        return 0.25 + 0.75 * (1 - (step - 2) / 8) ** 3

    expected = [1.0] * 4 + [cubic(5)] * 3 + [cubic(8)] * 2 + [0.25] * 3
    assert shares == pytest.approx(expected, abs=1 / 800)


def test_the_least_important_go() -> None:
    """By the gradients of gates on what the units give, which the step does not have."""
    graphdef, params = abstract_model(MODEL)[0], tiny_params(MODEL, 1)

    def loss(params: Params, gates: dict[str, jax.Array]) -> jax.Array:
        params = jax.tree.map(lambda leaf: leaf, params)
        attention, mlp = (params["model"]["layers"][name] for name in ("self_attn", "mlp"))
        # What follows is linear in what a unit gives, so a factor of its row is one of the unit.
        of_heads = jnp.repeat(gates["heads"], 4, axis=1)
        for projection, gates_LX in ((attention["o_proj"], of_heads), (mlp["down_proj"], gates["channels"])):
            projection["kernel"] = projection["kernel"] * gates_LX[:, :, None]
        model, rows = nnx.merge(graphdef, params), batch()
        hidden = model.model(rows["input_ids"]).hidden
        head, axes = model.head
        return token_loss(hidden, head, rows["labels"], axes).loss

    ones = {"channels": jnp.ones((2, 24)), "heads": jnp.ones((2, 4))}
    gradients, of_gates = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, ones)
    channels, heads = (np.abs(of_gates[kind]) for kind in ("channels", "heads"))
    kept = {}
    for even in (False, True):
        prune = dataclasses.replace(PRUNE, from_step=0, to_step=1, every_steps=1, even=even)
        rule = GradualPruning.of(run_of(prune=prune), optax.identity())
        assert rule is not None
        pruned = jax.jit(rule.after)(first_state(prune, MODEL), gradients, params, 1)
        kept[even] = jax.tree.map(np.asarray, pruned.kept)

    assert (kept[False]["heads"] == (heads >= np.sort(heads.ravel())[4])).all()
    groups = heads.reshape(2, 2, 2).sum(axis=2)
    assert (kept[True]["heads"] == np.repeat(groups == groups.max(axis=1, keepdims=True), 2, axis=1)).all()
    assert kept[True]["channels"].sum(axis=1).tolist() == [12, 12]
    for each in kept.values():
        for kept_F, importance_F in zip(each["channels"], channels, strict=True):
            assert kept_F.sum() % 4 == 0
            assert importance_F[kept_F].min() >= importance_F[~kept_F].max()


@pytest.mark.long
def test_adafactor_estimates_the_same_squares_after_a_cut() -> None:
    config = run_of("adafactor")
    programs, states, _ = trained(config, 7)

    def squares(state: TrainState) -> np.ndarray:
        (found,) = (
            node
            for node in jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, AdafactorState))
            if isinstance(node, AdafactorState)
        )
        rows, columns = (
            np.asarray(each["model"]["layers"]["mlp"]["down_proj"]["kernel"]) for each in (found.rows, found.columns)
        )
        return (rows / rows.mean(axis=1, keepdims=True))[:, :, None] * columns[:, None]

    kept_LF = kept_of(states[-1])["channels"]
    _, smaller = cut(config, programs.pruning, states[-1])
    for before, after, kept_F in zip(squares(states[-1]), squares(smaller), kept_LF, strict=True):
        assert relative_error(after[: kept_F.sum()], before[kept_F]) < 1e-6


def test_a_run_that_prunes_nothing_has_nothing_of_it_in_its_program() -> None:
    programs = {}
    for prune in (None, PRUNE):
        config = run_of(prune=prune)
        of_run = Programs.of(config, one_device(config))
        state = jax.eval_shape(lambda config=config, of_run=of_run: run_state(config, of_run.optimizer))
        programs[prune] = state, str(jax.make_jaxpr(of_run.train_step)(state, batch(), {}, {}))
    (state, program), (_, pruning) = programs.values()
    assert state.pruned is None
    assert [word in program for word in (" cond[", " sort[")] == [False, False]
    assert [word in pruning for word in (" cond[", " sort[")] == [True, True], "or this would show nothing"
