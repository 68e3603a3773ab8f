"""A pruned folder: written whole, loaded by Transformers, and refused in one sentence where it cannot be made."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from stellarbyte.door import main
from stellarbyte.pruning.choice import Wanted
from stellarbyte.pruning.request import Request
from stellarbyte_torch.pruning.folder import prune_folder


def test_a_smaller_folder(folder: Path, text: Path, tmp_path: Path) -> None:
    request = Request((0.8,), Wanted(0.8, ("heads", "channels"), multiple=1), samples=4)
    (report,) = prune_folder(folder, tmp_path / "thin", request, data=str(text), device="cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "thin")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == report.after.parameters
    assert report.share == pytest.approx(0.8, abs=0.01)
    assert count / report.before.parameters == pytest.approx(report.share)
    assert [layer.channels for layer in report.layers] == list(model.config.intermediate_sizes)
    assert report.after.perplexity > 1 and report.after.decode_seconds > 0


def test_what_is_refused(folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(model: Path, *arguments: str) -> str:
        assert main(["prune", str(model), str(tmp_path / "out"), "--keep", "70%", *arguments]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "does not say what text it was trained on: name some with --data" in refusal(folder)
    assert "--step is for a run, and" in refusal(folder, "--step", "3")
    assert "is no run, model, adapter, token shards or" in refusal(tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "is quantised: prune the folder of floats"),
        ({"model_type": "llama"}, "is of type 'llama', and as a folder only a model of ours is pruned"),
    ):
        other = tmp_path / str(next(iter(change)))
        other.mkdir()
        (other / "config.json").write_text(json.dumps(fields | change))
        assert message in refusal(other, "--data", str(text))
    short = tmp_path / "short.txt"
    short.write_text("star")
    assert "tokens, and" in refusal(folder, "--data", str(short))
