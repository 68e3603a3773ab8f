"""The sparse feed-forward against a loop over tokens, and the routers' losses against their formulas."""

import math
from typing import Any

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from stellarbyte_torch import ByteConfig
from stellarbyte_torch.modeling_stellarbyte import ByteSparseMoeBlock, choose_experts

from .tiny import TINY, relative_error, tiny_model, tokens

EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def block(implementation: str = "grouped_mm", **changes: Any) -> ByteSparseMoeBlock:
    model = tiny_model(num_hidden_layers=1, **{**EXPERTS, **changes})
    model.set_experts_implementation(implementation)
    return model.model.layers[0].mlp


def one_by_one(moe: ByteSparseMoeBlock, x_BTD: torch.Tensor, config: ByteConfig) -> torch.Tensor:
    """Token by token, slot by slot, as one would explain it."""
    B, T, _ = x_BTD.shape
    E, k = config.num_experts, config.num_experts_per_tok
    rows = []
    for b in range(B):
        served = [0] * E
        for t in range(T):
            x = x_BTD[b, t]
            logits = [(moe.gate.weight[e] @ x).item() for e in range(E)]
            best = sorted(range(E), key=lambda e, logits=logits: (-logits[e], e))[:k]
            probabilities = torch.stack([moe.gate.weight[e] @ x for e in range(E)]).softmax(0)
            weights = probabilities[best]
            if config.norm_topk_prob:
                weights = weights / weights.sum()
            y = torch.zeros_like(x)
            for weight, e in zip(weights, best, strict=True):
                served[e] += 1
                factor = config.moe_capacity_factor if moe.training else None
                if factor is not None and served[e] > math.ceil(factor * k * T / E):
                    continue
                gate, up = (moe.experts.gate_up_proj[e] @ x).chunk(2)
                y = y + weight * (moe.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
            if moe.shared_experts is not None:
                y = y + moe.shared_experts(x)
            rows.append(y)
    return torch.stack(rows).view_as(x_BTD)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_topk_prob": False},
        {"num_experts_per_tok": 1},
        {"num_experts_per_tok": 5},
        {"num_shared_experts": 2},
        {"moe_capacity_factor": 0.7},
        {"moe_capacity_factor": 1.0, "num_experts_per_tok": 3, "num_shared_experts": 1},
    ],
    ids=str,
)
def test_block_equals_a_loop_over_tokens(changes: dict[str, Any], implementation: str) -> None:
    moe = block(implementation, **changes).train()
    config = ByteConfig(**{**TINY, **EXPERTS, **changes})
    # Rows that differ, so that one of them fills up where another does not.
    inputs = [
        torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(4)).add_(0.3).requires_grad_() for _ in "ab"
    ]
    actual, expected = moe(inputs[0]), one_by_one(moe, inputs[1], config)
    assert relative_error(actual, expected) < 1e-5
    direction = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(5))
    parameters = list(moe.parameters())
    ours = torch.autograd.grad((actual * direction).sum(), [inputs[0], *parameters])
    theirs = torch.autograd.grad((expected * direction).sum(), [inputs[1], *parameters], allow_unused=True)
    largest = max(gradient.abs().max() for gradient in theirs if gradient is not None)
    for our_gradient, their_gradient in zip(ours, theirs, strict=True):
        # None and rounding around 0: one expert with weight 1, where the router does not matter.
        expected = torch.zeros_like(our_gradient) if their_gradient is None else their_gradient
        scale = torch.maximum(expected.abs().max(), largest * 1e-2)
        assert (our_gradient - expected).abs().max() < 1e-5 * scale


def test_grouped_matmuls_are_the_default() -> None:
    assert tiny_model(**EXPERTS).config._experts_implementation == "grouped_mm"


def test_exact_ties_go_to_the_lower_expert() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (400, 40), generator=generator).float()
    expected = [sorted(range(40), key=lambda e, row=row: (-row[e], e))[:7] for row in logits.tolist()]
    assert choose_experts(logits, 7).tolist() == expected
    moe = block(num_experts=4)
    with torch.no_grad():
        moe.gate.weight.copy_(moe.gate.weight[[0, 1, 0, 1]])
    _, _, experts = moe.gate(torch.randn(50, 32, generator=generator))
    assert {tuple(pair) for pair in experts.tolist()} == {(0, 2), (1, 3)}


def test_choice_is_by_logits_where_probabilities_round_alike() -> None:
    logits = torch.tensor([[100.0, 100.00001, -100.0, -90.0]])
    assert logits.softmax(-1)[0, 2] == logits.softmax(-1)[0, 3] == 0
    assert choose_experts(logits, 3).tolist() == [[1, 0, 3]]


