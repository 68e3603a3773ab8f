"""Names of adapters: those that PEFT can hold work from first to last, the others get a sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model
from stellarbyte_torch.lora.names import check_adapter_name, near_name
from test_torch.lora_models import fill
from test_torch.tiny import tiny_model, tokens

IDS = tokens(2, 9)
GOOD = [
    "default",
    "a",
    "ora",
    "l",
    "B",
    "class",
    "import",
    "None",
    "my adapter",
    "v1_0",
    "x-y",
    "école",
    "春",
    "_x",
    "default2",
]
BAD: list[Any] = [
    *("v1.0", "", " ", ".", "..", "a/b", "/etc/x", "a\\b", "a\nb", "a\x00b", "x" * 101, 3, None),
    *("train", "keys", "update", "forward", "items", "pop", "type", "half", "_modules", "training", "named_parameters"),
    *("model", "layers", "0", "q_proj", "weight", "lm_head", "self_attn", "lora_A", "lora_B", "lora_embedding_A"),
    *("__base__", "compiled_slot"),
]  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore")
def test_good_names_work_from_first_to_last(tmp_path: Path) -> None:
    manager = LoRAManager(tiny_model())
    expected = {}
    for seed, name in enumerate(GOOD):
        manager.register(name, LoRAConfig(r=2, target_modules=["q_proj", "embed_tokens"], train_norms=seed % 3 == 0))
        fill(manager.model, name, seed)
    for name in GOOD:
        manager.activate(name)
        expected[name] = logits(manager.model)
    assert len({value.sum().item() for value in expected.values()}) == len(GOOD)
    for number, name in enumerate(GOOD):
        manager.save(name, tmp_path / str(number))
        assert torch.equal(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / str(number))), expected[name]), (
            name
        )
    for number, name in enumerate(GOOD):
        manager.delete(name)
        manager.register(name, tmp_path / str(number))
        manager.activate(name)
        assert torch.equal(logits(manager.model), expected[name]), name


def test_bad_names_get_a_sentence_and_another_name() -> None:
    base = tiny_model()
    manager = LoRAManager(base)
    for name in BAD:
        with pytest.raises(UserError, match=r"cannot name an adapter, as .*: choose another, such as '.+'") as refused:
            manager.register(name, LoRAConfig(r=2, target_modules=["q_proj"]))
        assert "\n" not in str(refused.value)
        check_adapter_name(str(refused.value).split("'")[-2], [name for name, _ in base.named_parameters()])
        with pytest.raises(UserError, match="cannot name an adapter"):
            apply_lora_to_model(base, LoRAConfig(r=2, target_modules=["q_proj"]), name)
    assert manager.names == [] and not any("lora" in name for name, _ in base.named_parameters())
    manager.register("x", LoRAConfig(r=2, target_modules=["q_proj"]))
    for register in (manager.register, lambda name, config: apply_lora_to_model(manager.model, config, name)):
        with pytest.raises(UserError, match="adapter name 'x' is in use: delete that adapter first"):
            register("x", LoRAConfig(r=2, target_modules=["q_proj"]))


def test_near_names() -> None:
    assert [near_name(text) for text in ("v1.0", "", "lr=1e-4", "train", "__base__", "a b", None, "lora_A")] == [
        *("v1_0", "adapter", "lr_1e-4", "train_adapter", "base_adapter", "a_b", "None", "A")
    ]
