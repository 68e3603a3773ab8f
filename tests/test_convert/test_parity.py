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
from tiers import short_tier

GRID = switches.grid()
FEW = [pytest.param(row, id=switches.name_of(row)) for row in switches.few_rows()]
OTHERS = [row for row in switches.rows() if row not in switches.few_rows()]
LONG = [pytest.param(row, id=switches.name_of(row), marks=pytest.mark.long) for row in (*OTHERS, *switches.more_rows())]


def above(errors, tolerance):
    """What is not within a tolerance; NaN is not, either."""
    return {what: error for what, error in errors.items() if not error < tolerance}


def broken(found):
    """Which law fails in what, and by how much."""
    errors = {
        "law 1": {what: gradient for what, gradient in found.leaks.items() if gradient != 0},
        "law 2": above(found.cached, 1e-5),
        "law 3, logits and losses": above(found.logits | found.loss, 1e-5),
        "law 3, gradients": above(found.gradients, 1e-4),
    }
    return {law: failed for law, failed in errors.items() if failed}


def test_any_two_switches_meet():
    """The proof that the grid covers: each two values of two switches stand in one of its rows, but for those that
    cannot stand in one config at all."""
    met = set().union(*map(switches.pairs, switches.rows()))
    assert met == switches.possible_pairs()
    assert len(met) > 700
    fewest = len(switches.SWITCHES["position"]) * len(switches.SWITCHES["experts"])
    assert len(GRID) == len(switches.rows()) == fewest + 1 == 41, "every position must meet every kind of experts"


def test_the_few_rows_have_every_value():
    for switch, values in switches.SWITCHES.items():
        stand = [row[switch] for row in switches.few_rows()]
        assert all(value in stand for value in values), switch
    assert len(FEW) + len(OTHERS) == len(GRID)


@pytest.mark.parametrize("row", short_tier(OTHERS, *range(0, len(OTHERS), 3)), ids=switches.name_of)
def test_the_same_logits(row):
    """To compile gradients and caches takes four times as long, which these rows do in the long tier.

    In the short tier every third row is compared, so that not every two switches meet there.
    """
    config = switches.config_of(row)
    jax_model, torch_model = both(config)
    errors = {}
    for name, batch in batches(config).items():
        real = batch["segment_ids"] != 0
        errors[name] = relative(jax_model.logits(batch)[real], torch_model.loss(batch)[0][real])
    assert above(errors, 1e-5) == {}


@pytest.mark.parametrize("row", [*FEW, *LONG])
def test_laws_1_to_3(row):
    """One test for all three, for it is compiling that takes the time, and they share the programs."""
    found = parity(switches.config_of(row), row["prompt"] == "at once")
    assert broken(found) == {}
    assert {what: seen for what, seen in found.seen.items() if not seen > 0} == {}, "nothing was looked at"


@pytest.mark.long
@given(drawn.configs(min_vocab=20, min_window=2))
@settings(max_examples=settings.default.max_examples // 33, derandomize=True)
def test_whatever_the_config(config):
    assert broken(parity(config)) == {}


@pytest.mark.parametrize("config", list(GRID.values())[::30], ids=list(GRID)[::30])
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


def test_tied_scores_go_to_the_same_experts():
    config = tiny(num_experts=5, moe_intermediate_size=16, num_experts_per_tok=3, norm_topk_prob=False)
    params = sensible_params(config)
    params["model"]["layers"]["mlp"]["gate"]["kernel"][0] = 0  # all tie
    params["model"]["layers"]["mlp"]["gate"]["kernel"][1, :, 1:4] = 0  # some do, above some and below others
    jax_model, torch_model = both(config, params)
    batch = batches(config)["plain"]
    theirs = torch_model.loss(batch)[0]
    assert relative(jax_model.logits(batch), theirs) < 1e-5
    flipped = sensible_params(config)
    experts = flipped["model"]["layers"]["mlp"]["experts"]
    experts |= {name: array[:, ::-1] for name, array in experts.items()}
    flipped["model"]["layers"]["mlp"]["gate"] = params["model"]["layers"]["mlp"]["gate"]
    assert relative(jax_model.logits(batch, flipped), theirs) > 1e-2, "the experts must matter"


def test_drop_rates_change_nothing_in_evaluation():
    rates = {"drop_path_rate": 0.3, "hidden_dropout": 0.1, "attention_dropout": 0.2, "residual_dropout": 0.1}
    config, batch = tiny(), batches(tiny())["plain"]
    with_rates = dataclasses.replace(config, **rates)
    (jax_model, torch_model), (jax_with_rates, torch_with_rates) = both(config), both(with_rates)
    assert jax_model.logits(batch).tobytes() == jax_with_rates.logits(batch).tobytes()
    assert torch_model.loss(batch)[0].tobytes() == torch_with_rates.loss(batch)[0].tobytes()
