"""Continuations against plain forward passes, one token at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.architecture import RopeScaling
from stellarbyte.errors import UserError
from stellarbyte.kv_cache.registry import policy
from stellarbyte.kv_cache.settings import KVBudget, KVPruning
from stellarbyte.sampling import Sampling
from stellarbyte_jax import ByteModel
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.inference.generate import STREAM_TOKENS, Generator
from stellarbyte_jax.inference.prompts import until_eos
from stellarbyte_jax.inference.speculative import SpeculativeGenerator
from stellarbyte_jax.model.pruned_cache import PrunedCache
from test_jax.tiny import random_tokens, tiny_config, tiny_model
from tiers import short_tier

# Wide enough for prompts of one and of two lengths of 32, few enough tokens that greedy text soon meets <|SEOS|>.
CONFIG = tiny_config(vocab_size=24, max_position_embeddings=128)
NEW_TOKENS = 20
PROMPTS = [random_tokens(CONFIG, length, seed=length).tolist() for length in (1, 7, 40, 3)]


@functools.cache
def model(config: ByteConfig = CONFIG) -> ByteModel:
    return tiny_model(config, seed=4)


@functools.cache
def generator(config: ByteConfig = CONFIG) -> Generator:
    return Generator(model(config))


@functools.cache
def next_logits(config: ByteConfig):
    """The logits behind a text, padded on the right to one length: the causal mask makes it the same."""
    graphdef, state = nnx.split(model(config))
    forward = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids).logits[0])

    def run(tokens: list[int]) -> np.ndarray:
        ids = np.full((1, 64), config.pad_token_id, np.int32)
        ids[0, : len(tokens)] = tokens
        return np.asarray(forward(state, ids)[len(tokens) - 1])

    return run


def step_by_step(prompt: list[int], new_tokens: int, config: ByteConfig = CONFIG) -> list[int]:
    tokens = list(prompt)
    for _ in range(new_tokens):
        token = int(next_logits(config)(tokens).argmax())
        if token == config.eos_token_id:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    "fields",
    short_tier(
        [
            {},
            {"position_embedding": "rope", "tie_word_embeddings": True},
            # Shorter than a prompt, so that the cache is a ring, which other rows have not come around yet.
            {"sliding_window": 5, "position_embedding": "none"},
            {"sliding_window": 12, "num_experts": 4, "residual": "deepnorm"},
        ],
        *(0, 2),
    ),
    ids=str,
)
def test_greedy_is_the_likeliest_token_again_and_again(fields: dict) -> None:
    config = tiny_config(vocab_size=24, max_position_embeddings=128, **fields)
    answers = generator(config).generate(PROMPTS, NEW_TOKENS)
    assert answers == [step_by_step(prompt, NEW_TOKENS, config) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) > 1


def test_prompts_in_a_batch_are_answered_as_each_alone() -> None:
    together = generator().generate(PROMPTS, NEW_TOKENS)
    assert together == [generator().generate([prompt], NEW_TOKENS)[0] for prompt in PROMPTS]


def test_models_of_other_weights_share_programs_and_say_their_own() -> None:
    other = Generator(tiny_model(CONFIG, seed=5))
    assert (other._prefill, other._decode) == (generator()._prefill, generator()._decode)
    assert other.generate(PROMPTS[:1], NEW_TOKENS) != generator().generate(PROMPTS[:1], NEW_TOKENS)
    assert Generator(model(), cache_dtype=jnp.bfloat16)._prefill != generator()._prefill


@functools.cache
def ending() -> tuple[ByteConfig, list[int], list[int]]:
    """A config whose <|SEOS|> is a token that the first prompt's greedy answer comes to, and two answers before it."""
    answer = step_by_step(PROMPTS[0], NEW_TOKENS)
    place, eos = next((i, token) for i, token in enumerate(answer) if i >= 2 and token not in answer[:i] and token > 2)
    config = tiny_config(vocab_size=24, max_position_embeddings=128, eos_token_id=eos)
    return config, answer[:place], step_by_step(PROMPTS[2], NEW_TOKENS, config)


def test_an_answer_ends_before_eos_and_padding_follows() -> None:
    config, first, second = ending()
    assert len(first) != len(second)
    seen: list[np.ndarray] = []
    answers = generator(config).generate([PROMPTS[0], PROMPTS[2]], NEW_TOKENS, on_tokens=seen.append)
    assert answers == [first, second]
    rows = np.concatenate(seen, axis=1)
    for row, answer in zip(rows.tolist(), answers, strict=True):
        assert row[: len(answer)] == answer
        if len(answer) < len(row):
            assert row[len(answer)] == config.eos_token_id
            assert set(row[len(answer) + 1 :]) <= {config.pad_token_id}


def test_decoding_stops_when_every_row_is_done() -> None:
    config, first, _ = ending()
    seen: list[np.ndarray] = []
    assert generator(config).generate([PROMPTS[0]] * 2, 64, on_tokens=seen.append) == [first, first]
    assert sum(tokens.shape[1] for tokens in seen) == len(first) + 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_k=8)], ids=str)
