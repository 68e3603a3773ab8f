import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from stellarbyte.errors import UserError
from stellarbyte_torch.model_folder import load_model, load_tokenizer

from .exported import export
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
    with pytest.raises(UserError, match="holds no tokenizer: copy the one there"):
        load_tokenizer(tmp_path)


def damaged(folder: Path, key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[key] = change(tensors[key]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    r"holds model\.norm\.weight with NaN or infinite numbers": lambda weight: weight.index_fill(
        0, torch.tensor([3]), float("nan")
    ),
    r"holds model\.norm\.weight with NaN or infinite": lambda weight: weight.index_fill(
        0, torch.tensor([0]), float("-inf")
    ),
    r"holds model\.norm\.weight as I32, expected one of F64, F32": lambda weight: weight.int(),
    r"holds model\.norm\.weight as I8, expected": lambda weight: weight.to(torch.int8),
    r"cannot be loaded|mismatched keys": lambda weight: weight[:-1],
}


@pytest.mark.parametrize("complaint", DAMAGE)
def test_weights_that_make_nonsense(complaint: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    damaged(tmp_path, "model.norm.weight", DAMAGE[complaint])
    with pytest.raises(UserError, match=complaint):
        load_model(tmp_path, "cpu")


@pytest.mark.parametrize(
    "weight_map",
    [
        {"lm_head.weight": "../evil.safetensors"},
        {"lm_head.weight": "/etc/passwd"},
        [],
        {},
        None,
        {"a": "gone.safetensors"},
    ],
    ids=str,
)
def test_an_index_leads_nowhere_outside(weight_map: object, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    tiny_model().save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "evil.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(UserError, match=r"weight_map|gone\.safetensors is missing"):
        load_model(folder, "cpu")


def test_an_index_says_where_each_tensor_is(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    shard = "model-00001-of-00001.safetensors"
    (tmp_path / "model.safetensors").rename(tmp_path / shard)
    sound = dict.fromkeys(load_file(tmp_path / shard), shard)
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, complaint in (
        (sound, None),
        (sound | {"extra": shard}, f"places extra in {shard}, but it is in no file"),
        ({key: name for key, name in sound.items() if "norm.weight" not in key}, f"in no file, but it is in {shard}"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        if complaint is None:
            load_model(tmp_path, "cpu")
            continue
        with pytest.raises(UserError, match=complaint):
            load_model(tmp_path, "cpu")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": _Evil()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="cannot be loaded"):
            load_model(tmp_path, "cpu")
    assert not Path("pwned").exists()


def test_weights_of_another_shape_are_named_in_a_sentence_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model().save_pretrained(tmp_path)
    damaged(tmp_path, "model.norm.weight", lambda weight: weight[:-1])
    with pytest.raises(UserError, match=r"does not fit its config\.json: mismatched keys .*model\.norm\.weight"):
        load_model(tmp_path, "cpu")
    assert "REPORT" not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "null", '"x"', "{", "[" * 10**5, '{"a":' * 10**5, "1" * 20000),
        *('{"model_type": 5}', '{"model_type": null}', '{"model_type": "llama", "num_hidden_layers": 1000000000000}'),
        '{"model_type": "stellarbyte", "vocab_size": null}',
        '{"model_type": "stellarbyte", "hidden_size": 1000000000000}',
        '{"model_type": "stellarbyte", "num_hidden_layers": 1000000000000}',
        '{"model_type": "stellarbyte", "rope_scaling": 5, "position_embedding": "rope"}',
        '{"model_type": "stellarbyte", "hidden_act": "learned", "dtype": "float33"}',
        '{"model_type": "llama", "hidden_size": "many"}',
        '{"model_type": "llama", "architectures": 5, "dtype": []}',
    ],
    ids=lambda text: text[:40],
)
def test_a_config_that_a_stranger_wrote(text: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(UserError, match="is not UTF-8 text"):
        load_model(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_labels": 10**12}, "num_labels 1000000000000 is more than 1000000"),
        ({"num_hidden_layers": 9_999}, "num_hidden_layers 9999 is more than there are tensors"),
        ({"is_encoder_decoder": True}, "holds a model with an encoder"),
    ],
)
def test_configs_that_take_memory_time_or_sense(fields: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(UserError, match=complaint):
        load_model(tmp_path, "cpu")


def test_outputs_come_in_the_form_that_is_read(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"return_dict": False, "output_hidden_states": True}))
    output = load_model(tmp_path, "cpu")(torch.tensor([[3, 4]]))
    assert output.logits.shape[:2] == (1, 2) and output.hidden_states is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not valid JSON"),
        ("[]", "holds a list"),
        ('{"eos_token_id": "x"}', "eos_token_id has 'x', expected numbers of tokens"),
        ('{"eos_token_id": [1, -1]}', "eos_token_id has -1, expected numbers of tokens"),
    ],
)
def test_what_is_said_of_generating_is_read_within_bounds(text: str, complaint: str, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=rf"generation_config\.json:? {complaint}"):
        load_model(tmp_path, "cpu")


def test_a_file_that_never_ends_is_not_begun(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a pipe or a device"):
        load_model(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}}, "makes no tokens of a text"),
        ("tokenizer.json", {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "expected a text of at most"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "holds no tokenizer that can be loaded"),
        ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "fails on a text: WordPiece error"),
        ("config.json", {"zzz": {"a": 1}}, ""),
    ],
)
def test_tokenizers_are_tried_before_they_are_used(
    name: str, changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    folder = export(tmp_path)
    content = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps(content | changes), "utf-8")
    if not complaint:
        load_tokenizer(folder)
        return
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(folder)
