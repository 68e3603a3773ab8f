"""FLOPs against XLA's own count, a mask drawn out, and the rule of 6 N."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.token_flops import visible_pairs
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.config_file import load_model_config
from stellarbyte_jax.model.attention.chunked import visible
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.flops import forward_flops, head_flops, layer_matmul_flops, step_flops
from stellarbyte_jax.planning.parameters import ParameterCounter

ROWS, LENGTH = 2, 256


@pytest.mark.parametrize("window", [None, 1, 7, 40, 64, 100])
def test_pairs_are_those_of_the_mask(window):
    assert visible_pairs(64, window) == int(visible(0, 0, 64, None, window).sum())


@pytest.mark.parametrize("window", [None, 1, 7, 16, 17, 40])
def test_blocks_are_those_that_the_mask_touches(window):
    mask = np.asarray(visible(0, 0, 64, None, window))[0].reshape(4, 16, 4, 16)
    assert visible_pairs(64, window, 16) == mask.any(axis=(1, 3)).sum() * 16 * 16


@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 2}, {"parallel_residual": True}], ids=str
)
def test_xla_counts_the_same(fields):
    """Forward and backward of an unrolled model with plain attention; XLA adds elementwise work to it."""
    config = ByteConfig(
        **{"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": LENGTH, **fields},
    )
    execution = Execution(platform="cpu", attention_kernel="reference")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: ByteForCausalLM(config, execution=execution, rngs=nnx.Rngs(0))))

    def loss(params, input_ids):
        return nnx.merge(graphdef, params)(input_ids).logits.sum()

    ids = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    # Before optimization: what XLA makes of it may merge or repeat work.
    theirs = jax.jit(jax.value_and_grad(loss)).lower(state, ids).cost_analysis()["flops"]
    assert theirs == pytest.approx(step_flops(config, ROWS, LENGTH, "reference").executed, rel=0.04)


@pytest.mark.parametrize("name", ["125m", "1b", "7b", "8x1b"])
def test_six_flops_a_parameter_and_token(name):
    """Kaplan et al. 2020 (arXiv:2001.08361): 6 N a token without attention, N without the input embedding."""
    config = load_model_config(f"configs/model/{name}.yaml")
    flops = step_flops(config, 1, 2048)
    active = ParameterCounter(config).active
    if not config.tie_word_embeddings:
        active -= config.vocab_size * config.hidden_size
    assert (flops.model - flops.attention) / 2048 == pytest.approx(6 * active, rel=1e-3)
    assert flops.model - flops.attention == 3 * 2048 * (
        config.num_hidden_layers * layer_matmul_flops(config) + head_flops(config)
    )


def test_what_narrow_layers_lack_is_executed_and_not_needed():
    even = load_model_config("configs/model/125m.yaml")
    widths = (even.intermediate_size - 64, *(even.intermediate_size,) * (even.num_hidden_layers - 1))
    flops, uneven = step_flops(even, 4, 2048), step_flops(dataclasses.replace(even, intermediate_size=widths), 4, 2048)
    assert flops.model - uneven.model == 3 * 4 * 2048 * 2 * 3 * even.hidden_size * 64
    assert uneven.executed == flops.executed


def test_attention_of_a_full_row_is_the_published_formula():
    """Chowdhery et al. 2022 (arXiv:2204.02311, B): 12 L H Q T a token, which counts future keys; we count half."""
    config = load_model_config("configs/model/7b.yaml")
    theirs = 12 * 32 * 32 * 128 * 4096 * 4096
    assert step_flops(config, 1, 4096).attention == pytest.approx(theirs / 2, rel=1e-3)


def test_experts_at_work_alone_count():
    config = load_model_config("configs/model/8x1b.yaml")
    parameters = ParameterCounter(config)
    total, active = parameters.total, parameters.active
    assert total / 1e9 == pytest.approx(6.4, abs=0.05)
    assert active / 1e9 == pytest.approx(1.9, abs=0.05)


@pytest.mark.parametrize("kernel", ["reference", "cudnn", "splash"])
def test_a_kernel_executes_at_least_what_the_model_needs(kernel):
    config = load_model_config("configs/model/1b.yaml")
    flops = step_flops(config, 4, 2048, kernel)
    assert flops.model < flops.executed < 1.3 * flops.model


@pytest.mark.parametrize("name", ["125m", "7b", "8x1b"])
def test_a_forward_pass_is_a_third_of_a_step(name):
    """What pruning counts of a model is what utilization counts; and less is left of a pruned one."""
    config = load_model_config(f"configs/model/{name}.yaml")
    for window in (None, 300):
        config = dataclasses.replace(config, sliding_window=window)
        assert 3 * forward_flops(config, 4, 1024) == pytest.approx(step_flops(config, 4, 1024).model, rel=1e-12)
    gone = ((0,), *((),) * (config.num_hidden_layers - 1))
    assert forward_flops(dataclasses.replace(config, pruned_heads=gone), 4, 1024) < forward_flops(config, 4, 1024)