@pytest.mark.parametrize("new_tokens", [1, STREAM_TOKENS, NEW_TOKENS])
def test_streaming_gives_the_same_tokens(sampling: Sampling, new_tokens: int) -> None:
    seen: list[np.ndarray] = []
    streamed = generator().generate(PROMPTS[1:3], new_tokens, sampling, 5, seen.append)
    assert streamed == generator().generate(PROMPTS[1:3], new_tokens, sampling, 5)
    assert all(tokens.dtype == np.int32 and 1 <= tokens.shape[1] <= STREAM_TOKENS for tokens in seen)
    rows = np.concatenate(seen, axis=1).tolist()
    assert [row[: len(answer)] for row, answer in zip(rows, streamed, strict=True)] == streamed


@pytest.mark.parametrize("asked_at", [1, 2])
def test_a_watcher_may_end_a_row(asked_at: int) -> None:
    """The others go on as they would have; nothing is decoded once no row is wanted."""
    whole = generator().generate(PROMPTS[:3], NEW_TOKENS)
    seen: list[np.ndarray] = []

    def end(rows: list[bool]):
        def watch(tokens: np.ndarray) -> np.ndarray | None:
            seen.append(tokens)
            return np.array(rows) if len(seen) == asked_at else None

        return watch

    shown = 1 + STREAM_TOKENS * (asked_at - 1)
    answers = generator().generate(PROMPTS[:3], NEW_TOKENS, on_tokens=end([False, True, False]))
    assert answers == [whole[0], whole[1][:shown], whole[2]]
    assert set(np.concatenate(seen, axis=1)[1, shown:]) <= {CONFIG.pad_token_id}
    seen.clear()
    answers = generator().generate(PROMPTS[:3], NEW_TOKENS, on_tokens=end([True, True, True]))
    assert answers == [answer[:shown] for answer in whole] and len(seen) == asked_at


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_the_repetition_penalty_counts_prompt_and_answer(penalty: float) -> None:
    """Not the padding beside the prompts: theirs are of unequal lengths."""

    def penalised(prompt: list[int]) -> list[int]:
        tokens = list(prompt)
        for _ in range(NEW_TOKENS):
            logits = next_logits(CONFIG)(tokens)
            scaled = np.where(logits < 0, logits * np.float32(penalty), logits / np.float32(penalty))
            token = int(np.where(np.isin(np.arange(len(logits)), tokens), scaled, logits).argmax())
            if token == CONFIG.eos_token_id:
                break
            tokens.append(token)
        return tokens[len(prompt) :]

    answers = generator().generate(PROMPTS, NEW_TOKENS, Sampling(repetition_penalty=penalty))
    assert answers == [penalised(prompt) for prompt in PROMPTS]
    assert answers != generator().generate(PROMPTS, NEW_TOKENS)


def test_a_seed_gives_its_text() -> None:
    run = functools.partial(generator().generate, PROMPTS[:2], NEW_TOKENS, Sampling(1.5))
    assert run(seed=1) == run(seed=1)
    assert run(seed=1) != run(seed=2)
    for seed, bound in ((-1, "at least 0"), (2**32, "at most 4294967295"), (2**64, "at most 4294967295")):
        with pytest.raises(UserError, match=f"^seed {seed} must be {bound}$"):
            run(seed=seed)


def test_sampled_text_has_the_models_frequencies() -> None:
    """The first and the second token of many answers at once: chi-squared over all pairs that are not too rare."""
    count, prompt, sampling = 4000, PROMPTS[1], Sampling(0.9)
    answers = generator().generate([prompt] * count, 2, sampling, seed=0)
    # An answer that ended has <|SEOS|> next, then nothing.
    pairs = [tuple([*answer, CONFIG.eos_token_id][:2]) for answer in answers]

    def probs(tokens: list[int]) -> np.ndarray:
        scaled = np.exp(next_logits(CONFIG)(tokens).astype(np.float64) / sampling.temperature)
        return scaled / scaled.sum()

    expected: dict[tuple[int, ...], float] = {}
    first_probs = probs(prompt)
    for first in range(CONFIG.vocab_size):
        if first == CONFIG.eos_token_id:
            expected[(first,)] = count * first_probs[first]
        elif count * first_probs[first] > 5:
            second_probs = probs([*prompt, first])
            expected |= {(first, second): count * first_probs[first] * p for second, p in enumerate(second_probs)}
    common = {pair: number for pair, number in expected.items() if number > 5}
    assert len(common) > 20
    observed = {pair: pairs.count(pair) for pair in common}
    rest, observed_rest = count - sum(common.values()), count - sum(observed.values())
    chi_squared = sum((observed[pair] - number) ** 2 / number for pair, number in common.items())
    chi_squared += (observed_rest - rest) ** 2 / rest
    freedom = len(common)
    assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)


def test_a_budget_for_the_whole_text_says_the_same() -> None:
    pruning = KVPruning(KVBudget(slots=max(map(len, PROMPTS)) + NEW_TOKENS), policy("window"))
    assert Generator(model(), pruning=pruning).generate(PROMPTS, NEW_TOKENS) == generator().generate(
        PROMPTS, NEW_TOKENS
    )


