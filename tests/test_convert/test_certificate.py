import json
import os
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import convert.certificate as certificates
from convert import hf_checkpoint, run_checkpoint, shards
from convert.run_checkpoint import RunCheckpoint
from convert.verifying import report, torch_side
from convert.verifying.jax_side import JaxSide
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata
from stellarbyte_jax.config import CheckpointConfig, RopeScaling
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from test_convert.models import held, sensible_params, tiny

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def export(exported, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(exported, tmp_path / "hf")


def spoil(folder, change):
    tensors = load_file(folder / shards.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / shards.WEIGHTS, metadata={"format": "pt"})


def checks_of(certificate):
    return {check["check"]: check for check in certificate["checks"]}


def test_an_export_is_certified(run_dir, export, capsys):
    assert main(["convert", "verify", str(run_dir), str(export)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"PASS: {export} is step 0 of {run_dir}"
    assert all(" ok " in line for line in said[1:])
    certificate = json.loads((export / "certificate.json").read_text())
    assert list(certificate)[:3] == ["verdict", "format", "differences"]
    assert (certificate["verdict"], certificate["differences"]) == ("PASS", [])
    checks = checks_of(certificate)
    assert 0 < checks["logits"]["max_relative_error"] < 1e-5
    assert 0 < checks["gradients"]["max_relative_error"] < 1e-4
    assert checks["gradients"]["tensors"] == 22
    assert checks["cached decoding"]["tokens"] == 32, "the context holds 64, and prompts take half of it"
    assert len(checks["sha256 of each tensor"]["sha256"]) == 22
    assert checks["tokenizer"]["lines"] > 1000
    assert 0 < checks["bfloat16"]["largest_kl"] < 1 and 0.5 < checks["bfloat16"]["top_1_agreement"] <= 1
    assert certificate["versions"].keys() >= {"stellarbyte", "jax", "torch", "transformers", "python"}
    stages = ["embedding", "layer 0", "layer 1", "norm"]
    assert list(certificate["errors_by_layer"]["hidden_states"]) == stages
    assert list(certificate["errors_by_layer"]["gradients"]) == ["positions", "embedding", "layer 0", "layer 1", "head"]
    assert [prompt["tokens"][0] for prompt in certificate["prompts"]] == [0] * 6
    picture = ElementTree.parse(export / "certificate.svg").getroot()
    texts = {text.text for text in picture.findall(".//{*}text")}
    assert {"embedding", "layer", "hidden states, at most 1e-5", "gradients, at most 1e-4", "≤ 1e-8"} <= texts
    hf_checkpoint.to_hf(run_dir, export)  # the certificate does not make it foreign
    assert not (export / "certificate.json").exists() and not (export / "certificate.svg").exists()


@pytest.mark.long
def test_a_bfloat16_export_is_certified_with_prompts_of_the_users_own(run_dir, tmp_path, capsys, monkeypatch):
    """Without matplotlib there is no picture, and none of an older certificate stays."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    hf_checkpoint.to_hf(run_dir, tmp_path / "hf", dtype="bfloat16", max_shard_size="20KB")
    (tmp_path / "hf" / "certificate.svg").write_text("<svg/>")
    (tmp_path / "prompts.txt").write_text("the star\n\n<|SEOS|> is text\n")
    arguments = ["verify", str(run_dir), str(tmp_path / "hf"), "--prompts", str(tmp_path / "prompts.txt"), "--json"]
    assert main(["convert", *arguments]) == 0
    certificate = json.loads(capsys.readouterr().out)
    assert [prompt["text"] for prompt in certificate["prompts"]] == ["the star", "<|SEOS|> is text"]
    assert (certificate["verdict"], certificate["dtype"]) == ("PASS", "bfloat16")
    assert not (tmp_path / "hf" / "certificate.svg").exists()


@pytest.mark.long  # parity goes over all architectures, and another export is certified
@pytest.mark.parametrize(
    "fields",
    [
        {
            **{
                "position_embedding": "none",
                "sliding_window": 5,
                "pruned_heads": ((0, 1), (0, 1)),
                "num_experts": 4,
                "moe_intermediate_size": 8,
            },
            **{"num_shared_experts": 1, "moe_capacity_factor": 0.5, "attention_bias": True, "layer_scale_init": 0.1},
        },
        {
            **{"position_embedding": "rope", "rope_scaling": RopeScaling("dynamic", 2.0), "residual": "deepnorm"},
            **{"parallel_residual": True, "qk_norm": True, "tie_word_embeddings": True, "drop_path_rate": 0.5},
        },
    ],
    ids=["sparse", "dynamic"],
)
def test_any_architecture_is_certified(fields, tokenizer, tmp_path):
    config = tiny(vocab_size=300, **fields)
    run_checkpoint.save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf")
    certificate = certificates.verify(tmp_path / "run", tmp_path / "hf")
    assert (certificate["verdict"], certificate["differences"]) == ("PASS", [])


def test_one_bit_is_found_and_named(run_dir, export, capsys):
    def flip(tensors):
        tensors[NORM].view(np.uint32)[3] ^= 1

    spoil(export, flip)
    assert main(["convert", "verify", str(run_dir), str(export)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("FAIL: ")
    assert said[-1] == f"the values of {NORM} are not those of the run"
    certificate = json.loads((export / "certificate.json").read_text())
    assert certificate["verdict"] == "FAIL"
    assert checks_of(certificate)["logits"]["result"] == "ok", "so small a change, only the hash can see"


def test_tensors_too_many_too_few_and_of_another_shape(run_dir, export):
    def change(tensors):
        tensors["lm_haed.weight"] = tensors.pop("lm_head.weight")
        tensors[NORM] = tensors[NORM][:5].copy()

    spoil(export, change)
    certificate = certificates.verify(run_dir, export)
    assert certificate["differences"] == [
        f"{NORM} is float32[24] in the run, but float32[5] in the export",
        "the export lacks lm_head.weight, which the run has",
        "the run has no lm_haed.weight, which the export holds",
    ]
    (behaviour,) = [check for check in certificate["checks"] if check["check"] == "behaviour"]
    assert behaviour["result"] == "not checked" and "but its config.json gives it [24]" in behaviour["why"]


def test_another_config(run_dir, export):
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | {"rope_theta": 9999.0}))
    differences = certificates.verify(run_dir, export)["differences"]
    assert differences[0] == "rope_theta is 10000.0 in the run, but 9999.0 in the export"
    assert any(difference.startswith("logits of the long row differ by ") for difference in differences)


@pytest.mark.usefixtures("no_models")
def test_other_code(run_dir, export):
    (export / "modeling_stellarbyte.py").write_text("print('hello')")
    (export / "configuration_stellarbyte.py").unlink()
    differences = certificates.verify(run_dir, export)["differences"]
    assert [difference.split()[0] for difference in differences] == [
        "configuration_stellarbyte.py",
        "modeling_stellarbyte.py",
    ]


@pytest.mark.usefixtures("no_models")
def test_another_tokenizer(run_dir, export, tmp_path):
    other = train_tokenizer(["zwölf Boxkämpfer jagen Viktor"] * 9, 280, tmp_path / "other", report=lambda _: None)
    other.save_files(other.files, export)
    certificate = certificates.verify(run_dir, export)
    assert {name for name, check in checks_of(certificate).items() if check["result"] == "not ok"} == {
        "tokenizer",
        "small files",
    }
    assert "lines into different tokens" in certificate["differences"][0]


@pytest.mark.usefixtures("no_models")
def test_the_exported_step_is_compared_though_training_went_on(run_dir, tmp_path):
    before = run_checkpoint.load(run_dir)
    params = held(before.params)
    metadata = RunMetadata({"model": to_dict(before.config)}, dict(before.tokenizer_files))
    with Checkpointer(tmp_path / "run", CheckpointConfig()) as checkpointer:
        checkpointer.save(1, params, None, metadata)
        changed = {**params, "lm_head": {"kernel": params["lm_head"]["kernel"] + 1}}
        checkpointer.save(2, changed, None, metadata)
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", step=1)
    certificate = certificates.verify(tmp_path / "run", tmp_path / "hf")
    assert (certificate["verdict"], certificate["step"]) == ("PASS", 1)
    assert certificates.verify(tmp_path / "run", tmp_path / "hf", step=2)["verdict"] == "FAIL"


@pytest.mark.usefixtures("no_models")
def test_the_average_of_the_weights_is_exported_and_certified(run_dir, tmp_path):
    before = run_checkpoint.load(run_dir)
    params = held(before.params)
    metadata = RunMetadata({"model": to_dict(before.config)}, dict(before.tokenizer_files))
    average = {**params, "lm_head": {"kernel": params["lm_head"]["kernel"] + 1}}
    with Checkpointer(tmp_path / "run", CheckpointConfig()) as checkpointer:
        checkpointer.save(1, params, None, metadata, ema=average)
    assert main(["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "hf"), "--ema"]) == 0
    exported = shards.read(tmp_path / "hf")["lm_head.weight"].read()
    assert np.array_equal(exported, average["lm_head"]["kernel"].T)
    certificate = certificates.verify(tmp_path / "run", tmp_path / "hf")
    assert (certificate["verdict"], certificate["ema"]) == ("PASS", True)
    assert "the average of the weights" in report.summary(certificate)
    with pytest.raises(UserError, match=r"holds no moving average of its weights, because training\.ema_decay is not"):
        hf_checkpoint.to_hf(run_dir, tmp_path / "none", ema=True)


def test_what_is_no_number_is_not_equal(run_dir, export):
    spoil(export, lambda tensors: tensors[NORM].__setitem__(3, np.nan))
    certificate = certificates.verify(run_dir, export)
    checks = checks_of(certificate)
    assert checks["logits"]["max_relative_error"] is None, "JSON has no NaN"
    assert "logits of the prompts differ by nan" in checks["logits"]["differences"][0]
    for name in ("cached decoding", "gradients", "bfloat16", "padding and packing"):
        assert checks[name]["result"] == "not ok"


def test_a_side_that_contradicts_itself(run_dir, export, monkeypatch):
    """PyTorch sees packed documents as one, and JAX reads tokens one by one at the next one's position."""
    inputs, turns = torch_side._inputs, JaxSide._turns

    def as_one(batch):
        found = inputs(batch)
        slots = torch.arange(batch.input_ids.shape[1]).expand(batch.input_ids.shape)
        return found if "attention_mask" in found else found | {"position_ids": slots}

    def later(self, position_ids):
        return turns(self, position_ids + (position_ids.min() > 0))

    monkeypatch.setattr(torch_side, "_inputs", as_one)
    monkeypatch.setattr(JaxSide, "_turns", later)
    checks = checks_of(certificates.verify(run_dir, export, prompts=["the star"] * 6))
    (packing,) = checks["padding and packing"]["differences"]
    (cached,) = checks["cached decoding"]["differences"]
    assert packing.startswith("in PyTorch, documents in packed rows have other hidden states than by themselves")
    assert cached.startswith("in JAX, ") and "tokens that are read one by one through a cache" in cached


def test_prompts_that_are_none_or_too_long(run_dir, export, tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        certificates.read_prompts(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="holds no prompt"):
        certificates.read_prompts(tmp_path / "empty")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        certificates.read_prompts(tmp_path / "bytes")
    os.truncate(tmp_path / "bytes", 1 << 40)
    with pytest.raises(UserError, match="is larger than 16 MiB"):
        certificates.read_prompts(tmp_path / "bytes")
    with pytest.raises(UserError, match="is a pipe or a device"):
        certificates.read_prompts(Path("/dev/zero"))
    with pytest.raises(UserError, match="too many for a context of 64"):
        certificates.verify(run_dir, export, prompts=["x" * 99])
    assert not (export / "certificate.json").exists()


def test_without_torch_one_sentence_says_what_to_install(run_dir, export, python, tmp_path):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from stellarbyte.door import main\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stderr(io.StringIO()) as err:\n"
        "    code = main(['convert', 'verify', sys.argv[1], sys.argv[2]])\n"
        "print(code, err.getvalue())\n"
    )
    printed = python(code, tmp_path, str(run_dir), str(export))
    assert printed.startswith(
        "2 stellarbyte: error: verify compares with PyTorch, but torch is not installed: pip inst"
    )
