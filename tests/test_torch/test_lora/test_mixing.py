"""Adapters with weights: nothing of one at weight 0, and sums that are sums."""

from typing import Any

import peft
import pytest
import torch
from torch import nn

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager
from test_torch.lora_models import bits, fill, is_unchanged, llama
from test_torch.tiny import relative_error, tiny_model, tokens

IDS = tokens(2, 9)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "up_proj"]},
    "rslora": {"target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "dora_embeddings": {"target_modules": ["embed_tokens"], "use_dora": True},
    "nonlinear": {"target_modules": ["q_proj", "up_proj"], "activation": "sigmoid"},
    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(model: nn.Module, name: str, seed: int = 3) -> None:
    """Also magnitudes and whole modules, as training would."""
    fill(model, name, seed)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if name in key.split(".") and ("magnitude" in key or "modules_to_save" in key or "trainable_tokens" in key):
            parameter.data = parameter.data.abs() + torch.rand(parameter.shape, generator=generator)


def manager_of(base: nn.Module, *kinds: str) -> LoRAManager:
    manager = LoRAManager(base)
    for seed, kind in enumerate(kinds):
        manager.register(kind, LoRAConfig(r=4, **KINDS[kind]))
        trained(manager.model, kind, seed)
    return manager


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("left_out", ["tokens", "dora_embeddings"])  # which PEFT cannot put on one matrix
def test_at_weight_0_each_kind_is_the_base_to_the_bit(left_out: str) -> None:
    base = tiny_model()
    expected, before = logits(base), bits(base)
    others = [kind for kind in KINDS if kind != left_out]
    manager = manager_of(base, *others)
    for kind in others:
        manager.activate(kind)
        assert not torch.equal(logits(manager.model), expected), kind
        for weight in (0.0, -0.0, 0):
            manager.activate({kind: weight})
            assert torch.equal(logits(manager.model), expected), kind
            assert manager.active == {kind: 0.0}
        with pytest.raises(UserError, match="no adapter is active, so there is nothing to merge"):
            manager.merge()
        manager.activate("lora")
        alone = logits(manager.model)
        if kind != "lora":
            manager.activate(
                {kind: 0.0, "lora": 1.0, **{other: 0.0 for other in others if other not in (kind, "lora")}}
            )
            assert torch.equal(logits(manager.model), alone), kind
    manager.deactivate()
    assert torch.equal(logits(manager.model), expected) and is_unchanged(base, before)


def updates(kinds: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Of each adapter by itself, what PEFT's own merge adds to the base's weights."""
    found = {}
    for seed, kind in enumerate(kinds):
        model = peft.get_peft_model(llama(), peft.LoraConfig(r=4, **KINDS[kind]))
        trained(model, "default", seed)
        merged = dict(model.merge_and_unload().named_parameters())
        found[kind] = {name: merged[name].data - value for name, value in bits(llama()).items()}
    return found


@pytest.mark.parametrize(
    "weights", [{"dora": 0.5}, {"dora": -2.0}, {"lora": 0.7, "dora": 0.3}, {"dora": 1.0, "rslora": -0.4}]
)
def test_updates_are_scaled_and_added_up(weights: dict[str, float]) -> None:
    kinds = ["lora", "dora", "rslora"]
    manager = manager_of(llama(), *kinds)
    expected = bits(llama())
    for kind, of_kind in updates(kinds).items():
        for name, update in of_kind.items():
            expected[name] += weights.get(kind, 0.0) * update
    by_hand = llama()
    by_hand.load_state_dict(expected)
    manager.activate(weights)
    beside = logits(manager.model)
    assert relative_error(beside, logits(by_hand)) < 1e-5
    manager.merge()
    assert relative_error(logits(manager.model), logits(by_hand)) < 1e-5
    manager.unmerge()
    assert torch.equal(logits(manager.model), beside)
    manager.activate("dora")  # whose weight is 1 again
    alone = peft.get_peft_model(llama(), peft.LoraConfig(r=4, **KINDS["dora"])).eval()
    trained(alone, "default", 1)
    assert torch.equal(logits(manager.model), logits(alone))


@pytest.mark.filterwarnings("ignore")
def test_what_does_not_scale_or_add_up_is_refused() -> None:
    manager = manager_of(tiny_model(), "lora", "whole", "tokens")
    on_embeddings = manager_of(tiny_model(), "dora_embeddings")
    on_embeddings.register("more_embeddings", LoRAConfig(r=2, target_modules=["embed_tokens"]))
    for weights, sentence in (
        ({"lora": float("nan")}, "the weight of adapter 'lora' is nan: give a finite number"),
        ({"lora": float("-inf")}, "the weight of adapter 'lora' is -inf"),
        ({"whole": 0.5}, "adapter 'whole' brings whole modules along, which weight 0.5 cannot scale: give it 1 or 0"),
        ({"tokens": 2.0}, "adapter 'tokens' brings whole modules along"),
        ({"tokens": 1.0, "whole": 1.0}, "which do not add up"),
        ({"dora_embeddings": 0.5}, "has DoRA on a Embedding, where it neither scales nor adds up"),
        ({"dora_embeddings": 1.0, "more_embeddings": 1.0}, "has DoRA on a Embedding"),
    ):
        chosen = on_embeddings if "dora_embeddings" in weights else manager
        with pytest.raises(UserError, match=sentence):
            chosen.activate(weights)
        assert chosen.active == {}
    manager.activate({"whole": 1.0, "tokens": 0.0, "lora": 0.5})