def test_within_a_budget_it_says_what_the_cache_says() -> None:
    """As by one's own loop, for prompts within the budget and beyond it, each as if it were alone."""
    pruning = KVPruning(KVBudget(slots=16), policy("snap"))
    answers = Generator(model(), pruning=pruning).generate(PROMPTS, NEW_TOKENS)
    graphdef, state = nnx.split(model().unstack())
    read = jax.jit(lambda state, ids, cache: nnx.merge(graphdef, state)(ids, cache=cache))
    for prompt, answer in zip(PROMPTS[1:3], answers[1:3], strict=True):
        cache, ids, said = PrunedCache.create(CONFIG, 1, (16, 16), policy("snap")), np.array([prompt], np.int32), []
        while len(said) < NEW_TOKENS:
            output = read(state, ids, cache)
            said.append(int(output.logits[0, -1].argmax()))
            cache, ids = output.cache, np.array([said[-1:]], np.int32)
        assert answer == until_eos(said, CONFIG.eos_token_id)


def test_bfloat16_cache_and_model() -> None:
    """Not the same tokens for ever, but a text of the same start; keys and values take half the room."""
    rounded = Generator(model(), cache_dtype=jnp.bfloat16).generate(PROMPTS[:1], 3)
    assert len(rounded[0]) <= 3
    assert rounded[0][:1] == generator().generate(PROMPTS[:1], 1)[0]


@pytest.mark.parametrize(
    ("prompts", "new_tokens", "message"),
    [
        ([[5] * 128], 1, "a prompt of 128 tokens and max_new_tokens 1 exceed the context of 128 tokens"),
        ([[5], [5] * 120], 9, "a prompt of 120 tokens and max_new_tokens 9 exceed the context"),
        ([[5], []], 4, "a prompt is empty"),
        ([[5]], 0, "max_new_tokens 0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(prompts: list[list[int]], new_tokens: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generator().generate(prompts, new_tokens)


DYNAMIC = tiny_config(
    vocab_size=24,
    position_embedding="rope",
    rope_scaling=RopeScaling("dynamic", 2.0),
    max_position_embeddings=32,
)


def test_dynamic_scaling_goes_by_the_longest_prompt_not_its_padding() -> None:
    lengths = (40, 5, 33, *[40] * 253)  # so many that a wrong base would show
    prompts = [random_tokens(DYNAMIC, length, seed=row).tolist() for row, length in enumerate(lengths)]
    ids = np.full((len(lengths), max(lengths)), DYNAMIC.pad_token_id, np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    scaled = tiny_model(DYNAMIC, seed=4)
    logits = jax.jit(lambda: scaled(ids).logits)()
    likeliest = [int(logits[row, length - 1].argmax()) for row, length in enumerate(lengths)]
    answers = Generator(tiny_model(DYNAMIC, seed=4)).generate(prompts, 1)
    assert answers == [[token] * (token != DYNAMIC.eos_token_id) for token in likeliest]


def test_dynamic_scaling_stretches_the_context() -> None:
    run = Generator(tiny_model(DYNAMIC, seed=4)).generate
    assert len(run([[5] * 40], 24)[0]) <= 24
    with pytest.raises(UserError, match=r"exceed the context of 64 tokens \(max_position_embeddings · rope_scaling"):
        run([[5] * 40], 25)


def test_the_context_may_be_filled_to_the_brim() -> None:
    assert len(generator().generate([[5] * 120], 8)[0]) <= 8


@functools.cache
def broken(layer_gain: float) -> ByteModel:
    """A model whose logits are not finite, because its norm's gain is one that float32 cannot multiply by."""
    config = tiny_config(vocab_size=24, max_position_embeddings=128, num_hidden_layers=1)
    model = tiny_model(config, seed=5)
    model.model.norm.scale[...] = jnp.full_like(model.model.norm.scale[...], layer_gain)
    return model


@pytest.mark.parametrize(
    ("gain", "sampling"),
    short_tier(
        [
            (float("nan"), Sampling()),
            (3e38, Sampling(temperature=1.0)),
            (3e38, Sampling(repetition_penalty=1.5)),
        ]
    ),
)
def test_no_token_is_drawn_by_what_is_no_number(gain: float, sampling: Sampling) -> None:
    generators = (Generator(broken(gain)), SpeculativeGenerator(broken(gain), broken(gain)))
    for generator in generators:
        for watch in (None, lambda tokens: pytest.fail(f"{tokens} were shown")):
            with pytest.raises(UserError, match="logits are not finite"):
                generator.generate([[5, 6, 7]], 12, sampling, on_tokens=watch)


@pytest.mark.long
def test_a_draft_that_guesses_by_what_is_no_number_changes_nothing() -> None:
    config = tiny_config(vocab_size=24, max_position_embeddings=128, num_hidden_layers=1)
    sound = tiny_model(config, seed=6)
    expected = Generator(sound).generate([[5, 6, 7]], 12)
    assert SpeculativeGenerator(sound, broken(float("nan"))).generate([[5, 6, 7]], 12) == expected
