"""Transformers' QuantizedCache behind our model, by each of its backends that is installed."""

import importlib.util
from typing import Any

import pytest
import torch
from transformers import QuantizedCache

from test_torch.tiny import tiny_model, tokens

# Backend -> its options and how far logits may be from those without a cache, of the largest: fp8 has 4 bits of
# precision, quanto 4 bits in all, and hqq 8. Weights of these models are large, and so are errors of scores.
BACKENDS: dict[str, tuple[dict[str, Any], float]] = {
    "fp8": ({}, 0.7),
    "quanto": ({"nbits": 4, "q_group_size": 8, "residual_length": 8, "axis_key": 0, "axis_value": 0}, 0.5),
    "hqq": ({"nbits": 8, "q_group_size": 8, "residual_length": 8, "axis_key": 1, "axis_value": 1}, 0.05),
}
PACKAGES = {"quanto": "optimum", "hqq": "hqq"}


@pytest.mark.parametrize("position", ["rope", "xpos"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quantized_cache_reads_and_generates(backend: str, position: str) -> None:
    if backend in PACKAGES and importlib.util.find_spec(PACKAGES[backend]) is None:
        pytest.skip(f"{backend} is not installed")
    options, tolerance = BACKENDS[backend]
    model, ids = tiny_model(position_embedding=position), tokens(2, 30)
    cache = QuantizedCache(backend, model.config, **options)
    with torch.no_grad():
        whole = model(ids).logits
        pieces = [model(ids[:, :12], past_key_values=cache).logits]
        pieces += [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(12, ids.shape[1])]
    error = (torch.cat(pieces, dim=1) - whole).abs().max() / whole.abs().max()
    assert 1e-5 < error < tolerance
    assert cache.get_seq_length() == ids.shape[1]
    again = QuantizedCache(backend, model.config, **options)
    answer = model.generate(ids[:, :12], past_key_values=again, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert answer.shape == (2, 18)
