"""A quantised folder loads as floats, with or without rounded inputs, quietly, and as a model that trains."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from stellarbyte.errors import UserError
from stellarbyte_torch import compressed_folder
from stellarbyte_torch.model_folder import load_model

from .test_quantization.folders import SETTINGS, faked, save_float, save_rounded
from .tiny import relative_error, tokens

CASES = (("ours", "w4a16"), ("ours", "w8a8"), ("experts", "w4a16"), ("experts", "w4a16_zero_points"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, Path]]:
    """(kind, settings) -> the folder before and after; nobody may change them."""
    home = tmp_path_factory.mktemp("compressed")
    bases = {kind: save_float(kind, home / kind) for kind in ("ours", "experts")}
    return {
        (kind, name): (bases[kind], save_rounded(bases[kind], SETTINGS[name], home / f"{kind}_{name}"))
        for kind, name in CASES
    }


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_its_codes_say(folders, case, capfd) -> None:
    base, folder = folders[case]
    model = load_model(folder, "cpu")
    assert all(hasattr(layer.self_attn.q_proj, "weight") for layer in model.model.layers)
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, faked(base, SETTINGS[case[1]], folder)(ids).logits)
    told = capfd.readouterr().err
    assert "ompressing" not in told and "quantization config" not in told


@pytest.mark.parametrize("case", CASES)
def test_dequantised_it_trains_and_saves_like_any_other(folders, case, tmp_path) -> None:
    _, folder = folders[case]
    model = load_model(folder, "cpu", dequantised=True)
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = load_model(tmp_path, "cpu")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
        if case[1] != "w8a8":  # whose inputs are rounded there
            assert relative_error(again(ids).logits, load_model(folder, "cpu")(ids).logits) < 1e-5


def test_without_the_library_one_sentence_says_what_to_install(folders, monkeypatch) -> None:
    _, folder = folders["ours", "w4a16"]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        compressed_folder, "find_spec", lambda name: None if name == "compressed_tensors" else find(name)
    )
    with pytest.raises(UserError, match=r"is quantised, and compressed-tensors.* pip install 'stellarbyte\[quant"):
        load_model(folder, "cpu")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"config_groups": None}, "config_groups is null, expected how each group of layers is quantised"),
        ({"config_groups": {"a": 3}}, "config_groups is a mapping, expected how each group"),
        ({"config_groups": {"a": {"targets": "Linear"}}}, "config_groups.a.targets is 'Linear', expected up to"),
        ({"ignore": ["re:("]}, "ignore.0 '\\(' is no regular expression"),
        pytest.param(
            {"ignore": ["re:(.*.*)*x"]}, "takes more than 1 second on the names of this model", marks=pytest.mark.long
        ),
        ({"config_groups": {"a": {"targets": ["Linear"], "format": "magic"}}}, "cannot be loaded"),
    ],
)
def test_what_a_stranger_s_config_may_say(folders, tmp_path, changes, sentence) -> None:
    _, folder = folders["ours", "w4a16"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=sentence):
        load_model(tmp_path, "cpu")


def test_a_damaged_scale_is_found(folders, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = folders["ours", "w4a16"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_scale"][3, 0] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.* NaN"):
        load_model(tmp_path, "cpu")
