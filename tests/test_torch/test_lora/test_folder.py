"""Adapter folders of strangers: each kind of damage is one sentence, and nothing hangs or is half loaded."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model, load_lora
from test_torch.chat_models import chat_folder
from test_torch.lora_models import bits, fill, is_unchanged, llama
from test_torch.tiny import tiny_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SLOW = r"([a-z_.0-9]+)+!"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter's folder as stock PEFT writes it; nobody may change it."""
    folder = tmp_path_factory.mktemp("whole")
    fill(peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))).save_pretrained(
        folder
    )
    return folder


def header(text: bytes, data_bytes: int = 0, length: int | None = None) -> bytes:
    text = b"{%s}" % text.strip(b",") if text.startswith(b'"') else text
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data_bytes)


def tensor(name: str, dtype: str, size: int, end: int = 4) -> bytes:
    return f'"{name}":{{"dtype":"{dtype}","shape":[{size}],"data_offsets":[0,{end}]}},'.encode()


# What the file holds instead -> what is said of it.
WEIGHT_BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it ends within its header"),
    "cut short": (b"\x10\0\0", "it ends within its header"),
    "longer than the file": (header(b"{}", length=10**15), "it ends within its header"),
    "longer than there is": (header(b"{}", length=2**64 - 1), "it ends within its header"),
    "no JSON": (header(b"{nothing}"), "its header is not valid JSON"),
    "not UTF-8": (header(b"\xff\xfe"), "its header is not UTF-8 text"),
    "a list": (header(b"[]"), "its header is no JSON object"),
    "deep": (header(b"[" * 10**5), "its header is nested deeper"),
    "no tensors": (header(b"{}"), "holds no tensor at all"),
    "an unknown dtype": (header(tensor("a", "Q4", 1), 4), "has dtype 'Q4'"),
    "too short": (header(tensor("a", "F32", 2, 8), 4), "the file holds 4"),
    "absurd": (header(tensor("a", "F32", 10**12), 4), "has 4 bytes"),
    "overlapping": (header(tensor("a", "F32", 1) + tensor("b", "F32", 1), 4), "where the one before ends at 4"),
    "twice": (header(tensor("a", "F32", 1) + tensor("a", "F32", 1), 4), "stands twice"),
    "text": (b"not tensors at all", "is not a whole safetensors file"),
}  # fmt: skip


def changed(**tensors: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        for key, value in tensors.items():
            if value is None:
                del weights[key.replace("__", ".")]
            else:
                weights[key.replace("__", ".")] = value
        save_file(weights, folder / WEIGHTS)

    return change


def key(suffix: str = "lora_A.weight") -> str:
    return KEY.replace("lora_A.weight", suffix).replace(".", "__")


TENSORS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a NaN": (changed(**{key(): torch.full((2, 32), torch.nan)}), "that is no finite number"),
    "an infinity": (changed(**{key(): torch.full((2, 32), -torch.inf)}), "that is no finite number"),
    "integers": (changed(**{key(): torch.ones(2, 32, dtype=torch.int32)}), "as I32, expected one of F64"),
    "another shape": (changed(**{key(): torch.ones(2, 31)}), r"is \[2, 31\] in the adapter, \[2, 32\] on this model"),
    "a scalar": (changed(**{key(): torch.ones(())}), r"is \[\] in the adapter"),
    "a missing key": (changed(**{key(): None}), "and the adapter lacks it"),
    "an unknown key": (changed(zzz=torch.ones(2)), "and this model has no such place"),
    "the base's weights": (
        changed(**{key("base_layer.weight"): torch.ones(32, 32)}), "brings other values for .* along"
    ),
    "a pipe": (lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS))[0], "is not a regular file"),
    "a device": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to("/dev/zero"))[0], "is not a regular file"),
    "a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir())[0], "is not a regular file"),
    "nothing": (lambda f: (f / WEIGHTS).unlink(), "is missing"),
    "a pickle": (
        lambda f: ((f / WEIGHTS).unlink(), (f / "adapter_model.bin").write_bytes(pickle.dumps({})))[0],
        "holds its weights in adapter_model.bin, a pickle",
    ),
}  # fmt: skip

