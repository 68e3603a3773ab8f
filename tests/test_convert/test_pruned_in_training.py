"""A model that a run has pruned and cut: in Hugging Face's form it is smaller, and gives the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert import weights
from convert.families.fit import fits
from stellarbyte_jax.config import OptimizerConfig, PruneConfig, TrainingConfig
from stellarbyte_jax.training.cut_model import cut
from stellarbyte_jax.training.gradual_pruning import GradualPruning
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.prune_state import PruneState
from stellarbyte_jax.training.state import abstract_model, run_state
from test_convert.torch_side import TorchModel
from test_jax.runs import run_config_of
from test_jax.tiny import random_tokens, relative_error, tiny_config

MODEL = tiny_config(position_embedding="rope")


@pytest.mark.parametrize("even", [False, True])
def test_an_export_is_smaller_and_gives_the_same(even: bool) -> None:
    heads = [[1, 1, 0, 0], [0, 0, 1, 1] if even else [0, 1, 1, 1]]
    channels = np.random.default_rng(0).permuted(np.arange(24)[None].repeat(2, axis=0), axis=1)
    widths = [8, 8 if even else 16]
    kept = {"heads": np.array(heads, bool), "channels": channels < np.array(widths)[:, None]}

    prune = PruneConfig(from_step=0, to_step=10, keep_channels=0.5, keep_heads=0.5, even=even)
    training = TrainingConfig(max_steps=12, batch_size=2, prune=prune)
    config = run_config_of(MODEL, training, OptimizerConfig(warmup_steps=0))
    optimizer = run_optimizer(config, abstract_model(MODEL)[1])
    rule = GradualPruning.of(config, optimizer)
    assert rule is not None
    state = jax.jit(lambda: run_state(config, optimizer))()
    assert state.pruned is not None
    pruned = PruneState(state.pruned.importance, {kind: jnp.asarray(values) for kind, values in kept.items()})
    state = jax.jit(rule.applied)(state, pruned)
    after, smaller = cut(config, rule, state)

    tensors = weights.to_hf(smaller.params, after.model)
    H = MODEL.head_dim
    assert H is not None
    for layer, (width, kept_N) in enumerate(zip(widths, heads, strict=True)):
        assert tensors[f"model.layers.{layer}.mlp.up_proj.weight"].shape == (width, 16)
        assert tensors[f"model.layers.{layer}.self_attn.q_proj.weight"].shape == (sum(kept_N) * H, 16)
    stock = {fit.family.model_type for fit in fits(after.model) if not fit.misfits}
    assert ("llama" in stock) == even

    ids = random_tokens(MODEL, 2, 12)
    graphdef = abstract_model(MODEL)[0]
    before = jax.jit(lambda params: nnx.merge(graphdef, params)(ids).logits)(state.params)
    with torch.no_grad():
        logits = TorchModel(after.model, smaller.params).model(torch.tensor(ids, dtype=torch.long)).logits
    assert relative_error(logits.numpy(), before) < 1e-5
    assert dataclasses.replace(after.model, intermediate_size=24, pruned_heads=None) == MODEL