def test_capacity_is_for_training_alone_and_spares_padding() -> None:
    limited, free = block(moe_capacity_factor=0.5), block()
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(limited(x), free(x))
    limited.train()
    assert not torch.equal(limited(x), free(x))
    # Padding on the left takes nobody's place: as if it were not there, but for C, which counts every slot.
    mask = torch.ones(2, 12)
    mask[:, :4] = 0
    experts = torch.zeros(2, 12, 1, dtype=torch.long)
    place = limited.has_place(experts, mask)
    C = math.ceil(0.5 * 1 * 12 / 5)
    assert place[:, 4 : 4 + C].all()
    assert not place[:, 4 + C :].any()
    assert limited.has_place(experts, None)[:, :C].all()


def test_the_router_stays_in_float32() -> None:
    moe = block().to(torch.bfloat16)
    x = torch.randn(30, 32).to(torch.bfloat16)
    logits, weights, experts = moe.gate(x)
    assert logits.dtype is weights.dtype is torch.float32
    exact = x.double() @ moe.gate.weight.double().T
    assert relative_error(logits, exact) < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(moe.gate(x)[0], logits)
        assert moe(x[None]).dtype is torch.bfloat16
    assert torch.equal(experts, exact.float().sort(dim=-1, descending=True, stable=True).indices[:, :2])


def test_one_layer_and_one_row_give_transformers_balance_loss() -> None:
    model = tiny_model(num_hidden_layers=1, **EXPERTS)
    outputs = model(tokens(1, 30), output_router_logits=True)
    assert [tuple(logits.shape) for logits in outputs.router_logits] == [(30, 5)]
    assert relative_error(outputs.aux_loss, load_balancing_loss_func(outputs.router_logits, 5, 2)) < 1e-6


def test_losses_are_their_formulas() -> None:
    model = tiny_model(num_hidden_layers=3, **EXPERTS, router_aux_loss_coef=0.5, router_z_loss_coef=0.25)
    ids, mask = tokens(3, 10), torch.ones(3, 10, dtype=torch.long)
    mask[0, :4], mask[1, 7:] = 0, 0
    outputs = model(ids, attention_mask=mask, labels=ids, output_router_logits=True)
    balance, z, tokens_seen = 0.0, 0.0, 0
    for b in range(3):
        real = mask[b].bool()
        count = int(real.sum())
        tokens_seen += count
        for logits in outputs.router_logits:
            row = logits.view(3, 10, 5)[b][real]
            f = torch.nn.functional.one_hot(row.topk(2).indices, 5).sum(1).float().mean(0)
            assert f.sum().item() == pytest.approx(2)
            balance += count * 5 * (f * row.softmax(-1).mean(0)).sum().item() / 3
            z += row.logsumexp(-1).square().sum().item() / 3
    assert outputs.aux_loss.item() == pytest.approx(balance / tokens_seen, rel=1e-6)
    assert outputs.z_loss.item() == pytest.approx(z / tokens_seen, rel=1e-6)
    plain = model(ids, attention_mask=mask, labels=ids)
    assert plain.aux_loss is plain.z_loss is plain.router_logits is None
    expected = plain.loss + 0.5 * outputs.aux_loss + 0.25 * outputs.z_loss
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    outputs.loss.backward()
    assert all((layer.mlp.gate.weight.grad != 0).any() for layer in model.model.layers)


def test_the_config_may_ask_for_router_logits_and_a_dense_model_has_none() -> None:
    ids = tokens(2, 6)
    outputs = tiny_model(**EXPERTS, output_router_logits=True)(ids, labels=ids)
    assert len(outputs.router_logits) == 2
    assert outputs.aux_loss is not None
    dense = tiny_model()(ids, labels=ids, output_router_logits=True)
    assert dense.router_logits == ()
    assert dense.aux_loss is None
    assert torch.equal(dense.loss, tiny_model()(ids, labels=ids).loss)


def test_losses_while_decoding_count_the_new_tokens() -> None:
    model = tiny_model(**EXPERTS, num_hidden_layers=1)
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    full = model(ids, attention_mask=mask, output_router_logits=True)
    cached = model(ids[:, :7], attention_mask=mask[:, :7])
    step = model(ids[:, 7:], attention_mask=mask, past_key_values=cached.past_key_values, output_router_logits=True)
    last = full.router_logits[0].view(2, 8, 5)[:, 7]
    assert step.z_loss.item() == pytest.approx(last.logsumexp(-1).square().mean().item(), rel=1e-5)


def test_saved_and_loaded(tmp_path) -> None:
    model = tiny_model(**EXPERTS, num_shared_experts=1)
    model.save_pretrained(tmp_path)
    ids = tokens(2, 9)
    assert torch.equal(type(model).from_pretrained(tmp_path)(ids).logits, model(ids).logits)
