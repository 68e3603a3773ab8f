"""`verify A B` of two Hugging Face folders: ours, stock ones, and one of each."""

import json
import shutil

import pytest
import torch
import transformers

import convert.certificate as certificates
from convert import hf_checkpoint, run_checkpoint, weights
from convert.run_checkpoint import RunCheckpoint
from stellarbyte.door import main
from test_convert.models import sensible_params, tiny
from test_convert.test_certificate import checks_of, spoil

CONFIG = tiny(vocab_size=300, position_embedding="rope", num_key_value_heads=2)


@pytest.fixture(scope="module")
def ours(tokenizer, tmp_path_factory):
    """A Llama in our words, exported as our own model; nobody may change it."""
    folder = tmp_path_factory.mktemp("ours")
    run_checkpoint.save(folder / "run", RunCheckpoint(sensible_params(CONFIG), CONFIG, tokenizer.files, step=0))
    hf_checkpoint.to_hf(folder / "run", folder / "hf")
    return folder / "hf"


@pytest.fixture(scope="module")
def llama(ours, tmp_path_factory):
    """The same model, saved by Transformers' own class; nobody may change it."""
    folder = tmp_path_factory.mktemp("llama") / "hf"
    config = transformers.LlamaConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.num_hidden_layers,
        num_attention_heads=CONFIG.num_attention_heads,
        num_key_value_heads=CONFIG.num_key_value_heads,
        head_dim=CONFIG.head_dim,
        rms_norm_eps=CONFIG.rms_norm_eps,
        initializer_range=CONFIG.initializer_range,
        max_position_embeddings=CONFIG.max_position_embeddings,
        bos_token_id=CONFIG.bos_token_id,
        eos_token_id=CONFIG.eos_token_id,
        pad_token_id=CONFIG.pad_token_id,
    )
    model = transformers.LlamaForCausalLM(config)
    state = {key: torch.tensor(tensor.read()) for key, tensor in weights.to_hf(sensible_params(CONFIG), CONFIG).items()}
    model.load_state_dict(state)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(ours / name, folder / name)
    return folder


def test_a_stock_model_is_its_twin_of_ours(ours, llama, tmp_path, capsys):
    folder = shutil.copytree(llama, tmp_path / "hf")
    assert main(["convert", "verify", str(ours), str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"PASS: {folder} is {ours}\n")
    checks = checks_of(json.loads((folder / "certificate.json").read_text()))
    assert checks["sha256 of each tensor"]["result"] == "ok"
    assert len(checks["sha256 of each tensor"]["sha256"]) == 21
    assert checks["gradients"]["tensors"] == 21


def test_two_stock_models_that_differ(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "hf")
    spoil(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].__imul__(1.01))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"rms_norm_eps": 0.02}))
    certificate = certificates.verify(llama, folder)
    failed = {name for name, check in checks_of(certificate).items() if check["result"] == "not ok"}
    assert failed >= {"config", "sha256 of each tensor", "logits", "gradients"}
    assert "rms_norm_eps is 1e-05 in the first folder, but 0.02 in the second" in certificate["differences"]


def test_a_strangers_code_is_never_run(ours, tmp_path, capsys):
    folder = shutil.copytree(ours, tmp_path / "hf")
    fields = json.loads((folder / "config.json").read_text())
    fields |= {"model_type": "stranger", "auto_map": {"AutoModelForCausalLM": "modeling_stellarbyte.ByteForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "modeling_stellarbyte.py").write_text("raise SystemExit('it ran')")
    for arguments in ([str(ours), str(folder)], [str(folder), str(ours)]):
        assert main(["convert", "verify", *arguments]) == 2
        assert "'stranger', which Transformers has no causal language model for" in capsys.readouterr().err


def test_a_folder_has_no_steps(ours, capsys):
    assert main(["convert", "verify", str(ours), str(ours), "--step", "3"]) == 2
    assert "is a model's folder: leave --step out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        pytest.param(
            "mistral",
            {"sliding_window": 5, "layer_scale_init": 0.1, "drop_path_rate": 0.2},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "mixtral",
            {"num_experts": 4, "moe_intermediate_size": 8, "tie_word_embeddings": True},
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_stock_export_is_its_run(family, fields, tokenizer, tmp_path):
    config = tiny(vocab_size=300, position_embedding="rope", **fields)
    run_checkpoint.save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", family=family)
    certificate = certificates.verify(tmp_path / "run", tmp_path / "hf")
    assert (certificate["verdict"], certificate["differences"], certificate["as"]) == ("PASS", [], family)
    assert "modeling files" not in checks_of(certificate)
    spoil(tmp_path / "hf", lambda tensors: tensors["model.layers.1.self_attn.q_proj.weight"].__imul__(1.01))
    failed = {
        check["check"]
        for check in certificates.verify(tmp_path / "run", tmp_path / "hf")["checks"]
        if check["differences"]
    }
    assert failed >= {"sha256 of each tensor", "logits"}