CONFIG_BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not valid JSON"),
    "a list": (b"[]", "holds a list, expected an object"),
    "a number": (b"3", "expected an object"),
    "not UTF-8": (b'{"r": "\xff"}', "is not UTF-8 text"),
    "cut short": (b'{"r": 2', "is not valid JSON"),
    "deep": (b'{"a":' * 10**5, "is nested deeper"),
    "twice": (b'{"r": 2, "r": 3}', "stands twice"),
    "long": (b'{"r": ' + b"9" * 20_000 + b"}", "is not valid JSON"),
    "another method": (b'{"peft_type": "IA3", "r": 2}', "peft_type is 'IA3'"),
    "no field": (b'{"peft_type": "LORA", "rr": 2}', "field 'rr' is unknown .* did you mean 'r'"),
    "cls": (b'{"peft_type": "LORA", "cls": 2, "self": 3}', "is unknown to PEFT"),
}
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "huge r": ({"r": 10**12}, "r is 1000000000000: a rank is a whole number"),
    "large r": ({"r": 50_000}, "r is 50000, and no tensor of the adapter is wider than 32"),
    "negative r": ({"r": -2}, "r is -2: a rank"),
    "zero r": ({"r": 0}, "r is 0: a rank"),
    "r of text": ({"r": "2"}, "r is '2': a rank"),
    "r null": ({"r": None}, "r is None: a rank"),
    "r a fraction": ({"r": 2.5}, "r is 2.5: a rank"),
    "r a list": ({"r": [2]}, r"r is \[2\]: a rank"),
    "null alpha": ({"lora_alpha": None}, "lora_alpha is None: an alpha is a number"),
    "alpha of text": ({"lora_alpha": "16"}, "lora_alpha is '16': an alpha"),
    "endless alpha": ({"lora_alpha": float("inf")}, "lora_alpha is inf: an alpha"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha is nan: an alpha"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha is 0: an alpha"),
    "long alpha": ({"lora_alpha": 10**4000}, "lora_alpha is an integer of about"),
    "dropout": ({"lora_dropout": "much"}, "lora_dropout is 'much': choose a probability"),
    "dropout null": ({"lora_dropout": None}, "lora_dropout is None"),
    "ranks": ({"rank_pattern": [1]}, "rank_pattern is .*: map names to numbers"),
    "a rank": ({"rank_pattern": {"q_proj": "x"}}, r"rank_pattern\['q_proj'\] is 'x': a rank"),
    "alphas": ({"alpha_pattern": {"q_proj": None}}, r"alpha_pattern\['q_proj'\] is None: an alpha"),
    "no expression": ({"rank_pattern": {"q_proj(": 2}}, "is no regular expression"),
    "no expression for alphas": ({"alpha_pattern": {"*": 2}}, "is no regular expression"),
    "no expression for targets": ({"target_modules": "[q"}, "target_modules '.q' is no regular expression"),
    "no expression of what to leave out": ({"exclude_modules": "(?P<"}, "is no regular expression"),
    "long expression": ({"target_modules": ".?" * 6000}, "is an expression of 12000 characters"),
    "slow expression": ({"alpha_pattern": {SLOW: 2}}, "takes more than 1 second"),
    "targets": ({"target_modules": 3}, "target_modules is 3: write a list of names"),
    "targets of numbers": ({"target_modules": [1]}, r"target_modules is \[1\]: write a list"),
    "no targets": ({"target_modules": []}, "this model has no such place|no module|is empty|go together"),
    "whole": ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head': write a list"),
    "whole of slow": ({"modules_to_save": [SLOW]}, ""),
    "layers": ({"layers_to_transform": "x"}, "layers_to_transform is 'x'"),
    "layers that are not": ({"layers_to_transform": [10**12]}, "layers_to_transform names layer 1000000000000"),
    "slow layers before others": (
        {"layers_to_transform": [0], "layers_pattern": [r"(\w+)+x!", "layers"]},
        r"layers_pattern\[.* takes more than",
    ),
    "slow layers": ({"layers_to_transform": [0], "layers_pattern": r"(\w+)+x!"}, r"layers_pattern\[.* takes more than"),
    "flags": ({"use_rslora": "yes"}, "use_rslora is 'yes': choose true or false"),
    "bias": ({"bias": 3}, "bias is 3: choose none, all"),
    "start": ({"init_lora_weights": "magic"}, "init_lora_weights is 'magic': choose one of"),
    "start of list": ({"init_lora_weights": [True]}, "init_lora_weights is"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights loftq"),
    "task": ({"task_type": "POETRY"}, "go together: Invalid task type"),
    "tokens": ({"trainable_token_indices": [-1]}, "trainable_token_indices is"),
    "tokens that are not": ({"trainable_token_indices": [10**9]}, "names token 1000000000"),
    "eva": ({"eva_config": 3}, "go together"),
    "velora": ({"velora_config": {"nothing": 1}}, "belongs to another base"),
    "parameters": ({"target_parameters": "x"}, "target_parameters is 'x': write a list"),
    "revision": ({"revision": {"a": 1}}, ""),
    "name": ({"base_model_name_or_path": ["x"]}, ""),
    "NUL": ({"base_model_name_or_path": "a\0b"}, ""),
}


