"""Laws 1 to 3 over a grid of configs in which any two switches meet: JAX and PyTorch are one model."""

import dataclasses

import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings

from stellarbyte_jax.inference.generate import Generator
from test_convert import drawn, switches
from test_convert.jax_side import JaxModel
from test_convert.models import sensible_params, tiny
from test_convert.parity import batches, parity, relative
from test_convert.torch_side import TorchModel

GRID = switches.grid()
configs = pytest.mark.parametrize("config", GRID.values(), ids=GRID.keys())


def above(errors, tolerance):
    """What is not within a tolerance; NaN is not, either."""
    return {what: error for what, error in errors.items() if not error < tolerance}


def test_any_two_switches_meet():
    assert len(GRID) >= 60
    met = set().union(*map(switches.pairs, switches.rows()))
    assert met == switches.possible_pairs()
    assert len(met) > 500


@configs
def test_law_3_logits_and_losses_agree(config):
    found = parity(config)
    assert above(found.logits, 1e-5) == {}
    assert above(found.loss, 1e-5) == {}


@configs
def test_law_3_gradients_agree(config):
    assert above(parity(config).gradients, 1e-4) == {}


@configs
def test_law_2_cached_decoding_is_the_pass_over_all_tokens(config):
    assert above(parity(config).cached, 1e-5) == {}


@configs
def test_law_1_nothing_is_known_of_later_tokens_or_other_documents(config):
    found = parity(config)
    assert {what: gradient for what, gradient in found.leaks.items() if gradient != 0} == {}
    assert {what: gradient for what, gradient in found.seen.items() if not gradient > 0} == {}, "nothing was looked at"


@given(drawn.configs(min_vocab=20, min_window=2))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_whatever_the_config(config):
    found = parity(config)
    assert above(found.logits | found.loss | found.cached, 1e-5) == {}
    assert above(found.gradients, 1e-4) == {}
    assert not any(found.leaks.values())


@pytest.mark.parametrize("config", list(GRID.values())[::13], ids=list(GRID)[::13])
def test_greedy_continuations_are_the_same_tokens(config):
    jax_model, torch_model = both(config)
    prompts = np.random.default_rng(4).integers(3, config.vocab_size, (2, 5))
    count = min(24, config.max_position_embeddings - 5)
    generator = Generator(nnx.merge(jax_model.graphdef, jax_model.params))
    for prompt, ours in zip(prompts, generator.generate(prompts.tolist(), count), strict=True):
        ids = torch.from_numpy(prompt)[None]
        theirs = torch_model.model.generate(ids, max_new_tokens=count, do_sample=False)[0, len(prompt) :].tolist()
        assert ours == (theirs[: theirs.index(1)] if 1 in theirs else theirs)


def both(config, params=None):
    params = sensible_params(config) if params is None else params
    return JaxModel(config, params), TorchModel(config, params)


def test_packing_padding_and_capacity_count():
    """What the comparisons above would not notice if neither side took it in."""
    config = tiny(num_experts=4, moe_intermediate_size=16, moe_capacity_factor=0.6)
    model, given_batches = JaxModel(config, sensible_params(config)), batches(config)
    plain = model.loss(given_batches["plain"])[0]
    assert relative(model.loss(given_batches["packed"])[0], plain) > 1e-2
    padded, loss, dropped, _ = model.loss(given_batches["padded"])
    assert relative(padded[1], plain[1]) > 1e-2
    held_to_capacity, its_loss, its_dropped, _ = model.loss(given_batches["padded"], training=True)
    assert (dropped, its_dropped > 1) == (0, True)
    assert relative(held_to_capacity, padded) > 1e-2
    assert abs(its_loss - loss) > 1e-3


def test_tied_scores_go_to_the_same_experts():
    config = tiny(num_experts=5, moe_intermediate_size=16, num_experts_per_tok=3, norm_topk_prob=False)
    params = sensible_params(config)
    params["model"]["layers"]["mlp"]["gate"]["kernel"][0] = 0  # all tie
    params["model"]["layers"]["mlp"]["gate"]["kernel"][1, :, 1:4] = 0  # some do, above some and below others
    jax_model, torch_model = both(config, params)
    batch = batches(config)["plain"]
    ours, theirs = jax_model.loss(batch)[0], torch_model.loss(batch)[0]
    assert relative(ours, theirs) < 1e-5
    flipped = sensible_params(config)
    experts = flipped["model"]["layers"]["mlp"]["experts"]
    experts |= {name: array[:, ::-1] for name, array in experts.items()}
    flipped["model"]["layers"]["mlp"]["gate"] = params["model"]["layers"]["mlp"]["gate"]
    assert relative(JaxModel(config, flipped).loss(batch)[0], theirs) > 1e-2, "the experts must matter"


def test_drop_rates_change_nothing_in_evaluation():
    rates = {"drop_path_rate": 0.3, "hidden_dropout": 0.1, "attention_dropout": 0.2, "residual_dropout": 0.1}
    config, batch = tiny(), batches(tiny())["plain"]
    with_rates = dataclasses.replace(config, **rates)
    for ours, theirs in zip(both(config), both(with_rates), strict=True):
        assert ours.loss(batch)[0].tobytes() == theirs.loss(batch)[0].tobytes()
