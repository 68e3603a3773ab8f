"""Speculative decoding: whatever the draft guesses, the outcome is the model's own."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte.architecture import RopeScaling
from stellarbyte.errors import UserError
from stellarbyte.sampling import Sampling
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.inference.sampling import warp
from stellarbyte_jax.inference.speculative import SpeculativeGenerator
from test_jax.tiny import random_tokens, tiny_config, tiny_model
from tiers import short_tier

CONFIGS: list[dict[str, Any]] = [
    {},
    {"position_embedding": "rope", "sliding_window": 5},
    {"num_experts": 4, "qk_norm": True},
    {"residual": "deepnorm", "position_embedding": "none", "pruned_heads": ((0, 1), (2,))},
]


def pair(draft_tokens: int = 3, draft: dict[str, Any] | None = None, **fields: Any):
    """(a generator that drafts with a smaller model, the generator that it must equal)."""
    model = tiny_model(tiny_config(**fields))
    small = tiny_model(tiny_config(num_hidden_layers=1, **(draft or {})), seed=1)
    return SpeculativeGenerator(model, small, draft_tokens), Generator(model)


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    return [random_tokens(tiny_config(), length, seed=length).tolist() for length in lengths]


@pytest.mark.parametrize("fields", short_tier(CONFIGS, 1), ids=str)
@pytest.mark.parametrize("draft_tokens", short_tier([1, 4], 1))
def test_greedy_answers_are_the_same_tokens(fields: dict[str, Any], draft_tokens: int) -> None:
    speculative, plain = pair(draft_tokens, **fields)
    prompts = prompts_of((1, 9, 4))
    assert speculative.generate(prompts, 30) == plain.generate(prompts, 30)


@pytest.mark.long
def test_greedy_answers_are_the_same_with_a_repetition_penalty() -> None:
    speculative, plain = pair()
    sampling = Sampling(repetition_penalty=1.5)
    prompts = prompts_of((5, 2))
    answer = speculative.generate(prompts, 30, sampling)
    assert answer == plain.generate(prompts, 30, sampling)
    assert answer != plain.generate(prompts, 30)


def test_the_model_as_its_own_draft_has_every_guess_kept() -> None:
    model = tiny_model(tiny_config())
    speculative = SpeculativeGenerator(model, model, draft_tokens=4)
    looks: list[int] = []
    answers = speculative.generate(prompts_of((5,)), 40, on_tokens=lambda rows: looks.append(len(rows[0])))
    assert answers == Generator(model).generate(prompts_of((5,)), 40)
    if len(answers[0]) == 40:
        assert looks == [20, 20], "four rounds of five tokens between two looks"


VOCAB = 7


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(temperature=1.0), marks=pytest.mark.long, id="plain"),
        pytest.param(Sampling(temperature=0.7, top_k=4, min_p=0.05, repetition_penalty=1.3), id="warped"),
    ],
)
def test_draws_have_the_models_distribution(sampling: Sampling) -> None:
    """Three tokens, each sequence's probability worked out from the model alone, against 5,000 rows."""
    fields = {"vocab_size": VOCAB, "initializer_range": 0.5}
    speculative, _ = pair(draft_tokens=2, draft=fields, **fields)
    model = tiny_model(tiny_config(**fields))
    prompt, rows, n = [3, 5, 4], 5_000, 3
    answers = speculative.generate([prompt] * rows, n, sampling, seed=7)

    sequences = np.array(list(itertools.product(range(VOCAB), repeat=n)), np.int32)
    inputs = np.concatenate([np.tile(np.array([prompt], np.int32), (len(sequences), 1)), sequences], axis=1)
    logits = jax.jit(lambda ids: model(ids).logits)(inputs)[:, len(prompt) - 1 : -1]
    seen = np.cumsum(np.eye(VOCAB, dtype=int)[inputs], axis=1)[:, len(prompt) - 1 : -1] > 0
    warped = warp(logits.reshape(-1, VOCAB), sampling, jnp.asarray(seen.reshape(-1, VOCAB)))
    probs = np.asarray(jax.nn.softmax(warped)).reshape(len(sequences), n, VOCAB)
    each = np.take_along_axis(probs, sequences[..., None], axis=-1)[..., 0]

    # An answer ends at eos: what would follow it is summed over.
    expected: dict[tuple[int, ...], float] = {}
    for sequence, ps in zip(sequences.tolist(), each, strict=True):
        end = sequence.index(1) if 1 in sequence else n
        answer = tuple(sequence[:end])
        if end == n or all(token == 0 for token in sequence[end + 1 :]):
            expected[answer] = float(np.prod(ps[: end + 1] if end < n else ps))
    assert sum(expected.values()) == pytest.approx(1, abs=1e-4)
    counts = dict.fromkeys(expected, 0)
    for answer in answers:
        counts[tuple(answer)] += 1
    likely = [answer for answer in expected if expected[answer] * rows >= 5]
    chi2 = sum((counts[a] - rows * expected[a]) ** 2 / (rows * expected[a]) for a in likely)
    # The mean of chi-square is its degrees of freedom, its variance twice that: five sigma.
    assert chi2 < len(likely) + 5 * (2 * len(likely)) ** 0.5


