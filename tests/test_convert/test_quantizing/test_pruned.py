"""A run that is pruned unevenly goes every way that it went before: out, proved equal, back, and into fewer bits."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stellarbyte.door import main
from stellarbyte.pruning.choice import Wanted
from stellarbyte.pruning.request import Request
from stellarbyte_jax.checkpoints.checkpoint import load_params
from stellarbyte_jax.pruning.prune import prune_run
from stellarbyte_jax.training.load import load_model
from stellarbyte_torch.model_folder import load_model as load_folder
from test_convert.models import bits

from .conftest import FEW, PASS_ALL


@pytest.fixture(scope="module")
def thin(trained, tmp_path_factory):
    """The trained run without a third of it; its layers differ."""
    folder = tmp_path_factory.mktemp("thin") / "run"
    (report,) = prune_run(trained, folder, Request((0.7,), Wanted(0.7, multiple=8), samples=4, eval_batches=1))
    assert report.layers[0] != report.layers[1]
    return folder


@pytest.mark.long
def test_out_proved_equal_and_back(thin, tmp_path, capsys) -> None:
    assert main(["convert", "to-hf", str(thin), str(tmp_path / "hf")]) == 0
    assert main(["convert", "verify", str(thin), str(tmp_path / "hf")]) == 0
    assert "PASS: " in capsys.readouterr().out
    ids = np.random.default_rng(0).integers(3, 300, (2, 9)).astype(np.int32)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(torch.tensor(ids).long()).logits
    ours = load_model(thin)[0](ids).logits
    assert np.abs(theirs.numpy() - np.asarray(ours)).max() < 1e-4
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    assert bits(load_params(tmp_path / "back")[0]) == bits(load_params(thin)[0])
    capsys.readouterr()
    assert main(["convert", "to-hf", str(thin), str(tmp_path / "stock"), "--as", "llama"]) == 2
    assert "intermediate_size" in capsys.readouterr().err


@pytest.mark.long
def test_into_fewer_bits(thin, text, tmp_path, capsys) -> None:
    words = ["quantize", str(thin), str(tmp_path / "q"), "--method", "rtn", "--bits", "8", "--group-size", "8", *FEW]
    words += ["--data", str(text)]
    assert main([*words, *PASS_ALL]) == 0, capsys.readouterr().err
    model, config = load_folder(tmp_path / "q", "cpu", "float32"), load_model(thin)[0].config
    assert tuple(model.config.intermediate_sizes) == config.intermediate_sizes
    ids = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = np.asarray(load_model(thin)[0](ids.numpy().astype(np.int32)).logits)
        assert np.abs(model(ids).logits.numpy() - ours).max() < 0.05 * np.abs(ours).max()
