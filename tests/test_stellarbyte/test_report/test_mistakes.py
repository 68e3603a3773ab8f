"""What is no model, or is damaged, is one sentence with exit code 2."""

import json

import pytest

from stellarbyte.door import main
from test_stellarbyte.test_report.folders import LLAMA, folder, llama, sparse_file


def nothing(path):
    return path / "absent"


def text(path):
    (path / "notes.txt").write_text("star")
    return path / "notes.txt"


def empty(path):
    return path


def adapter(path):
    (path / "adapter_config.json").write_text("{}")
    return path


def finetuning_run(path):
    (path / "config.yaml").write_text("model: hf\ntraining: {per_device_train_batch_size: 2}\ndata: {sources: []}\n")
    (path / "checkpoints").mkdir()
    return path


def shards(path):
    (path / "manifest.json").write_text("{}")
    return path


def tokenizer(path):
    (path / "tokenizer.json").write_text("{}")
    return path


def finetuning_config(path):
    (path / "f.yaml").write_text("model: hf\ntraining: {per_device_train_batch_size: 2, learning_rate: 1e-4}\n")
    return path / "f.yaml"


def other_yaml(path):
    (path / "o.yaml").write_text("star: byte\n")
    return path / "o.yaml"


def no_json(path):
    (path / "config.json").write_text("{star")
    return path / "config.json"


def unknown_family_alone(path):
    (path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 8}')
    return path / "config.json"


def unknown_family_without_weights(path):
    (path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 8}')
    return path


def field_without_place(path):
    (path / "config.json").write_text(json.dumps(LLAMA | {"mlp_bias": True}))
    return path / "config.json"


def contradiction(path):
    (path / "m.yaml").write_text("hidden_size: 100\nnum_attention_heads: 8\nnum_key_value_heads: 3\nhead_dim: 16\n")
    return path / "m.yaml"


def weights_file(path):
    return sparse_file(path / "model.safetensors", llama())


def cut_short(path):
    folder(path, LLAMA, llama())
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-100])
    return path


def index_of_nothing(path):
    folder(path, LLAMA, llama(), files=2)
    (path / "model.safetensors.index.json").write_text("{}")
    return path


def missing_file(path):
    folder(path, LLAMA, llama(), files=2)
    next(path.glob("*-00002-*")).unlink()
    return path


def codes_of_no_width(path):
    tensors = llama() | {"model.layers.0.self_attn.q_proj.qweight": ("I32", (4, 32))}
    return folder(path, LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": "four"}}, tensors)


def a_shape_of_a_gigabyte(path):
    tensors = llama() | {"a.weight_packed": ("I32", (4, 4)), "a.weight_shape": ("I64", (2**27,))}
    return folder(path, LLAMA | {"quantization_config": {"quant_method": "compressed-tensors"}}, tensors)


def encoder(path):
    return folder(path, LLAMA | {"model_type": "bert", "architectures": ["BertForMaskedLM"]}, llama())


def encoder_and_decoder(path):
    return folder(path, LLAMA | {"model_type": "t5", "is_encoder_decoder": True}, llama())


def run_without_config(path):
    (path / "checkpoints" / "5" / "metadata").mkdir(parents=True)
    (path / "checkpoints" / "5" / "metadata" / "metadata").write_text('{"config": {"mesh": {}}}')
    return path


MISTAKES = {
    nothing: "is not there",
    text: "is no run, no Hugging Face folder and no config",
    empty: "holds none of",
    adapter: "merge it into its base",
    finetuning_run: "is a fine-tuning run",
    shards: "token shards",
    tokenizer: "a tokenizer",
    finetuning_config: "is a config of fine-tuning",
    other_yaml: "may be a pretraining or a fine-tuning config",
    no_json: "is not valid JSON",
    unknown_family_alone: "whose tensors are not known without its weights",
    unknown_family_without_weights: "whose tensors are not known without its weights",
    field_without_place: "mlp_bias is not a field of StellarByte",
    contradiction: "num_key_value_heads",
    weights_file: "name its folder",
    cut_short: "is not a whole safetensors file",
    index_of_nothing: "names no files",
    missing_file: "is missing",
    codes_of_no_width: "quantization_config.bits in config.json is 'four'",
    a_shape_of_a_gigabyte: "where a short note belongs",
    encoder: "holds an encoder (model_type 'bert')",
    encoder_and_decoder: "holds an encoder (model_type 't5')",
    run_without_config: "its structure is not known",
}


@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_a_mistake(make, tmp_path, capsys):
    assert main(["report", str(make(tmp_path))]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert MISTAKES[make] in captured.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["M", "M"], "is named twice"),
        (["M", "--kv-budget", "much"], "--kv-budget 'much' is no number of tokens"),
        (["M", "--kv-budget", "200%"], "must be above 0% and at most 100%"),
        (["s3://bucket/run.yaml"], "s3"),
        (
            ["M", "--dtype", "bfloat16"],
            "--dtype bfloat16 is of --latency and --data: give one of them, or leave it out",
        ),
    ],
)
def test_options(words, sentence, tmp_path, capsys):
    path = folder(tmp_path / "m", LLAMA, llama())
    assert main(["report", *(str(path) if word == "M" else word for word in words)]) == 2
    assert sentence in capsys.readouterr().err
