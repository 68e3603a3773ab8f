"""Each optimizer's state lies as its parameters do, gives the same updates wherever it lies, and goes on when saved."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, restore
from stellarbyte_jax.config import CheckpointConfig, LoRAConfig, MeshConfig, OptimizerConfig
from stellarbyte_jax.sharding import Layout, make_mesh, param_shardings
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.optimizer_state import opt_state_axes
from stellarbyte_jax.training.param_traits import param_traits, trained_params
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import tiny_config

OPTIMIZERS = ("adamw", "lion", "adafactor", "muon")
# The numbers of heads, experts and layers are not those of channels.
CONFIG = tiny_config(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, num_hidden_layers=3)
ABSTRACT = abstract_model(CONFIG)[1]
PARAMS = trained_params(ABSTRACT, None)
MESH = MeshConfig(data=1, fsdp=2, expert=2, tensor=2)


def optimizer_of(optim: Any, layout: Layout | None = None) -> optax.GradientTransformation:
    config = OptimizerConfig(0.01, warmup_steps=2, optim=optim)
    return make_optimizer(config, 10, param_traits(PARAMS), *([] if layout is None else [layout]))


def shapes() -> Any:
    return jax.tree.map(lambda variable: variable.get_value(), PARAMS, is_leaf=lambda node: hasattr(node, "get_value"))


def random_params(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: rng.normal(size=shape.shape).astype(np.float32), shapes())


def named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_an_axis_has_the_length_of_the_parameters_axis(optim: str) -> None:
    optimizer = optimizer_of(optim)
    axes, state = opt_state_axes(optimizer, PARAMS), jax.eval_shape(optimizer.init, shapes())
    assert jax.tree.structure(axes) == jax.tree.structure(state)
    lengths = {"layers": {3}, "expert": {4}, "vocab": {40}, "router": {4}, "hidden": {16}, "heads": {16}}
    lengths |= {"kv_heads": {8}, "feed_forward": {8, 16}, "norm": {16}}
    for name, array in named(state).items():
        names = named(axes)[name].names
        assert len(names) == array.ndim
        for axis, length in zip(names, array.shape, strict=True):
            assert length in lengths[str(axis)], name


def test_moments_lie_as_their_parameters_and_factors_as_what_is_left_of_them() -> None:
    layout = Layout.of(MESH, make_mesh(MESH))
    of_params = named(param_shardings(ABSTRACT, layout))
    adam, factored = (named(opt_state_axes(optimizer_of(optim), PARAMS)) for optim in ("adamw", "adafactor"))
    for name, sharding in of_params.items():
        for moment in ("mu", "nu"):
            assert layout.sharding(*adam[f"1.0.{moment}.{name}"].names) == sharding
    down = "model.layers.mlp.experts.down_proj"
    assert factored[f"1.0.rows.{down}"].names == ("layers", "expert", "feed_forward")
    assert factored[f"1.0.columns.{down}"].names == ("layers", "expert", "hidden")
    assert adam["1.0.count"].names == ()


def test_of_adapters_alone() -> None:
    lora = LoRAConfig(("q_proj",))
    abstract = abstract_model(tiny_config(), lora=lora)[1]
    assert set(named(jax.tree.map(str, trained_params(abstract, lora), is_leaf=lambda n: hasattr(n, "get_value")))) == {
        f"model.layers.self_attn.q_proj.lora_{side}" for side in "AB"
    }


@pytest.mark.parametrize(
    "optim", ["adafactor", "muon", *(pytest.param(name, marks=pytest.mark.long) for name in ("adamw", "lion"))]
)
def test_laws_5_and_6(optim: str, tmp_path: Path) -> None:
    """Four updates on a mesh as on one device; and two, saved and read back, then two, as the four, to the bit."""

    def program(layout: Layout | None = None) -> Any:
        optimizer = optimizer_of(optim, layout)

        def update(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        if layout is None:
            return jax.jit(update)
        lie, axes = param_shardings(ABSTRACT, layout), opt_state_axes(optimizer, PARAMS)
        lies = jax.tree.map(lambda axes: layout.sharding(*axes.names), axes)
        return jax.jit(update, in_shardings=(lie, lies, lie), out_shardings=(lie, lies))

    def updated(update: Any, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
        for step in steps:
            params, state = update(params, state, random_params(step + 1))
        return params, state

    alone = program()
    start = random_params(0), jax.jit(optimizer_of(optim).init)(random_params(0))
    half = updated(alone, *start, range(2))
    whole = updated(alone, *half, range(2, 4))
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        checkpointer.save(2, *half, RunMetadata({}, {}, {"step": 2}))
    params, state, *_ = restore(tmp_path, *jax.eval_shape(lambda: half))
    again = updated(alone, params, state, range(2, 4))
    assert {name: np.asarray(array).tobytes() for name, array in named(again).items()} == {
        name: np.asarray(array).tobytes() for name, array in named(whole).items()
    }
    spread = program(Layout.of(MESH, make_mesh(MESH)))
    for name, array in named(updated(spread, *jax.device_get(start), range(4))).items():
        np.testing.assert_allclose(array, named(whole)[name], rtol=1e-4, atol=1e-5, err_msg=name)
