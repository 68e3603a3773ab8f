"""GenerationMixin with StellarByte."""

import pytest
import torch

from .tiny import POSITIONS, tiny_model, tokens


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


def test_left_padded_batch_equals_each_prompt_alone() -> None:
    model = tiny_model()
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[0, :5], mask[0, :5] = 2, 0
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
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


def test_sampling_is_reproducible_and_assisted_decoding_is_exact() -> None:
    model = tiny_model()
    ids = tokens(1, 5)
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, max_new_tokens=10, do_sample=True, top_k=0, eos_token_id=None).tolist())
    assert texts[0] == texts[1] != texts[2]
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    draft = tiny_model(num_hidden_layers=1)
    assert torch.equal(model.generate(ids, assistant_model=draft, **options), model.generate(ids, **options))
