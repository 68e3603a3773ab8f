"""What a report foresees of training is what the planner says, and what it counts is what the train step multiplies."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.interpreters import partial_eval

from stellarbyte.chips import CHIPS
from stellarbyte.report.find import find_subject
from stellarbyte.report.flops import _work, decode_work, forward_work
from stellarbyte.report.parameters import count_parameters
from stellarbyte.report.structure import structure_of
from stellarbyte.token_flops import visible_pairs
from stellarbyte_jax.config import LoRAConfig, OptimizerConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.planning.array_placement import Placement
from stellarbyte_jax.planning.chip_work import matmul_flops
from stellarbyte_jax.planning.one_device import _Device, _largest, foresee
from stellarbyte_jax.planning.parameters import ParameterCounter, counter_of
from stellarbyte_jax.planning.plan import Planner
from stellarbyte_jax.planning.topology import parse_topology
from test_jax.test_planning.conftest import make_run
from tiers import short_tier

LENGTH = 256
SIZES = {
    **{"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2},
    **{"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32},
}
SWITCHES = {
    "rope": {"position_embedding": "rope"},
    "xpos": {},
    "groups": {"num_key_value_heads": 2},
    "tied, parallel": {"tie_word_embeddings": True, "parallel_residual": True},
    "deepnorm, bias": {"residual": "deepnorm", "attention_bias": True, "qk_norm": True},
    "LayerScale": {"layer_scale_init": 0.1},
    "experts": {"num_experts": 8, "moe_intermediate_size": 128},
    "shared experts": {"num_experts": 4, "num_shared_experts": 2, "moe_intermediate_size": 64},
}


def structure(config, tmp_path):
    path = tmp_path / "model.yaml"
    save_config(config, path)
    return structure_of(find_subject(path))


def traced(config, function, *arguments):
    """The FLOPs of all matmuls in what is traced, of one row; experts get even shares."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    # XLA removes what nothing needs; so does this.
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return matmul_flops(jaxpr, Placement({}), LENGTH * config.num_experts_per_tok)


def abstract(config, kernel):
    execution = Execution(platform="cpu", attention_kernel=kernel)
    return nnx.split(nnx.eval_shape(lambda: ByteForCausalLM(config, execution=execution, rngs=nnx.Rngs(0))))


def gradient_flops(config, kernel):
    graphdef, state = abstract(config, kernel)

    def loss(params, ids):
        return nnx.merge(graphdef, params)(ids).logits.sum()

    ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    return traced(config, jax.value_and_grad(loss), state, ids), traced(config, loss, state, ids)


@pytest.mark.parametrize("switch", short_tier(list(SWITCHES), 1, 2, 6))
def test_training_is_the_matmuls_of_the_jaxpr(switch, planned_run, tmp_path):
    """With plain attention, which multiplies hidden pairs as well."""
    config = planned_run(**SIZES | SWITCHES[switch]).model
    both, forward = gradient_flops(config, "reference")
    ours = LENGTH * forward_work(structure(config, tmp_path), LENGTH, every_pair=True).total
    assert forward == pytest.approx(ours, rel=1e-3)
    assert both == pytest.approx(3 * ours, rel=1e-2)


@pytest.mark.parametrize("window", short_tier([None, 70, 200], 1))
def test_hidden_pairs_are_left_out_where_a_kernel_skips_them(window, planned_run, tmp_path):
    """The kernel for CPUs multiplies the blocks of 64 that have a visible pair; by hand, so many pairs a token."""
    config = planned_run(**SIZES, sliding_window=window).model
    _, forward = gradient_flops(config, "chunked")
    blocks = visible_pairs(LENGTH, window, 64) / LENGTH
    ours = _work(structure(config, tmp_path), LENGTH, lambda _: blocks, 1)
    assert forward == pytest.approx(LENGTH * ours.total, rel=1e-3)


@pytest.mark.parametrize("fields", short_tier([{}, {"num_key_value_heads": 2}, {"sliding_window": 50}], 1, 2), ids=str)
def test_decoding_is_the_matmuls_of_a_step(fields, planned_run, tmp_path):
    """Keys fill the cache, or the window's ring."""
    config = planned_run(**SIZES | fields).model
    graphdef, state = abstract(config, "chunked")
    cache = dataclasses.replace(nnx.eval_shape(lambda: KVCache.create(config, 1, LENGTH)), fresh=False)

    def step(params, token, cache):
        return nnx.merge(graphdef, params)(token, cache=cache).logits

    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    ours = decode_work(structure(config, tmp_path), LENGTH - 1).total
    assert traced(config, step, state, token, cache) == pytest.approx(ours, rel=1e-2)