@pytest.mark.long
def test_rows_are_watched_and_stopped_one_by_one() -> None:
    speculative, plain = pair()
    prompts = prompts_of((6, 3))
    whole = plain.generate(prompts, 24)
    shown: list[list[int]] = [[], []]

    def watch(rows):
        for tokens, new in zip(shown, rows, strict=True):
            tokens += new
        return np.array([len(shown[0]) >= 4, False])

    answers = speculative.generate(prompts, 24, on_tokens=watch)
    assert answers[1] == whole[1]
    assert answers[0] == whole[0][: len(answers[0])]
    assert 4 <= len(answers[0]) < 24 or answers[0] == whole[0]
    assert [token for token in shown[0] if token != 1][: len(answers[0])] == answers[0]


@pytest.mark.parametrize(
    "fields",
    short_tier([{}, {"position_embedding": "rope", "rope_scaling": RopeScaling("dynamic", 4.0)}]),
    ids=["xpos", "dynamic"],
)
def test_answers_end_where_the_context_does(fields: dict[str, Any]) -> None:
    """Guesses reach beyond it: nothing may overflow there, and dynamic scaling must not go by them."""
    speculative, plain = pair(draft_tokens=16, **fields)
    prompts = prompts_of((40,))
    assert speculative.generate(prompts, 24) == plain.generate(prompts, 24)


def test_a_seed_that_draws_as_another_does_is_refused() -> None:
    model = tiny_model(tiny_config())
    with pytest.raises(UserError, match=r"^seed 4294967297 must be at most 4294967295$"):
        SpeculativeGenerator(model, model).generate([[3]], 1, seed=2**32 + 1)


def test_unfit_drafts_are_refused() -> None:
    model = tiny_model(tiny_config())
    with pytest.raises(UserError, match="the draft's vocab_size 50 is not the model's 40"):
        SpeculativeGenerator(model, tiny_model(tiny_config(vocab_size=50)))
    with pytest.raises(UserError, match="draft_tokens 0 must be at least 1"):
        SpeculativeGenerator(model, model, draft_tokens=0)
    short = tiny_model(tiny_config(max_position_embeddings=16))
    with pytest.raises(UserError, match="exceed the context of 16 tokens"):
        SpeculativeGenerator(model, short).generate(prompts_of((9,)), 20)
    fields: dict[str, Any] = {"position_embedding": "rope", "rope_scaling": RopeScaling("dynamic", 2.0)}
    dynamic = tiny_model(tiny_config(**fields))
    with pytest.raises(UserError, match="rope_scaling dynamic goes up to max_position_embeddings 64, not 69 tokens"):
        SpeculativeGenerator(dynamic, dynamic).generate(prompts_of((9,)), 60)
