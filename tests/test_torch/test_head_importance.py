"""Head importance against finite differences, and what it leaves behind."""

import pytest
import torch

from stellarbyte_torch.head_importance import head_importance

from .tiny import tiny_model, tokens


def batches(count: int = 2):
    for seed in range(count):
        ids = tokens(2, 8, seed=seed)
        labels = ids.clone()
        labels[:, -2:] = -100
        yield {"input_ids": ids, "labels": labels}


def test_importance_is_what_the_loss_would_change_by_to_first_order() -> None:
    """One head's output scaled up and down at one token, by finite differences of the summed loss."""
    model = tiny_model(num_key_value_heads=2)
    (batch,) = batches(1)
    H, step = model.config.head_dim, 1e-2

    def loss(layer: int, head: int, row: int, token: int, gate: float) -> float:
        def scale(_module, inputs):
            activation = inputs[0].clone()
            activation[row, token, head * H : (head + 1) * H] *= gate
            return (activation,)

        hook = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(scale)
        try:
            with torch.no_grad():
                logits = model(batch["input_ids"]).logits[:, :-1]
        finally:
            hook.remove()
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
        ).item()

    scores = head_importance(model, [batch])
    labelled = 5  # of 8 tokens: six have a label, of which one is the first, that nothing predicts
    for layer, head in ((0, 1), (1, 3)):
        slopes = [
            abs(loss(layer, head, row, t, 1 + step) - loss(layer, head, row, t, 1 - step)) / (2 * step)
            for row in range(2)
            for t in range(labelled)
        ]
        assert scores[layer][head].item() == pytest.approx(sum(slopes) / (2 * labelled), rel=5e-3)


def test_pruned_models_are_scored_head_by_head_of_those_that_are_left() -> None:
    model = tiny_model()
    whole = head_importance(model, batches())
    model.prune_heads({0: [1], 1: [0, 1]})
    left = head_importance(model, batches())
    assert [len(scores) for scores in whole] == [4, 4]
    assert [len(scores) for scores in left] == [3, 2]
    assert all((scores > 0).all() for scores in left)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model(hidden_dropout=0.5).train()
    model.requires_grad_(False)
    first = head_importance(model, batches())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.model.layers[0].self_attn.o_proj._forward_pre_hooks
    again = head_importance(model, batches())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "nothing is dropped meanwhile"


def test_the_least_important_head_is_the_one_to_miss_least() -> None:
    """On the loss itself: not a law, but what the scores are for."""
    model = tiny_model(num_hidden_layers=1, num_key_value_heads=4)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, 8:16] *= 0.01
    (scores,) = head_importance(model, batches())
    assert scores.argmin() == 1