@pytest.fixture(scope="module")
def foreseen():
    """(a run, what is foreseen of it); nobody may change it."""
    run = make_run(**SIZES, length=LENGTH, training={"batch_size": 4, "dtype": "bfloat16"})
    return run, foresee(run.model, run, 4, LENGTH)


@pytest.mark.parametrize("name", short_tier(["v5e", "h100"], 1))
def test_it_is_the_plan_of_one_chip(name, foreseen):
    """The same bytes as `stellarbyte plan` tells, and the largest batch that it lets fit."""
    run, found = foreseen
    planner = Planner(run, parse_topology(f"{name}:1x1"))

    def plan(remat, rows):
        training = dataclasses.replace(run.training, remat=remat, batch_size=rows)
        return planner.plan(dataclasses.replace(run, training=training))

    assert found.rows.keys() == CHIPS.keys()
    for memory in found.training:
        rows = found.rows[name][memory.remat]
        assert plan(memory.remat, rows).fits
        assert not plan(memory.remat, rows + 1).fits
        if name == "h100":
            planned = plan(memory.remat, 4).memory
            assert (memory.total, memory.activations) == (planned.total, planned.activations)


def test_remat_computes_a_layer_again(foreseen, tmp_path):
    """By hand: all matmuls of a layer but the last, whose result is only added; of attention, visible pairs."""
    run, again = foreseen[0], foreseen[1].recomputed
    parts = forward_work(structure(run.model, tmp_path), LENGTH).parts
    network = parts["feed_forward"] * 2 / 3
    assert again["none"] == again["dots"] == 0
    assert again["full"] == parts["attention_projections"] + parts["attention_scores"] + network
    assert again["save_attention"] == parts["attention_projections"] + network
    assert again["dots_without_batch"] == parts["attention_scores"]


@pytest.mark.parametrize("optim", ["adamw", "lion", "adafactor", "muon"])
def test_the_optimizers_own_state(optim, planned_run):
    run = dataclasses.replace(planned_run(**SIZES), optimizer=OptimizerConfig(optim=optim))
    numbers = ParameterCounter(run.model).total
    state = _Device(run, "gpu").memory("none", 1).optimizer
    least, most = {"adamw": (2, 2), "lion": (1, 1), "adafactor": (0, 0.2), "muon": (1, 2)}[optim]
    assert least * 4 * numbers <= state <= most * 4 * numbers


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "mlp.up_proj")])
def test_adapters_are_what_is_trained(targets, planned_run, tmp_path):
    lora = LoRAConfig(target_modules=targets, r=4, rank_pattern={"q_proj": 2})
    run = dataclasses.replace(planned_run(**SIZES), lora=lora, init_from="base")
    save_config(run, tmp_path / "run.yaml")
    subject = find_subject(tmp_path / "run.yaml")
    found, counter = count_parameters(subject), counter_of(run)
    assert found.total == counter.total
    assert found.trained == found.parts["adapters"] == counter.total - ParameterCounter(run.model).total
    memory = _Device(run, "gpu").memory("none", 8)
    assert memory.optimizer == 2 * 4 * found.trained
    assert memory.parameters + memory.frozen == 4 * found.total


@pytest.mark.long
def test_a_length_that_a_kernel_refuses_is_told(planned_run):
    run = planned_run(length=100)
    found = foresee(run.model, run, 1, 100)
    assert len(found.training) == 6
    assert found.rows.keys() == {"h100", "h200"}
    assert "TPU is not foreseen" in found.remarks[0]


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 64, 1000])
def test_the_largest_that_fits(largest):
    assert _largest(lambda rows: rows <= largest) == largest


@pytest.mark.long
def test_no_device_is_taken(tmp_path):
    """A report may be asked for beside a run that has all the devices."""
    save_config(make_run(**SIZES, hidden_dropout=0.1).model, tmp_path / "model.yaml")
    program = """
import sys
from pathlib import Path
from jax._src import xla_bridge
from stellarbyte.report.making import make_reports
(report,) = make_reports([Path(sys.argv[1])])
assert report.memory.training and not xla_bridge._backends
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "model.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
