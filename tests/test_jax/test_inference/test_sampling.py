"""Draws against the exact distribution, and that against the processors of transformers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from stellarbyte.sampling import Sampling
from stellarbyte_jax.inference.sampling import sample, warp

DRAWS = 20_000

# Two tokens tie.
PROBS = np.array([0.02, 0.3, 0.05, 0.13, 0.3, 0.2])


def exact(sampling: Sampling) -> np.ndarray:
    """Tempered, cut to the k likeliest, renormalised, cut to the likeliest that reach p, renormalised; float64."""
    probs = PROBS ** (1 / sampling.temperature)
    probs /= probs.sum()
    if sampling.top_k is not None:
        probs = np.where(probs >= np.sort(probs)[-min(sampling.top_k, len(probs))], probs, 0)
        probs /= probs.sum()
    if sampling.top_p is not None:
        order = np.argsort(-probs, kind="stable")
        before = np.cumsum(probs[order]) - probs[order]
        smallest = probs[order][before < sampling.top_p].min()
        probs = np.where(probs >= smallest, probs, 0)
        probs /= probs.sum()
    if sampling.min_p is not None:
        probs = np.where(probs >= sampling.min_p * probs.max(), probs, 0)
        probs /= probs.sum()
    return probs


def draw(sampling: Sampling, seed: int = 0) -> np.ndarray:
    logits = jnp.asarray(np.log(PROBS) + 3.0, jnp.float32)
    run = jax.jit(lambda key: sample(jnp.tile(logits, (DRAWS, 1)), sampling, key))
    return np.asarray(run(jax.random.key(seed)))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=2.5),
        Sampling(temperature=1.0, top_k=3),
        Sampling(temperature=1.0, top_p=0.75),
        Sampling(temperature=1.0, top_p=0.1),
        Sampling(temperature=1.5, top_k=4, top_p=0.8),
        Sampling(temperature=1.0, top_k=100, top_p=1.0),
        Sampling(temperature=1.0, min_p=0.4),
        Sampling(temperature=2.0, top_k=5, top_p=0.95, min_p=0.5),
        Sampling(temperature=1.0, min_p=0.0),
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_distribution(sampling: Sampling) -> None:
    counts, probs = np.bincount(draw(sampling), minlength=len(PROBS)), exact(sampling)
    possible = probs > 0
    assert (counts[~possible] == 0).all()
    expected = DRAWS * probs[possible]
    chi_squared = ((counts[possible] - expected) ** 2 / expected).sum()
    # With f degrees of freedom, mean f and variance 2f: five deviations, and some for the skew of a small f.
    freedom = possible.sum() - 1
    assert chi_squared <= freedom + 5 * math.sqrt(2 * freedom) + 5 * (freedom > 0)


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    assert exact(Sampling(1.0, top_p=0.61)).nonzero()[0].tolist() == [1, 4, 5]
    assert set(draw(Sampling(1.0, top_p=0.61))) == {1, 4, 5}
    assert set(draw(Sampling(1.0, top_p=0.59))) == {1, 4}
    assert set(draw(Sampling(1.0, top_p=1e-6))) == {1, 4}, "equals are kept together"


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    assert set(draw(Sampling())) == {1}
    assert draw(Sampling(1.0, top_k=1))[0] in (1, 4)


@functools.cache
def reference_model() -> GPT2LMHeadModel:
    """Anything that can generate: asked only which processors it would use."""
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=4, n_positions=4))


def warped_by_transformers(logits: np.ndarray, sampling: Sampling, tokens: np.ndarray) -> np.ndarray:
    """Probabilities after the processors that GenerationMixin.generate would put before a draw, in its order."""
    config = GenerationConfig(
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or None,
        top_k=sampling.top_k or 0,
        top_p=sampling.top_p if sampling.top_p is not None else 1.0,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
    )
    processors = reference_model()._get_logits_processor(config, input_ids_seq_length=tokens.shape[1], device="cpu")
    scores = processors(torch.from_numpy(tokens), torch.from_numpy(logits))
    if sampling.temperature == 0:
        scores = torch.where(torch.arange(scores.shape[1]) == scores.argmax(-1, keepdim=True), 0.0, -torch.inf)
    return scores.softmax(-1).numpy()


SAMPLINGS = [
    Sampling(repetition_penalty=1.7),
    Sampling(repetition_penalty=0.6),
    *(
        Sampling(temperature, top_k, top_p, min_p, penalty)
        for temperature, top_k, top_p, min_p, penalty in [
            (1.0, None, None, None, 1.0),
            (0.7, 5, None, None, 1.0),
            (0.7, None, 0.9, None, 1.3),
            (1.6, None, None, 0.1, 1.3),
            (1.6, 30, 0.8, 0.02, 1.0),
            (0.3, 30, 0.8, 0.2, 2.0),
            (1.1, 500, 1.0, 0.0, 0.5),
            (1.0, 1, 0.01, 1.0, 1.1),
        ]
    ),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_distribution_is_that_of_transformers(sampling: Sampling) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(50, 60)).astype(np.float32)
    tokens = rng.integers(0, 60, (50, 12))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, tokens, True, axis=1)
    ours = jax.nn.softmax(warp(jnp.asarray(logits), sampling, jnp.asarray(seen)), axis=-1)
    theirs = warped_by_transformers(logits, sampling, tokens)
    assert np.array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_top_p_of_1_keeps_what_is_lost_beside_1() -> None:
    logits = jnp.log(jnp.array([[1.0, *[1e-8] * 1000]]))
    assert jnp.isfinite(warp(logits, Sampling(1.0, top_p=1.0))).all()
    assert int(jnp.isfinite(warp(logits, Sampling(1.0, top_p=0.5))).sum()) == 1


def test_draws_are_from_the_penalised_distribution() -> None:
    sampling = Sampling(temperature=1.0, repetition_penalty=1.5)
    logits = np.log(PROBS) + 2.0
    seen = np.array([True, True, False, False, True, False])
    penalised = np.where(seen, np.where(logits < 0, logits * 1.5, logits / 1.5), logits)
    probs = np.exp(penalised) / np.exp(penalised).sum()
    tile = functools.partial(jnp.tile, reps=(DRAWS, 1))
    drawn = sample(tile(jnp.asarray(logits, jnp.float32)), sampling, jax.random.key(0), tile(jnp.asarray(seen)))
    expected = DRAWS * probs
    chi_squared = ((np.bincount(drawn, minlength=len(PROBS)) - expected) ** 2 / expected).sum()
    assert chi_squared < 5 + 5 * math.sqrt(10)


def test_a_seed_gives_its_draws() -> None:
    assert np.array_equal(draw(Sampling(1.0), seed=3), draw(Sampling(1.0), seed=3))
    assert not np.array_equal(draw(Sampling(1.0), seed=3), draw(Sampling(1.0), seed=4))
