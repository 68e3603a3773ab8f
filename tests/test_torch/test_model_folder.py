import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from stellarbyte.errors import UserError
from stellarbyte_torch.model_folder import load_model, load_tokenizer

from .lora_models import llama
from .tiny import tiny_model


def test_any_architecture_in_the_dtype_asked_for(tmp_path: Path) -> None:
    llama().to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    tiny_model().save_pretrained(tmp_path / "byte")
    model = load_model(tmp_path / "llama", "cpu")
    assert isinstance(model, LlamaForCausalLM) and not model.training
    assert model.dtype == torch.bfloat16
    assert load_model(tmp_path / "llama", "cpu", "float32").dtype == torch.float32
    assert load_model(tmp_path / "byte", "cpu").dtype == torch.float32


def test_code_of_its_own_is_neither_run_nor_asked_about(tmp_path: Path) -> None:
    """A question on standard input would take the first line of a script for its answer."""
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "c.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path)


def test_weights_that_are_missing_or_left_over(tmp_path: Path) -> None:
    llama(num_hidden_layers=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for layers, complaint in (
        (2, r"missing keys \['model\.layers\.1\."),
        (0, r"unexpected keys \['model\.layers\.0\."),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        with pytest.raises(UserError, match=complaint):
            load_model(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder: give a model's Hugging Face folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
