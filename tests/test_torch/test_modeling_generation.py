"""GenerationMixin with StellarByte."""

from typing import Any

import pytest
import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    pipeline,
)
from transformers.generation import BaseStreamer

from stellarbyte_torch import ByteForCausalLM

from .exported import export
from .tiny import POSITIONS, SWITCHES, tiny_model, tokens

GREEDY = {"do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("position", POSITIONS)
@torch.no_grad()
def test_greedy_equals_step_by_step_argmax(position: str) -> None:
    model = tiny_model(**POSITIONS[position])
    ids = tokens(2, 6)
    expected = ids
    for _ in range(15):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    options = {"max_new_tokens": 15, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(ids)
    for extra in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        assert torch.equal(model.generate(ids, attention_mask=mask, **options, **extra), expected), extra


@pytest.mark.parametrize("name", ["none", "window", "shared_experts", "deepnorm", "everything"])
@torch.no_grad()
def test_every_cache_gives_the_same_text(name: str) -> None:
    model = tiny_model(**SWITCHES[name])
    ids = tokens(2, 9)
    options = {**GREEDY, "max_new_tokens": 12, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, use_cache=False, **options)
    caches = (DynamicCache(), DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=32))
    for cache in caches:
        assert torch.equal(model.generate(ids, past_key_values=cache, **options), expected), type(cache)
    windowed = model.config.sliding_window is not None
    assert all(layer.is_sliding == windowed for cache in caches[1:] for layer in cache.layers)


@pytest.mark.parametrize(
    "switches", [{}, *(SWITCHES[name] for name in ("window", "shared_experts", "deepnorm"))], ids=str
)
def test_left_padded_batch_equals_each_prompt_alone(switches: dict[str, Any]) -> None:
    model = tiny_model(**switches)
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[0, :5], mask[0, :5] = 2, 0
    options = {**GREEDY, "max_new_tokens": 10}
    batch = model.generate(ids, attention_mask=mask, **options)
    short = model.generate(ids[:1, 5:], attention_mask=mask[:1, 5:], **options)
    long = model.generate(ids[1:], attention_mask=mask[1:], **options)
    assert torch.equal(batch[0, 5:], short[0])
    assert torch.equal(batch[1], long[0])


def test_stops_at_eos_by_the_models_own_config() -> None:
    model = tiny_model()
    ids = tokens(1, 6)
    likeliest = model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1].item()
    model.generation_config.eos_token_id = likeliest
    assert model.generate(ids, max_new_tokens=20, do_sample=False).shape[1] == 7
    assert tiny_model().generation_config.eos_token_id == 1
    assert tiny_model().generation_config.pad_token_id == 2


@torch.no_grad()
def test_beam_search_finds_what_is_at_least_as_likely() -> None:
    model = tiny_model()
    ids = tokens(1, 5)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}

    def log_probability(sequence: torch.Tensor) -> float:
        steps = model(sequence[:, :-1]).logits.log_softmax(-1)[:, 4:]
        return steps.gather(-1, sequence[:, 5:, None]).sum().item()

    greedy = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    beams = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=8, **options)
    assert beams.shape == greedy.shape
    assert log_probability(beams) >= log_probability(greedy) - 1e-5


def test_sampling_is_reproducible() -> None:
    model = tiny_model()
    ids = tokens(1, 5)
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, max_new_tokens=10, do_sample=True, top_k=0, eos_token_id=None).tolist())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("switches", [{}, SWITCHES["window"], SWITCHES["shared_experts"]], ids=str)
def test_assisted_decoding_is_exact(switches: dict[str, Any]) -> None:
    model, draft = tiny_model(**switches), tiny_model(**switches, num_hidden_layers=1)
    ids = tokens(1, 9)
    options = {**GREEDY, "max_new_tokens": 12}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, assistant_model=draft, **options), expected)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), expected)


class Collector(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


class Never(LogitsProcessor):
    """No token below 60."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return scores.index_fill(1, torch.arange(60), -torch.inf)


def test_streamers_processors_and_what_generate_can_return() -> None:
    model = tiny_model("eager", **SWITCHES["shared_experts"])
    ids = tokens(1, 5)
    streamer = Collector()
    outputs = model.generate(
        ids,
        streamer=streamer,
        logits_processor=LogitsProcessorList([Never()]),
        repetition_penalty=1.5,
        return_dict_in_generate=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
        max_new_tokens=6,
        **GREEDY,
    )
    assert streamer.tokens == [*outputs.sequences[0].tolist(), -1]
    assert (outputs.sequences[:, 5:] >= 60).all()
    assert [logits.shape for logits in outputs.logits] == [(1, 97)] * 6
    assert outputs.attentions[-1][0].shape == (1, 4, 1, 10)
    assert outputs.hidden_states[-1][0].shape == (1, 1, 32)


@pytest.mark.parametrize("switches", [{}, SWITCHES["window"]], ids=str)
def test_continuous_batching_equals_each_prompt_alone(switches: dict[str, Any]) -> None:
    model = tiny_model(**switches)
    prompts = [tokens(1, length, seed=length) for length in (3, 9, 6)]
    results = model.generate_batch(
        [prompt[0].tolist() for prompt in prompts],
        generation_config=GenerationConfig(max_new_tokens=8, eos_token_id=96, pad_token_id=2),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32),
    )
    written = {tuple(result.prompt_ids): result.generated_tokens for result in results.values()}
    for prompt in prompts:
        expected = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=96)[0, prompt.shape[1] :]
        assert written[tuple(prompt[0].tolist())] == expected.tolist()


def test_text_generation_pipeline(tmp_path) -> None:
    export(tmp_path)
    generate = pipeline("text-generation", model=str(tmp_path), device="cpu")
    assert type(generate.model) is ByteForCausalLM
    texts = generate(["The quick", "春眠"], max_new_tokens=4, do_sample=False, batch_size=2)
    for prompt, [text] in zip(("The quick", "春眠"), texts, strict=True):
        assert text["generated_text"].startswith(prompt)
        assert text["generated_text"] == generate(prompt, max_new_tokens=4, do_sample=False)[0]["generated_text"]
