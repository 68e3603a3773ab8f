"""What a run with PiSSA or OLoRA saves, which has to be for the base as it was, in stock PEFT too."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model
from stellarbyte_torch.lora.start import write_for_plain_base
from test_torch.finetuning import LORA, config, model_folder, run
from test_torch.lora_models import MODELS, bits, is_unchanged
from test_torch.tiny import relative_error, tokens

IDS = tokens(2, 9)
FIELDS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj", "embed_tokens"]},
    "patterns and rslora": {
        **{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        **{"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}},
    },
    "beside whole modules": {"r": 2, "target_modules": ["q_proj"], "train_norms": True, "train_head": True},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
@pytest.mark.parametrize("name", FIELDS)
def test_it_is_for_the_base_as_it_was(start: str, name: str, tmp_path: Path) -> None:
    kind = "byte" if name == "plain" else "llama"
    model: Any = apply_lora_to_model(MODELS[kind](), LoRAConfig(**FIELDS[name], init_lora_weights=start)).eval()
    assert relative_error(model(input_ids=IDS).logits, MODELS[kind]()(input_ids=IDS).logits) < 1e-5
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:  # as training would
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    write_for_plain_base(model, tmp_path)
    write_for_plain_base(model.get_base_model(), tmp_path)  # a model without adapters has nothing to rewrite

    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["init_lora_weights"] is True and fields["r"] == 2 * FIELDS[name]["r"]
    stock = peft.PeftModel.from_pretrained(MODELS[kind](), tmp_path).eval()
    assert relative_error(stock(input_ids=IDS).logits, expected) < 1e-5
    base = MODELS[kind]()
    before = bits(base)
    manager = LoRAManager(base)
    manager.register("x", tmp_path)
    manager.activate("x")
    assert relative_error(manager.model(input_ids=IDS).logits, expected) < 1e-5
    manager.deactivate()
    assert is_unchanged(base, before)


def test_a_run_s_adapter_has_the_loss_that_was_told(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    summary, _ = run(config(folder, tmp_path / "run", lora={**LORA, "init_lora_weights": "pissa"}))
    stock = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "run" / "adapter")
    assert stock.peft_config["default"].r == 2 * LORA["r"]
    stock.merge_and_unload().save_pretrained(tmp_path / "merged")
    (tmp_path / "merged" / "chat.jsonl").write_text((folder / "chat.jsonl").read_text())
    changes: dict[str, Any] = {"data": {"tokenizer": str(folder)}, "training": {"max_steps": 1}}
    after, _ = run(config(tmp_path / "merged", tmp_path / "again", **changes))
    assert after["validation_loss_before"] == pytest.approx(summary["validation_loss_after"], rel=1e-4)
