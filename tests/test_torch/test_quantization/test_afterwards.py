"""A quantised folder through the house: LoRA on top, merged into floats, generate, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch

from stellarbyte import door
from stellarbyte.errors import UserError
from stellarbyte_torch.finetune.base_model import load_base, load_base_config
from stellarbyte_torch.lora import load_lora
from stellarbyte_torch.lora.merging import merge
from stellarbyte_torch.model_folder import load_model

from ..finetuning import config, model_folder, run
from ..tiny import relative_error, tokens
from .folders import SETTINGS, save_float, save_rounded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised model with chat data; nobody may change it."""
    home = tmp_path_factory.mktemp("quantised")
    return save_rounded(model_folder(home / "floats"), SETTINGS["w4a16"], home / "q")


@pytest.mark.long
def test_lora_learns_on_it_and_merges_into_floats(folder: Path, tmp_path: Path, capsys) -> None:
    summary, _ = run(config(folder, tmp_path / "run"))
    assert summary["validation_loss_after"] < summary["validation_loss_before"] - 0.5
    adapter = tmp_path / "run" / "adapter"
    assert door.main(["merge", str(folder), str(adapter), str(tmp_path / "merged")]) == 0
    assert "of floats: `stellarbyte quantize` makes it small again" in capsys.readouterr().out
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    ids, merged = tokens(2, 9), load_model(tmp_path / "merged", "cpu")
    with torch.no_grad():
        # As `chat` puts it on, where the layers still know that they are quantised.
        adapted = load_lora(load_model(folder, "cpu"), adapter)
        assert relative_error(merged(ids).logits, adapted(ids).logits) < 1e-5
    with pytest.raises(UserError, match="the base is quantised, so a merge would round the adapter"):
        merge(adapted)


def test_it_generates(folder: Path, capsys) -> None:
    assert door.main(["generate", str(folder), "--prompt", "the quick", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("the quick")


def test_a_second_quantisation_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"quantization int8 is for a base of floats, and .* set it to none"):
        load_base(str(folder), "auto", "int8")


def test_its_config_is_that_of_the_floats_which_train(folder: Path) -> None:
    assert not hasattr(load_base_config(str(folder)), "quantization_config")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quant_method": "evil"}, "quantization_config.quant_method is 'evil', which Transformers does not know"),
        ({"quant_method": 3}, "quantization_config.quant_method is 3, which Transformers does not know"),
        ({"targets": ["Nothing"]}, "does not fit its config.json: missing keys"),
        ({"group_size": 7}, "weights.group_size is 7, but model.layers.0"),
    ],
)
def test_a_config_of_other_codes_is_refused_in_one_sentence(change, sentence, tmp_path, capfd) -> None:
    folder = save_rounded(save_float("ours", tmp_path / "floats"), SETTINGS["w4a16"], tmp_path / "q")
    fields = json.loads((folder / "config.json").read_text())
    quantization = fields["quantization_config"]
    group = quantization["config_groups"]["group_0"]
    for name, value in change.items():
        owner = {"targets": group, "group_size": group["weights"]}.get(name, quantization)
        owner[name] = value
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_model(folder, "cpu")
    assert "compressed_tensors" not in capfd.readouterr().err
