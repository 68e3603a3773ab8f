"""A quantised folder loads as floats, with or without rounded inputs, quietly, and as a model that trains."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        (
            {"config_groups": {"a": {"targets": ["Linear"], "format": "magic"}}},
            "a.format is 'magic', which compressed-",
        ),
        ({"quantization_status": 3}, "quantization_status is 3, which compressed-tensors refuses"),
        ({"ignore": []}, "layers that quantization_config.ignore does not name lack codes"),
    ],
)
def test_what_a_stranger_s_config_may_say(folders, tmp_path, changes, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        load_model(_changed(folders["ours", "w4a16"][1], tmp_path, lambda fields: fields.update(changes)), "cpu")


def test_what_it_says_is_held_against_the_codes(folders, tmp_path, subtests) -> None:
    for part, changes, sentence in (
        (
            "weights",
            {"group_size": 3},
            r"group_0\.weights\.group_size is 3, but model\.layers\.0\.\S+ has 4 scales a row",
        ),
        ("weights", {"group_size": 10**12}, "group_size is 1000000000000, but"),
        ("weights", {"group_size": "8"}, "group_size is '8', expected a number of channels"),
        ("weights", {"num_bits": 3}, "num_bits is 3, but .* words of 32 bits for its"),
        ("weights", {"num_bits": 10**12}, "num_bits is 1000000000000, expected a number from 1 to 16"),
        ("weights", {"strategy": "magic"}, r"weights\.strategy is 'magic', which compressed-tensors refuses"),
        ("weights", {"actorder": "magic"}, r"weights\.actorder is 'magic', which compressed-tensors refuses"),
        ("weights", {"symmetric": False}, "symmetric is false, but there is no .*weight_zero_point"),
        ("weights", None, r"group_0\.weights is null, but model\.layers\.0"),
        ("input_activations", {"num_bits": 8}, r"input_activations\.dynamic is false, but there is no .*input_scale"),
        ("input_activations", 3, "input_activations is 3, expected a mapping or null"),
    ):

        def change(fields: dict[str, Any], part: str = part, changes: Any = changes) -> None:
            group = fields["config_groups"]["group_0"]
            group[part] = {**(group[part] or {}), **changes} if isinstance(changes, dict) else changes

        with subtests.test(sentence), pytest.raises(UserError, match=sentence):
            load_model(_changed(folders["ours", "w4a16"][1], tmp_path, change), "cpu")


def test_with_several_groups_codes_may_fit_any_of_them(folders, tmp_path) -> None:
    def change(fields: dict[str, Any]) -> None:
        other = json.loads(json.dumps(fields["config_groups"]["group_0"]))
        other["targets"], other["weights"]["num_bits"] = ["Nothing"], 8
        fields["config_groups"] = {"other": other, **fields["config_groups"]}

    load_model(_changed(folders["ours", "w4a16"][1], tmp_path, change), "cpu")


def _changed(folder: Path, home: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a folder whose quantization_config is changed."""
    for path in folder.iterdir():
        (home / path.name).write_bytes(path.read_bytes())
    fields = json.loads((folder / "config.json").read_text())
    change(fields["quantization_config"])
    (home / "config.json").write_text(json.dumps(fields))
    return home


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
