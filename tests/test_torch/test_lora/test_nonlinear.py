"""Non-linear LoRA: what it computes, that it never merges, and that stock PEFT carries it or refuses it."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel
from torch import nn

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model, load_lora, merge_and_save
from stellarbyte_torch.lora.nonlinear import ACTIVATIONS
from test_torch.lora_models import MODELS, Mixed, fill, gpt2
from test_torch.tiny import relative_error, tiny_model, tokens

IDS = tokens(2, 9)
MODULES = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class ByHand(nn.Module):
    """W x + scaling · B act(A x), written out."""

    def __init__(
        self, base: nn.Linear, A: torch.Tensor, B: torch.Tensor, activation: nn.Module, scaling: float
    ) -> None:
        super().__init__()
        self.base, self.activation, self.scaling = base, activation, scaling
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scaling * (self.activation(x @ self.A.T) @ self.B.T)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_formula(kind: str, activation: str) -> None:
    config = LoRAConfig(r=4, lora_alpha=6, target_modules=["v_proj", "down_proj"], activation=activation)
    model = fill(apply_lora_to_model(MODELS[kind](), config))
    by_hand = MODELS[kind]()
    for name, module in list(by_hand.named_modules()):
        if name.endswith(("v_proj", "down_proj")):
            adapted = model.get_base_model().get_submodule(name)
            A, B = (getattr(adapted, f"lora_{letter}")["default"].weight.detach().clone() for letter in "AB")
            parent, _, child = name.rpartition(".")
            setattr(by_hand.get_submodule(parent), child, ByHand(module, A, B, MODULES[activation](), 6 / 4))
    outputs = [m(input_ids=IDS, labels=IDS) for m in (model, by_hand)]
    assert relative_error(outputs[0].logits, outputs[1].logits) < 1e-5
    for output in outputs:
        output.loss.backward()
    ours = model.get_base_model().model.layers[0].mlp.down_proj
    theirs = by_hand.model.layers[0].mlp.down_proj
    assert relative_error(ours.lora_A["default"].weight.grad, theirs.A.grad) < 1e-4
    assert relative_error(ours.lora_B["default"].weight.grad, theirs.B.grad) < 1e-4


def test_conv1d_layers_take_it_too() -> None:
    linear, bent = (
        fill(apply_lora_to_model(gpt2(), LoRAConfig(r=4, target_modules=["c_attn"], activation=activation)))
        for activation in (None, "relu")
    )
    assert bent.peft_config["default"].fan_in_fan_out
    assert not torch.equal(linear(input_ids=IDS).logits, bent(input_ids=IDS).logits)


@pytest.mark.parametrize("target", ["embedding", "convolution"])
def test_other_layers_are_refused(target: str) -> None:
    with pytest.raises(UserError, match="activation 'relu' works on linear layers only, and a target is a"):
        apply_lora_to_model(Mixed(), LoRAConfig(r=2, target_modules=["linear", target], activation="relu"))


def test_it_goes_through_pefts_own_folder(tmp_path: Path) -> None:
    config = LoRAConfig(r=4, target_modules=["q_proj", "up_proj"], activation="gelu", lora_dropout=0.1)
    model = fill(apply_lora_to_model(tiny_model(), config)).eval()
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["activation"] == "gelu"
    assert torch.equal(load_lora(tiny_model(), tmp_path)(input_ids=IDS).logits, expected)
    assert torch.equal(PeftModel.from_pretrained(tiny_model(), tmp_path)(input_ids=IDS).logits, expected)


@pytest.mark.long
def test_a_peft_that_does_not_know_it_refuses_the_folder(tmp_path: Path) -> None:
    config = LoRAConfig(r=4, target_modules=["q_proj"], activation="gelu")
    config.save_pretrained(tmp_path)
    code = f"import peft; peft.PeftConfig.from_pretrained({str(tmp_path)!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "KeyError: 'NONLINEAR_LORA'" in result.stderr


def test_linear_and_nonlinear_adapters_share_a_model() -> None:
    configs = {
        "linear": LoRAConfig(r=4, target_modules=["q_proj", "v_proj"]),
        "bent": LoRAConfig(r=2, target_modules=["q_proj", "up_proj"], activation="tanh"),
    }
    manager = LoRAManager(tiny_model())
    alone = {}
    for seed, (name, config) in enumerate(configs.items()):
        manager.register(name, config)
        fill(manager.model, name, seed)
        alone[name] = fill(apply_lora_to_model(tiny_model(), config), seed=seed).eval()(input_ids=IDS).logits
    for name, expected in alone.items():
        manager.activate(name)
        assert torch.equal(manager.model(input_ids=IDS).logits, expected)
    rows = manager.forward(input_ids=IDS, adapter_names=["linear", "bent"]).logits
    assert relative_error(rows[0], alone["linear"][0]) < 1e-5 and relative_error(rows[1], alone["bent"][1]) < 1e-5
    with pytest.raises(UserError, match="'bent' sets activation, which a compiled slot cannot imitate"):
        manager.compile(backend="eager")
    assert manager.names == ["linear", "bent"]


def test_it_never_merges(tmp_path: Path) -> None:
    manager = LoRAManager(base := tiny_model())
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    manager.register("linear", LoRAConfig(r=4, target_modules=["q_proj"]))
    manager.register("bent", LoRAConfig(r=4, target_modules=["q_proj"], activation="silu"))
    for name in ("linear", "bent"):
        fill(manager.model, name)
    sentence = "adapter 'bent' has activation 'silu' between A and B, so no matrix added to the base weight equals it"
    manager.activate({"linear": 1.0, "bent": 1.0})
    for merge in (
        manager.merge,
        lambda: manager.merge_and_save(tmp_path),
        lambda: merge_and_save(manager.model, tmp_path),
        lambda: manager.model.merge_adapter(["bent"]),
        lambda: manager.model.merge_adapter(["bent"], safe_merge=True),
    ):
        with pytest.raises(UserError, match=sentence):
            merge()
    now = {name.replace(".base_layer", ""): parameter for name, parameter in base.named_parameters()}
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert not manager.is_merged


def test_stock_peft_cannot_convert_it_to_an_ordinary_adapter() -> None:
    model = apply_lora_to_model(tiny_model(), LoRAConfig(r=4, target_modules=["q_proj"], activation="silu"))
    assert not model.supports_lora_conversion()
    assert apply_lora_to_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"])).supports_lora_conversion()
