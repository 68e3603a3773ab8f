"""Draws against the exact distribution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.errors import UserError
from stellarbyte_jax.inference.sampling import Sampling, sample

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


def test_a_seed_gives_its_draws() -> None:
    assert np.array_equal(draw(Sampling(1.0), seed=3), draw(Sampling(1.0), seed=3))
    assert not np.array_equal(draw(Sampling(1.0), seed=3), draw(Sampling(1.0), seed=4))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature -0\.1 must be at least 0"),
        ({"temperature": math.nan}, "temperature nan must be"),
        ({"temperature": math.inf}, "temperature inf must be"),
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_p": 0.0}, r"top_p 0\.0 must be greater than 0 and at most 1"),
        ({"top_p": 1.01}, r"top_p 1\.01 must be greater than 0 and at most 1"),
        ({"top_p": math.nan}, "top_p nan must be"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**values)
