"""Importance against finite differences, and what measuring it leaves behind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stellarbyte.pruning.scores import scores
from stellarbyte_torch.pruning.importance import measure_importance

from ..tiny import tiny_model, tokens


def batches(count: int = 2):
    for seed in range(count):
        ids = tokens(2, 8, seed=seed)
        labels = ids.clone()
        labels[:, -2:] = -100
        yield {"input_ids": ids, "labels": labels}


def head(model: Any, layer: int, number: int) -> tuple[Any, Callable[[Any, Any], Any]]:
    """A module before whose call a head's output is scaled, and how."""
    H = model.config.head_dim

    def scale(inputs: Any, gate: Any) -> Any:
        scaled = inputs[0].clone()
        scaled[..., number * H : (number + 1) * H] *= gate[..., None]
        return (scaled,)

    return model.model.layers[layer].self_attn.o_proj, scale


def channel(model: Any, layer: int, number: int) -> tuple[Any, Callable[[Any, Any], Any]]:
    def scale(inputs: Any, gate: Any) -> Any:
        scaled = inputs[0].clone()
        scaled[..., number] *= gate
        return (scaled,)

    return model.model.layers[layer].mlp.down_proj, scale


@pytest.mark.parametrize(("kind", "places"), [(head, ((0, 1), (1, 3))), (channel, ((0, 7), (1, 40)))])
def test_importance_is_what_the_loss_would_change_by_to_first_order(kind: Any, places: Any) -> None:
    """A piece's output scaled up and down at one token, by finite differences of the summed loss."""
    model = tiny_model(num_key_value_heads=2)
    (batch,) = batches(1)
    step = 1e-2

    @torch.no_grad()
    def loss(layer: int, number: int, row: int, token: int, value: float) -> float:
        module, scale = kind(model, layer, number)
        gate_BT = torch.ones(2, 8)
        gate_BT[row, token] = value
        hook = module.register_forward_pre_hook(lambda _, inputs: scale(inputs, gate_BT))
        try:
            logits = model(batch["input_ids"]).logits[:, :-1]
        finally:
            hook.remove()
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
        ).item()

    found = scores(measure_importance(model, [batch]), "taylor")
    measured = found.heads if kind is head else found.channels
    for layer, number in places:
        slopes = [
            abs(loss(layer, number, row, t, 1 + step) - loss(layer, number, row, t, 1 - step)) / (2 * step)
            for row in range(2)
            for t in range(8)
        ]
        # Of the 8 tokens six have a label, of which one is the first, that nothing predicts.
        assert measured[layer][number] == pytest.approx(sum(slopes) / 10, rel=5e-3)


def test_what_is_pruned_has_no_importance_and_the_rest_has_some() -> None:
    model = tiny_model(pruned_heads=((1,), (0, 1)), intermediate_size=(48, 20))
    found = scores(measure_importance(model, batches()), "taylor")
    assert [np.flatnonzero(layer).tolist() for layer in found.heads] == [[0, 2, 3], [2, 3]]
    assert [len(layer) for layer in found.channels] == [48, 20]
    assert all((layer > 0).all() for layer in found.channels)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model(hidden_dropout=0.5).train()
    model.requires_grad_(False)
    first = measure_importance(model, batches())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.model.layers[0].self_attn.o_proj._forward_pre_hooks
    again = measure_importance(model, batches())
    assert np.array_equal(first.heads, again.heads), "nothing is dropped meanwhile"


def test_padding_does_not_count() -> None:
    model = tiny_model()
    (batch,) = batches(1)
    padded = {
        name: torch.nn.functional.pad(x, (0, 3), value=-100 if name == "labels" else 2) for name, x in batch.items()
    }
    mask = torch.nn.functional.pad(torch.ones_like(batch["input_ids"]), (0, 3))
    plain, found = measure_importance(model, [batch]), measure_importance(model, [padded | {"attention_mask": mask}])
    for name in ("heads", "head_squares", "layer", "layer_angle"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-4, atol=1e-7)


def test_the_least_important_is_the_one_to_miss_least() -> None:
    """On the loss itself: not a law, but what the scores are for."""
    model = tiny_model(num_hidden_layers=1, num_key_value_heads=4)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, 8:16] *= 0.01
        model.model.layers[0].mlp.down_proj.weight[:, 5] *= 0.01
    found = measure_importance(model, batches())
    for importance in ("taylor", "wanda"):
        assert scores(found, importance).heads[0].argmin() == 1
        assert scores(found, importance).channels[0].argmin() == 5