def refused(folder: Path, sentence: str, base: Any) -> None:
    before = bits(base)
    with pytest.raises(UserError, match=sentence) as said:
        load_lora(base, folder)
    assert "\n" not in str(said.value) and len(str(said.value)) < 700
    assert is_unchanged(base, before) and not any("lora" in name for name, _ in base.named_parameters())


@pytest.mark.filterwarnings("ignore")
def test_weights_of_every_kind_of_damage(whole: Path, tmp_path: Path) -> None:
    base = llama()
    for name, (content, sentence) in WEIGHT_BYTES.items():
        folder = shutil.copytree(whole, tmp_path / name)
        (folder / WEIGHTS).write_bytes(content)
        refused(folder, sentence, base)
    for name, (damage, sentence) in TENSORS.items():
        folder = shutil.copytree(whole, tmp_path / f"tensors {name}")
        damage(folder)
        refused(folder, sentence, base)
    load_lora(base, whole)


@pytest.mark.filterwarnings("ignore")
def test_configs_of_every_kind_of_damage(whole: Path, tmp_path: Path) -> None:
    base = llama()
    for name, (content, sentence) in CONFIG_BYTES.items():
        folder = shutil.copytree(whole, tmp_path / name)
        (folder / CONFIG).write_bytes(content)
        refused(folder, sentence, base)
    for damage in (lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero"), Path.mkdir):
        folder = shutil.copytree(whole, tmp_path / f"no file {damage}".replace("/", ""))
        (folder / CONFIG).unlink()
        damage(folder / CONFIG)
        refused(folder, "a pipe or a device|a folder", base)
    fields = json.loads((whole / CONFIG).read_text())
    for name, (changes, sentence) in FIELDS.items():
        folder = shutil.copytree(whole, tmp_path / f"fields {name}")
        (folder / CONFIG).write_text(json.dumps(fields | changes))
        if sentence:
            refused(folder, sentence, base)
        else:
            load_lora(llama(), folder)
    refused(tmp_path / "nowhere", "is not a folder and so holds no adapter_config.json", base)


@pytest.mark.filterwarnings("ignore")
def test_older_and_stranger_fields_that_peft_reads(whole: Path, tmp_path: Path) -> None:
    fields = json.loads((whole / CONFIG).read_text())
    for number, changes in enumerate((
        {"lora_alpha": 2.5, "layers_pattern": None, "loftq_config": {}},
        {"lora_alpha": -4, "task_type": None, "auto_mapping": {"base_model_class": "x", "parent_library": "y"}},
        {"modules_to_save": ["classifier"], "exclude_modules": ["vision_tower"], "rank_pattern": {"vision": 3}},
        {"runtime_config": {"ephemeral_gpu_offload": False}, "inference_mode": True, "peft_version": "0.5.0"},
        {"eva_config": None, "megatron_core": "megatron.core", "target_modules": r".*\.(q|v)_proj"},
    )):  # fmt: skip
        folder = shutil.copytree(whole, tmp_path / str(number))
        (folder / CONFIG).write_text(json.dumps(fields | changes))
        theirs = peft.PeftModel.from_pretrained(llama(), folder).eval()
        ids = torch.arange(6)[None]
        assert torch.equal(load_lora(llama(), folder)(ids).logits, theirs(ids).logits), changes


def test_a_file_of_more_than_any_adapter_has_is_not_read(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "large"))
    size = 1 << 37
    text = json.dumps({KEY: {"dtype": "F32", "shape": [2, size // 8], "data_offsets": [0, size]}}).encode()
    (folder / WEIGHTS).write_bytes(header(text))
    os.truncate(folder / WEIGHTS, 8 + len(text) + size)  # a hole, which takes no room on the disk
    refused(folder, "has 128 GiB, and 64 are the most that are read", llama())


def test_merge_and_chat_say_one_sentence_and_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = chat_folder(tmp_path / "base")
    adapter = tmp_path / "adapter"
    model = type(tiny_model()).from_pretrained(base)
    fill(apply_lora_to_model(model, LoRAConfig(r=2, target_modules=["q_proj"]))).save_pretrained(adapter)
    kept = (adapter / CONFIG).read_text()
    capsys.readouterr()
    for content in ("[]", "{", '{"peft_type": "LORA", "r": 1000000000000}', "\ud800"):
        (adapter / CONFIG).write_bytes(content.encode("utf-8", "surrogatepass"))
        assert main(["merge", str(base), str(adapter), str(tmp_path / "out")]) == 2
        assert main(["chat", str(base), "--adapter", str(adapter)]) == 2
        said = capsys.readouterr().err
        assert said.count("stellarbyte: error: ") == said.count("\n") == 2 and "cannot be loaded" in said
    (adapter / CONFIG).write_text(kept)
    (adapter / WEIGHTS).write_bytes(b"\xff" * 64)
    assert main(["merge", str(base), str(adapter), str(tmp_path / "out")]) == 2
    assert main(["chat", str(base), "--adapter", f"x={adapter}"]) == 2
    said = capsys.readouterr().err
    assert said.count("is not a whole safetensors file") == said.count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_embeddings_that_peft_saved_beside_an_adapter_of_them(tmp_path: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["embed_tokens", "q_proj"])
    fill(apply_lora_to_model(llama(), config)).save_pretrained(tmp_path)
    assert any("base_layer" in key for key in load_file(tmp_path / WEIGHTS))
    base = llama()
    before = bits(base)
    LoRAManager(base).register("x", tmp_path)
    assert is_unchanged(base, before)
    other = llama()
    other.model.embed_tokens.weight.data += 0.1
    with pytest.raises(UserError, match=r"brings other values for .*embed_tokens.* which are the base's own"):
        LoRAManager(other).register("x", tmp_path)
    smaller = llama(vocab_size=90)
    with pytest.raises(UserError, match=r"embed_tokens.* of the base along, \[97, 32\].*resize_token_embeddings first"):
        load_lora(smaller, tmp_path)


def test_a_base_that_is_refused_is_one_sentence_of_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = chat_folder(tmp_path / "base")
    model = type(tiny_model()).from_pretrained(base)
    apply_lora_to_model(model, LoRAConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 10**12}))
    capsys.readouterr()
    assert main(["merge", str(base), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("stellarbyte: error: ") and said.count("\n") == 1 and "hidden_size" in said
