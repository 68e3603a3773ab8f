"""One attention, whichever kernel of transformers computes it; and its window over packed documents."""

import pytest
import torch

from .tiny import SWITCHES, relative_error, tiny_model, tokens

KERNEL_SWITCHES = {
    "plain": {},
    **{name: SWITCHES[name] for name in ("window", "qk_norm", "pruned", "everything")},
    "none": {"position_embedding": "none", "sliding_window": 4},
    "one_kv_head": {"num_key_value_heads": 1, "sliding_window": 3},
}


@pytest.mark.parametrize("switch", KERNEL_SWITCHES)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.compiler.set_stance("force_eager")  # a compiled kernel a shape takes minutes, for the same mask
@torch.no_grad()
def test_eager_sdpa_and_flex_attention_agree(switch: str) -> None:
    """Flex attention's CPU kernel has no backward."""
    ids, mask = tokens(2, 24), torch.ones(2, 24, dtype=torch.long)
    ids[0, :5], mask[0, :5] = 2, 0
    packed = torch.cat([torch.arange(10), torch.arange(14)])[None].expand(2, -1)
    outputs = {}
    for attention in ("eager", "sdpa", "flex_attention"):
        model = tiny_model(attention, head_dim=16, **KERNEL_SWITCHES[switch])
        outputs[attention] = [
            model(ids).logits,
            model(ids, attention_mask=mask).logits[mask.bool()],
            model(ids, position_ids=packed, use_cache=False).logits,
        ]
    for attention in ("sdpa", "flex_attention"):
        for actual, expected in zip(outputs[attention], outputs["eager"], strict=True):
            assert relative_error(actual, expected) < 1e-5, attention


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_the_window_counts_slots_and_stays_inside_its_document(attention: str) -> None:
    """One layer without positions and with uniform values shows who is seen: query n sees m iff 0 <= n - m < W."""
    window, lengths = 3, (2, 6, 5)
    model = tiny_model("eager", num_hidden_layers=1, sliding_window=window)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    weights = model(tokens(1, 13), position_ids=positions, use_cache=False, output_attentions=True).attentions[0]
    distance = torch.arange(13)[:, None] - torch.arange(13)[None]
    expected = (distance >= 0) & (distance < window) & (document[:, None] == document[None])
    assert ((weights[0] > 0) == expected).all()
    model.set_attn_implementation(attention)
    alone = [model(part).logits for part in tokens(1, 13).split(lengths, dim=1)]
    packed = model(tokens(1, 13), position_ids=positions, use_cache=False).logits
    assert relative_error(packed, torch.cat(alone, dim=1)) < 1e-5


@torch.compiler.set_stance("force_eager")  # the refusal comes before the kernel, whose mask would be compiled first
def test_attention_dropout_is_for_training_alone() -> None:
    model = tiny_model("eager", attention_dropout=0.5, num_hidden_layers=1)
    ids = tokens(2, 16)
    assert torch.equal(model(ids).logits, tiny_model("eager", num_hidden_layers=1)(ids).logits)
    model.train()
    weights = model(ids, output_attentions=True).attentions[0]
    visible = torch.ones(16, 16, dtype=torch.bool).tril().expand_as(weights)
    assert 0.4 < (weights[visible] == 0).float().mean().item() < 0.6
    flex = tiny_model("flex_attention", attention_dropout=0.5, head_dim=16).train()
    with pytest.raises(ValueError, match="dropout"):
        flex(ids)


@torch.no_grad()
def test_a_windowed_cache_does_not_grow() -> None:
    model = tiny_model(sliding_window=4)
    outputs = model(tokens(1, 6))
    for _ in range(32 * 4):
        outputs = model(tokens(1, 1), past_key_values=outputs.past_key_values)
    assert all(layer.keys.shape[2] == 3 for layer in outputs.past_key_values.layers)
    assert outputs.past_key_values.get_seq_length() == 6 + 32 * 4
