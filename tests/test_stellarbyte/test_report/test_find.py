"""What a run is, by its config and what Orbax lists of its newest checkpoint."""

import json
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.report.find import find_subject
from stellarbyte.report.parameters import count_parameters

MODEL = (
    "{vocab_size: 96, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,"
    " max_position_embeddings: 64}"
)
SHAPES = {
    ("model", "embed_tokens", "embedding"): [96, 32],
    **{("model", "layers", "self_attn", f"{name}_proj", "kernel"): [2, 32, 32] for name in "qkvo"},
    **{("model", "layers", "mlp", f"{name}_proj", "kernel"): [2, 32, 48] for name in ("gate", "up")},
    ("model", "layers", "mlp", "down_proj", "kernel"): [2, 48, 32],
    **{("model", "layers", f"{name}_layernorm", "scale"): [2, 32] for name in ("input", "post_attention")},
    ("model", "norm", "scale"): [32],
    ("lm_head", "kernel"): [32, 96],
}
NUMBERS = 2 * 96 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32


def run(path: Path, shapes=SHAPES, config="", step="5") -> Path:
    params = path / "checkpoints" / step / "params"
    params.mkdir(parents=True)
    tree = {
        str(keys): {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {} if shape is None else {"value_type": "jax.Array", "write_shape": shape},
        }
        for keys, shape in shapes.items()
    }
    (params / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))
    (path / "config.yaml").write_text(
        f"output_dir: {path}\nmodel: {MODEL}\n"
        "data: {sources: [{path: text}], tokenizer: t, shards: s, sequence_length: 32}\n"
        "training: {max_steps: 1000, batch_size: 8, gradient_accumulation_steps: 2}\n" + config
    )
    return path


def test_a_run(tmp_path):
    found = find_subject(run(tmp_path))
    assert count_parameters(found).total == NUMBERS
    assert sum(tensor.nbytes for tensor in found.tensors.values()) == 4 * NUMBERS
    assert (found.training.rows, found.training.length, found.training.optimizer) == (4, 32, "adamw")
    assert found.facts["checkpoints"] == "5"


def test_a_run_that_has_saved_nothing(tmp_path):
    run(tmp_path)
    (tmp_path / "checkpoints" / "5").rename(tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp")
    found = find_subject(tmp_path)
    assert count_parameters(found).total == NUMBERS
    assert not found.is_stored


@pytest.mark.parametrize(
    ("keys", "shape"),
    [(("lm_head", "kernel"), [32, 97]), (("model", "star"), [1]), (("model", "norm", "scale"), [2, 32])],
)
def test_a_checkpoint_of_another_model(keys, shape, tmp_path):
    with pytest.raises(UserError, match=rf"holds {'.'.join(keys)} of shape .*bring back the config.yaml"):
        find_subject(run(tmp_path, SHAPES | {keys: shape}))


def test_an_imported_checkpoint_lists_no_shapes(tmp_path):
    assert count_parameters(find_subject(run(tmp_path, dict.fromkeys(SHAPES)))).total == NUMBERS


def test_a_run_that_has_cut_its_model_has_two(tmp_path):
    """The one that it has counts, and not the one that it began with."""
    shapes = SHAPES | {("model", "layers", "mlp", f"{name}_proj", "kernel"): [2, 32, 40] for name in ("gate", "up")}
    run(tmp_path, shapes | {("model", "layers", "mlp", "down_proj", "kernel"): [2, 40, 32]})
    (tmp_path / "model.yaml").write_text(MODEL.replace("48", "40"))
    assert count_parameters(find_subject(tmp_path)).total == NUMBERS - 2 * 3 * 8 * 32


def test_adapters_of_a_run(tmp_path):
    """Its checkpoint holds them alone; the base is stored elsewhere."""
    config = "init_from: base\nlora: {target_modules: [q_proj], r: 4, layers: '1'}\n"
    found = find_subject(run(tmp_path, {("model", "layers", "star"): [1]}, config))
    counted = count_parameters(found)
    assert counted.trained == counted.parts["adapters"] == 2 * 4 * 32
    assert counted.total == NUMBERS + 2 * 4 * 32
    assert sum(tensor.nbytes for tensor in found.tensors.values()) == 4 * 2 * 4 * 32


def test_the_language_model_of_several_towers(tmp_path):
    """Its fields are in text_config; other towers' tensors are no layers of it."""
    from test_stellarbyte.test_report.folders import LLAMA, folder, llama

    tensors = {f"language_{name}" if name.startswith("model") else name: value for name, value in llama().items()}
    tensors["vision_tower.encoder.layers.0.fc1.weight"] = ("F32", (8, 8))
    found = find_subject(folder(tmp_path / "m", {"model_type": "towers", "text_config": LLAMA}, tensors))
    counted = count_parameters(found)
    assert len(counted.layers) == 2
    assert counted.parts["other"] == 64
    assert found.fields["num_attention_heads"] == 4
