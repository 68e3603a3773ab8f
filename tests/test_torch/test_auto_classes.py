"""Saving, loading, and who knows the classes: transformers' Auto classes here, and in a process without us."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import stellarbyte_torch
from stellarbyte_torch import ByteConfig, ByteDecoder, ByteForCausalLM

from .tiny import POSITIONS, TINY, tiny_model, tokens

PACKAGE = Path(stellarbyte_torch.__file__).parent


def export(folder: Path, **changes) -> ByteForCausalLM:
    """An exported folder as the converter writes it: only the schema, and the two files."""
    model = tiny_model(**changes)
    model.save_pretrained(folder)
    config = {name: getattr(model.config, name) for name in {**TINY, **changes}} | {
        "architectures": ["ByteForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_stellarbyte.ByteConfig",
            "AutoModel": "modeling_stellarbyte.ByteDecoder",
            "AutoModelForCausalLM": "modeling_stellarbyte.ByteForCausalLM",
        },
        "dtype": "float32",
        "model_type": "stellarbyte",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_stellarbyte.py", "modeling_stellarbyte.py"):
        shutil.copy(PACKAGE / name, folder / name)
    return model


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_saved_and_loaded_weights_are_the_same_to_the_bit(tmp_path: Path, position: str, tied: bool) -> None:
    model = export(tmp_path, tie_word_embeddings=tied, **POSITIONS[position])
    ids = tokens(2, 9)
    loaded, report = ByteForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert set(loaded.state_dict()) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_auto_classes_know_us(tmp_path: Path) -> None:
    model = export(tmp_path)
    ids = tokens(2, 9)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ByteConfig
    causal_lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(causal_lm) is ByteForCausalLM
    assert torch.equal(causal_lm(ids).logits, model(ids).logits)
    decoder = AutoModel.from_pretrained(tmp_path)
    assert type(decoder) is ByteDecoder
    assert torch.equal(decoder(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_weights_in_shards(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ids = tokens(1, 9)
    assert torch.equal(ByteForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.long
@pytest.mark.parametrize("first", ["stellarbyte_torch", "transformers"])
def test_registration_whatever_is_imported_first(tmp_path: Path, first: str) -> None:
    export(tmp_path)
    second = {"stellarbyte_torch": "transformers", "transformers": "stellarbyte_torch"}[first]
    code = f"""
import sys, {first}, {second}
from transformers import AutoModelForCausalLM
from stellarbyte_torch import ByteModel
assert type(AutoModelForCausalLM.from_pretrained(sys.argv[1])) is ByteModel
"""
    run_python(code, str(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("module", ["configuration_stellarbyte", "modeling_stellarbyte"])
def test_registration_when_our_own_module_brings_transformers(tmp_path: Path, module: str) -> None:
    export(tmp_path)
    code = f"""
import sys
import stellarbyte_torch.{module} as module
assert module.__loader__.__class__.__name__ == "SourceFileLoader"
from transformers import AutoConfig
from stellarbyte_torch import ByteConfig
assert type(AutoConfig.from_pretrained(sys.argv[1])) is ByteConfig is module.ByteConfig
"""
    run_python(code, str(tmp_path))


@pytest.mark.long  # tests/test_convert/test_hf_checkpoint.py has one such process in the short tier
@pytest.mark.parametrize("saved_by", ["converter", "save_pretrained"])
def test_trust_remote_code_in_a_process_that_has_only_the_folder(tmp_path: Path, saved_by: str) -> None:
    folder = tmp_path / "export"
    model = export(folder, xpos_learnable=True)
    if saved_by == "save_pretrained":
        shutil.rmtree(folder)
        model.save_pretrained(folder)
    ids = tokens(1, 9)
    torch.save({"ids": ids, "logits": model(ids).logits}, tmp_path / "expected.pt")
    code = """
import os, sys
folder, expected, saved_by = sys.argv[1:]
os.environ["HF_MODULES_CACHE"] = folder + "-modules"
sys.modules["stellarbyte_torch"] = None  # importing it now fails
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline
expected = torch.load(expected)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "stellarbyte"
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert torch.equal(model(expected["ids"]).logits, expected["logits"])
assert model.model.rotary_emb.zeta.requires_grad
model.generate(expected["ids"], max_new_tokens=3, do_sample=False)
if saved_by == "converter":
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__ == "ByteDecoder"
model.save_pretrained(folder + "-again")
again = AutoModelForCausalLM.from_pretrained(folder + "-again", trust_remote_code=True)
assert torch.equal(again(expected["ids"]).logits, expected["logits"])
"""
    run_python(code, str(folder), str(tmp_path / "expected.pt"), saved_by)


ALONE = """
import json, os, sys
os.environ["HF_MODULES_CACHE"] = sys.argv[1] + "/modules"
sys.modules["stellarbyte_torch"] = None  # importing it now fails
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
"""


@pytest.mark.long
def test_two_exports_of_one_name_keep_their_own_code(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number) / "hf"
        tiny_model().save_pretrained(folder)
        path = folder / "modeling_stellarbyte.py"
        path.write_text(path.read_text(encoding="utf-8") + f"\nByteForCausalLM.edition = {number}\n", encoding="utf-8")
    code = """
for number in (1, 2, 1):
    folder = f"{sys.argv[1]}/{number}/hf"
    assert AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).edition == number
"""
    run_python(ALONE + code, str(tmp_path))


@pytest.mark.long
def test_label_smoothing_shifts_the_labels_where_only_the_folder_is(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "hf")
    ids = tokens(2, 12)
    expected = torch.nn.functional.cross_entropy(
        model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1
    )
    code = """
model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/hf", trust_remote_code=True)
arguments = TrainingArguments(sys.argv[1] + "/run", use_cpu=True, report_to=[], label_smoothing_factor=0.1)
ids = torch.tensor(json.loads(sys.argv[2]))
print(Trainer(model=model, args=arguments).compute_loss(model, {"input_ids": ids, "labels": ids}).item())
"""
    said = run_python(ALONE + code, str(tmp_path), json.dumps(ids.tolist()))
    assert float(said.splitlines()[-1]) == pytest.approx(expected.item(), rel=1e-6)
