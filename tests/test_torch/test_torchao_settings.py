"""What torchao computes with int8 weights is what our own grids say, and what it cannot is refused."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from stellarbyte import door
from stellarbyte.errors import UserError
from stellarbyte_torch.model_folder import load_model
from stellarbyte_torch.quantization.grid import Grid
from stellarbyte_torch.torchao_settings import Int8

from .exported import export
from .test_quantization.folders import SETTINGS, save_float, save_rounded
from .tiny import relative_error, tokens

pytest.importorskip("torchao")

IDS = tokens(2, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer; nobody may change it."""
    return export(tmp_path_factory.mktemp("floats") / "model")


def linears(model: Any) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def rounded_tokens(x: torch.Tensor) -> torch.Tensor:
    """Each token on a grid of its own, multiplied by 1 / scale as torchao does, which decides where two are as near."""
    scale = x.abs().amax(-1, keepdim=True) / 127.5
    return (x * (1 / scale)).round().clamp(-128, 127) * scale


@pytest.mark.parametrize("kind", get_args(Int8))
@torch.no_grad()
def test_it_computes_with_the_codes_of_our_grid(folder: Path, kind: Int8) -> None:
    exact: Any = load_model(folder, "cpu")
    model, heard = load_model(folder, "cpu", quantize=kind), []
    whole = linears(exact)
    for name, module in linears(model).items():
        weight: Any = module.weight
        if name == "lm_head":
            assert torch.equal(weight, whole[name].weight)
            continue
        original = whole[name].weight
        codes = Grid(8, None, symmetric=True).rounded(original, torch.float32).codes
        # A row's largest weight lies half-way between two codes, and torchao may take the other one.
        is_extreme = original.abs() == original.abs().amax(1, keepdim=True)
        assert torch.equal(codes[~is_extreme], weight.qdata[~is_extreme])
        module.register_forward_hook(lambda module, inputs, output: heard.append((module, inputs[0], output)))
    found = model(IDS).logits
    assert len(heard) == len(whole) - 1
    for module, x, y in heard:
        inputs = rounded_tokens(x) if kind == "int8-dynamic" else x
        assert relative_error(y, inputs @ module.weight.dequantize().T) < 1e-5
    assert 1e-3 < relative_error(found, exact(IDS).logits) < 0.2


def test_generate_takes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quantize", "int8-dynamic", "--max-new-tokens", "3"]
    assert door.main(["generate", str(folder), "--prompt", "the quick", *options]) == 0
    assert capsys.readouterr().out.startswith("the quick")


def test_a_quantised_folder_is_refused(tmp_path: Path) -> None:
    folder = save_rounded(save_float("ours", tmp_path / "floats"), SETTINGS["w4a16"], tmp_path / "q")
    with pytest.raises(UserError, match=r"--quantize int8 is for models of floats, and .* is quantised already"):
        load_model(folder, "cpu", quantize="int8")


def test_experts_are_refused(tmp_path: Path) -> None:
    folder = save_float("experts", tmp_path / "experts")
    with pytest.raises(UserError, match=r"--quantize int8 is for models without experts, .* `stellarbyte quantize`"):
        load_model(folder, "cpu", quantize="int8")


def test_weights_that_are_not_finite_are_still_seen(folder: Path, tmp_path: Path) -> None:
    model: Any = load_model(folder, "cpu")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds model\.layers\.1\.mlp\.up_proj\.weight with NaN"):
        load_model(tmp_path, "cpu", quantize="int8")
