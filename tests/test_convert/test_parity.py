"""Law 3: JAX and torch compute the same logits and gradients, whatever the switches, and choose the same tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from convert import weights
from convert.config import to_hf
from stellarbyte_jax import ByteModel
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.training.state import init_params
from stellarbyte_torch import ByteConfig as TorchByteConfig
from stellarbyte_torch import ByteModel as TorchByteModel
from test_convert.models import describe, grid

B, T = 3, 24


def jax_params(config):
    """Initial parameters, with norms and zeta moved off their starting values so that their gradients say something."""
    params = init_params(config, seed=1)
    generator = np.random.default_rng(2)

    def moved(path, leaf):
        leaf = np.asarray(leaf)
        if path[-1].key == "scale":
            return leaf * generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if path[-1].key == "zeta":
            # Below the bound, at it, inside and above: the clip and its straight-through gradient all count.
            return leaf + np.array([-0.05, 0.0, 0.02, 0.3], np.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(moved, params)


def torch_model(config, params):
    model = TorchByteModel(TorchByteConfig(**to_hf(config, "float32")))
    state = {key: torch.tensor(np.asarray(tensor)) for key, tensor in weights.to_hf(params, config).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if config.tie_word_embeddings else [], [])
    return model.eval()


def batch(config, packed):
    generator = np.random.default_rng(3)
    input_ids = generator.integers(3, config.vocab_size, (B, T))
    cut = T // 3
    positions = np.concatenate([np.arange(cut), np.arange(T - cut)]) if packed else np.arange(T)
    segments = np.where(np.arange(T) < cut, 1, 2) if packed else np.ones(T)
    position_ids, segment_ids = (np.broadcast_to(x, (B, T)).astype(np.int32) for x in (positions, segments))
    return input_ids.astype(np.int32), position_ids, segment_ids


@functools.cache  # one compilation a config: logits and gradients are looked at by different tests
def both_sides(config, packed=False):
    params = jax_params(config)
    input_ids, position_ids, segment_ids = batch(config, packed)
    graphdef = nnx.split(ByteModel(config, rngs=nnx.Rngs(0)))[0]

    def loss(params):
        logits = nnx.merge(graphdef, params)(input_ids, position_ids, segment_ids if packed else None).logits
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), input_ids[:, 1:, None], axis=-1)
        return -chosen.mean(), logits

    (jax_loss, jax_logits), jax_gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    model = torch_model(config, params)
    ids = torch.from_numpy(input_ids).long()
    output = model(ids, position_ids=torch.from_numpy(position_ids).long(), labels=ids, use_cache=False)
    output.loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    jax_side = float(jax_loss), np.asarray(jax_logits), weights.to_hf(jax_gradients, config)
    return jax_side, (output.loss.item(), output.logits.detach().numpy(), gradients)


def relative(ours, theirs):
    """Largest difference in units of the largest value: what a tolerance on float32 sums can mean."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("config", grid(), ids=describe)
def test_logits_agree(config):
    (jax_loss, jax_logits, _), (loss, logits, _) = both_sides(config)
    assert relative(jax_logits, logits) < 1e-5
    assert jax_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("config", grid(), ids=describe)
def test_gradients_agree(config):
    (_, _, jax_gradients), (_, _, gradients) = both_sides(config)
    assert jax_gradients.keys() == gradients.keys()
    errors = {key: relative(jax_gradients[key], gradients[key]) for key in gradients}
    assert {key: error for key, error in errors.items() if not error < 1e-4} == {}


@pytest.mark.parametrize("config", grid()[:9:4], ids=describe)
def test_packed_documents_agree(config):
    (_, jax_logits, jax_gradients), (_, logits, gradients) = both_sides(config, packed=True)
    assert relative(jax_logits, logits) < 1e-5
    assert max(relative(jax_gradients[key], gradients[key]) for key in gradients) < 1e-4
    alone = both_sides(config)[0][1]
    assert relative(alone, logits) > 1e-3, "packing must change what the second document sees"


@pytest.mark.parametrize("config", grid()[::4], ids=describe)
def test_greedy_continuations_are_the_same_tokens(config):
    params = jax_params(config)
    graphdef = nnx.split(ByteModel(config, rngs=nnx.Rngs(0)))[0]
    prompts = np.random.default_rng(4).integers(3, config.vocab_size, (2, 7))
    continued = Generator(nnx.merge(graphdef, params)).generate(prompts.tolist(), max_new_tokens=24)
    model = torch_model(config, params)
    for prompt, ours in zip(prompts, continued, strict=True):
        theirs = model.generate(torch.from_numpy(prompt)[None], max_new_tokens=24, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        assert ours == (theirs[: theirs.index(1)] if 1 in theirs else theirs)
