"""Laws 1 and 2 of the design: nothing sees the future or another document, and a cache changes nothing."""

from typing import Any

import pytest
import torch
from transformers import StaticCache

from .tiny import POSITIONS, SWITCHES, relative_error, tiny_model, tokens

LENGTH = 12
ALL = {**POSITIONS, **SWITCHES}
# In every combination of switches the laws are stated by tests/test_convert/test_parity.py, which takes sdpa.
ATTENTIONS = [pytest.param("eager", marks=pytest.mark.long), "sdpa"]


def window_of(model: Any) -> int:
    return model.config.sliding_window or LENGTH


def gradient_reach(model, positions: torch.Tensor | None, use_cache: bool = False) -> torch.Tensor:
    """[T, S]: the largest |d logits[t] / d embedding[s]|."""
    embeds = model.get_input_embeddings()(tokens(1, LENGTH)).detach().requires_grad_()
    logits = model(inputs_embeds=embeds, position_ids=positions, use_cache=use_cache).logits
    rows = []
    for t in range(LENGTH):
        # A random direction: the sum of all logits could cancel.
        direction = torch.randn(logits.shape[-1], generator=torch.Generator().manual_seed(t))
        (gradient,) = torch.autograd.grad(logits[0, t] @ direction, embeds, retain_graph=True)
        rows.append(gradient[0].abs().amax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("switch", ALL)
def test_law_1_causality(attention: str, switch: str) -> None:
    model = tiny_model(attention, **ALL[switch])
    reach = gradient_reach(model, None)
    # A window of W reaches W - 1 tokens back in each of the two layers.
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().triu(-2 * (window_of(model) - 1))
    assert (reach[~allowed] == 0).all()
    assert (reach[allowed] > 0).all()


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("switch", ALL)
def test_law_1_packed_documents(attention: str, switch: str, use_cache: bool) -> None:
    lengths = (5, 1, 6)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    model = tiny_model(attention, **ALL[switch])
    reach = gradient_reach(model, positions, use_cache)
    allowed = (document[:, None] == document[None, :]).tril().triu(-2 * (window_of(model) - 1))
    assert (reach[~allowed] == 0).all()
    assert (reach[allowed] > 0).all()


@pytest.mark.parametrize("switch", ["xpos", "window", "experts", "everything"])
@torch.no_grad()
def test_packed_documents_equal_documents_alone(switch: str) -> None:
    model = tiny_model(**ALL[switch])
    first, second = tokens(1, 7, seed=1), tokens(1, 5, seed=2)
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    packed = model(torch.cat([first, second], dim=1), position_ids=positions).logits
    alone = torch.cat([model(first).logits, model(second).logits], dim=1)
    assert relative_error(packed, alone) < 1e-5


def left_padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows, the first with 4 tokens of padding on its left: ids, mask, positions that start at the first token."""
    ids, mask = tokens(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    ids[0, :4], mask[0, :4] = 2, 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def cache_for(kind: str, model: Any) -> StaticCache | None:
    return StaticCache(config=model.config, max_cache_len=LENGTH + 3) if kind == "static" else None


@pytest.mark.parametrize("kind", [pytest.param("dynamic", marks=pytest.mark.long), "static"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("switch", ALL)
@torch.no_grad()
def test_law_2_cache_equals_full_forward(kind: str, attention: str, switch: str) -> None:
    """Every prefix length: prefill so many tokens, then the rest one by one."""
    model = tiny_model(attention, **ALL[switch])
    ids = tokens(2, LENGTH)
    full = model(ids, use_cache=False).logits
    for prefix in range(1, LENGTH + 1):
        outputs = model(ids[:, :prefix], past_key_values=cache_for(kind, model), use_cache=True)
        pieces = [outputs.logits]
        for t in range(prefix, LENGTH):
            outputs = model(ids[:, t : t + 1], past_key_values=outputs.past_key_values)
            pieces.append(outputs.logits)
        assert relative_error(torch.cat(pieces, dim=1), full) < 1e-5, prefix


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("switch", [*POSITIONS, "none", "window", "window_1", "everything"])
@torch.no_grad()
def test_law_2_with_left_padding(kind: str, attention: str, switch: str) -> None:
    model = tiny_model(attention, **ALL[switch])
    ids, mask, positions = left_padded()
    # The short row without its padding: padding must not be felt either.
    full_short, full_long = model(ids[:1, 4:]).logits, model(ids[1:]).logits
    for prefix in range(5, LENGTH + 1):
        outputs = model(
            ids[:, :prefix],
            attention_mask=mask[:, :prefix],
            position_ids=positions[:, :prefix],
            past_key_values=cache_for(kind, model),
            use_cache=True,
        )
        pieces = [outputs.logits]
        for t in range(prefix, LENGTH):
            outputs = model(
                ids[:, t : t + 1],
                attention_mask=mask[:, : t + 1],
                position_ids=positions[:, t : t + 1],
                past_key_values=outputs.past_key_values,
            )
            pieces.append(outputs.logits)
        logits = torch.cat(pieces, dim=1)
        assert relative_error(logits[:1, 4:], full_short) < 1e-5, prefix
        assert relative_error(logits[1:], full_long) < 1e-5, prefix


@pytest.mark.parametrize("switch", ["xpos", "window", "window_1", "pruned"])
@torch.no_grad()
def test_a_prompt_may_enter_the_cache_in_chunks(switch: str) -> None:
    model = tiny_model(**ALL[switch])
    ids = tokens(2, LENGTH)
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:], past_key_values=first.past_key_values)
    assert relative_error(torch.cat([first.logits, second.logits], dim=1), model(ids).logits) < 1e-5


@pytest.mark.parametrize("switch", ALL)
@torch.no_grad()
def test_forward_step_equals_the_full_forward(switch: str) -> None:
    model = tiny_model(**ALL[switch])
    ids = tokens(2, LENGTH)
    full = model(ids, use_cache=False).logits
    out, past_k, past_v = model.forward_step(ids[:, :4])
    pieces = [out]
    for t in range(4, LENGTH):
        out, past_k, past_v = model.forward_step(ids[:, t : t + 1], past_k, past_v)
        assert out.shape == (2, 1, 97)
        pieces.append(out)
    assert len(past_k) == len(past_v) == 2
    for layer, keys in zip(model.model.layers, past_k, strict=True):
        assert keys.shape == (2, len(layer.self_attn.heads[1]), LENGTH, 8)
    assert relative_error(torch.cat(pieces, dim=1), full) < 1e-5
