import json
from dataclasses import replace

import numpy as np
import pytest

import convert.certificate as certificates
from convert import hf_checkpoint, layer_scale, run_checkpoint, weights
from convert.run_checkpoint import RunCheckpoint
from stellarbyte.door import main
from stellarbyte.errors import UserError
from test_convert.jax_side import JaxModel
from test_convert.models import held, sensible_params, tiny
from test_convert.parity import batches, relative
from test_convert.torch_side import TorchModel
from tiers import short_tier

CONFIGS = {
    "dense": {"attention_bias": True},
    "experts": {
        "num_experts": 4,
        "moe_intermediate_size": 8,
        "num_shared_experts": 1,
        "attention_bias": True,
        "pruned_heads": ((1,), (2, 3)),
    },
    "parallel": {"parallel_residual": True, "tie_word_embeddings": True},
}


@pytest.fixture
def scaled_run(tmp_path, tokenizer):
    config = tiny(
        vocab_size=300,
        layer_scale_init=0.1,
        attention_bias=True,
        num_experts=4,
        moe_intermediate_size=8,
        num_shared_experts=1,
    )
    run_checkpoint.save(tmp_path / "run", RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    return tmp_path / "run"


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_folded_model_is_the_same_function(fields):
    config = tiny(layer_scale_init=0.1, **fields)
    params, batch = sensible_params(config), batches(config)["plain"]
    without = layer_scale.without_layer_scale(config)
    folded = weights.from_hf(layer_scale.to_hf_folded(params, config, "float32"), without)
    whole, jax_model = JaxModel(config, params).logits(batch), JaxModel(without, folded)
    assert relative(jax_model.logits(batch), whole) < 1e-5
    assert relative(TorchModel(without, folded).loss(batch)[0], whole) < 1e-5
    unscaled = {**params, "model": {**params["model"], "layers": dict(params["model"]["layers"])}}
    for name in ("self_attn_layer_scale", "mlp_layer_scale"):
        del unscaled["model"]["layers"][name]
    assert relative(jax_model.logits(batch, unscaled), whole) > 1e-2, "LayerScale must matter"


def test_products_are_rounded_once_to_float32_and_once_more_to_bfloat16():
    config = tiny(layer_scale_init=0.1)
    params = sensible_params(config)
    layers = params["model"]["layers"]
    expected = (layers["mlp"]["down_proj"]["kernel"][1] * layers["mlp_layer_scale"]["scale"][1]).T
    folded = {dtype: layer_scale.to_hf_folded(params, config, dtype) for dtype in ("float32", "bfloat16")}
    key = "model.layers.1.mlp.down_proj.weight"
    assert np.asarray(folded["float32"][key]).tobytes() == expected.tobytes()
    assert np.asarray(folded["bfloat16"][key]).tobytes() == expected.astype(weights.DTYPES["bfloat16"]).tobytes()
    untouched = "model.layers.1.mlp.up_proj.weight"
    assert np.asarray(folded["float32"][untouched]).tobytes() == layers["mlp"]["up_proj"]["kernel"][1].T.tobytes()


@pytest.mark.parametrize("dtype", short_tier(["float32", "bfloat16"], 1))
def test_a_folded_export_says_so_and_is_certified(scaled_run, tmp_path, dtype, capsys, request):
    export = tmp_path / "hf"
    if dtype == "bfloat16":  # what it computes is compared in one of the two
        request.getfixturevalue("no_models")
    assert main(["convert", "to-hf", str(scaled_run), str(export), "--fold-layer-scale", "--dtype", dtype]) == 0
    assert json.loads((export / "config.json").read_text())["layer_scale_init"] is None
    assert "LayerScale folded into the projections" in (export / "README.md").read_text()
    assert json.loads((export / "stellarbyte_export.json").read_text())["layer_scale"] == "folded into the projections"
    assert main(["convert", "verify", str(scaled_run), str(export)]) == 0
    assert f"step 0 of {scaled_run} (LayerScale folded in)\n" in capsys.readouterr().out
    assert json.loads((export / "certificate.json").read_text())["layer_scale_folded"] is True
    hf_checkpoint.from_hf(export, tmp_path / "back")
    assert run_checkpoint.load(tmp_path / "back").config.layer_scale_init is None


@pytest.mark.usefixtures("no_models")
def test_an_export_that_was_not_folded_keeps_it(scaled_run, tmp_path):
    hf_checkpoint.to_hf(scaled_run, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["layer_scale_init"] == 0.1
    assert "folded" not in (tmp_path / "hf" / "README.md").read_text()
    certificate = certificates.verify(scaled_run, tmp_path / "hf")
    assert (certificate["verdict"], certificate["layer_scale_folded"]) == ("PASS", False)


@pytest.mark.usefixtures("no_models")
def test_other_weights_in_a_folded_export_are_found(scaled_run, tmp_path):
    hf_checkpoint.to_hf(scaled_run, tmp_path / "hf", fold_layer_scale=True)
    checkpoint = run_checkpoint.load(scaled_run)
    params = held(checkpoint.params)
    params["model"]["layers"]["mlp_layer_scale"]["scale"][1, 3] *= 1.5
    run_checkpoint.save(tmp_path / "other", replace(checkpoint, params=params))
    differences = certificates.verify(tmp_path / "other", tmp_path / "hf")["differences"]
    assert "the values of model.layers.1.mlp.experts.down_proj are not those of the run" in differences
    assert not any("self_attn" in difference for difference in differences)


def test_nothing_to_fold_is_one_sentence(run_dir, tmp_path):
    with pytest.raises(UserError, match=r"\(layer_scale_init is null\): leave out --fold-layer-scale"):
        hf_checkpoint.to_hf(run_dir, tmp_path / "hf", fold_layer_scale=True)
    assert not (tmp_path / "hf").exists()
