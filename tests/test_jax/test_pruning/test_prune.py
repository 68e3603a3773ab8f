"""A pruned run: chosen by importance, measured before and after, saved as a run to go on from."""

import json
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.pruning.choice import Wanted
from stellarbyte.pruning.request import Request
from stellarbyte_jax.checkpoints.checkpoint import latest_step, load_params
from stellarbyte_jax.config_file import load_model_config, load_run_config, save_config
from stellarbyte_jax.pruning.prune import prune_run
from stellarbyte_jax.training.evaluation import evaluate_run
from stellarbyte_jax.training.load import load_model

REQUEST = Request((0.9, 0.8), Wanted(0.8, ("heads", "channels"), multiple=4), samples=8)


@pytest.fixture(scope="module")
def pruned(finished_run: Path, tmp_path_factory: pytest.TempPathFactory):
    output_dir = tmp_path_factory.mktemp("pruned") / "run"
    return prune_run(finished_run, output_dir, REQUEST), output_dir


def test_each_share_is_reported_and_the_last_is_written(pruned) -> None:
    reports, output_dir = pruned
    assert [report.share for report in reports] == pytest.approx([0.9, 0.8], abs=0.01)
    config = load_model_config(output_dir / "model.yaml")
    last = reports[-1]
    assert [layer.channels for layer in last.layers] == list(config.intermediate_sizes)
    assert last.after.parameters / last.before.parameters == pytest.approx(last.share)
    assert last.after.parameters < reports[0].after.parameters < last.before.parameters
    assert last.after.flops < last.before.flops and last.after.prefill_seconds > 0 and last.after.decode_seconds > 0


def test_the_figures_are_those_of_evaluate(pruned, finished_run: Path) -> None:
    reports, _ = pruned
    figures, _ = evaluate_run(finished_run)
    assert reports[0].before.loss == pytest.approx(figures["loss"])
    assert reports[-1].after.loss != pytest.approx(figures["loss"], abs=1e-6)


@pytest.mark.usefixtures("one_device")
def test_training_goes_on_from_there(pruned, finished_run: Path, tmp_path: Path, capsys) -> None:
    _, output_dir = pruned
    save_config(load_run_config(finished_run / "config.yaml"), tmp_path / "config.yaml")
    arguments = ["--model", str(output_dir / "model.yaml"), "--output_dir", str(output_dir)]
    assert main(["pretrain", str(tmp_path / "config.yaml"), *arguments]) == 0
    assert latest_step(output_dir) == 12
    params, _, _ = load_params(output_dir)
    config = load_model_config(output_dir / "model.yaml")
    kernel = np.asarray(params["model"]["layers"]["mlp"]["down_proj"]["kernel"])
    for layer, width in enumerate(config.intermediate_sizes):
        assert not kernel[layer, width:].any() and kernel[layer, :width].any(axis=1).all()
    capsys.readouterr()


def test_command(finished_run: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--keep", "95%,85%", "--what", "channels", "--even", "--multiple", "1", "--importance", "wanda"]
    arguments += ["--samples", "4", "--eval-batches", "1", "--pareto", str(tmp_path / "p.svg"), "--json"]
    assert main(["prune", str(finished_run), str(tmp_path / "out"), *arguments]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["share"] for report in reports] == pytest.approx([0.95, 0.85], abs=0.01)
    picture = (tmp_path / "p.svg").read_text()
    assert all(f">{share:.0%}</text>" in picture for share in (1.0, *(report["share"] for report in reports)))
    model, _, _ = load_model(tmp_path / "out")
    assert isinstance(model.config.intermediate_size, int)
    assert main(["prune", str(finished_run), str(tmp_path / "out"), "--keep", "90%"]) == 2
    assert "out exists already: name a folder that is new or empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0%"], "--keep 0% must be above 0 and below 100%"),
        (["--keep", "120%"], "--keep 120% must be above 0 and below 100%"),
        (["--keep", "half"], "--keep 'half' is no share: write 70% or 0.7"),
        (["--keep", "70%", "--what", "neurons"], "--what 'neurons' is none of heads, channels, layers, experts"),
        (["--keep", "70%", "--what", "experts"], "--what experts needs a model with experts, and this one has none"),
        (["--keep", "1%"], "--keep 1.0% is too little: of heads, channels only so much can go that"),
        (["--keep", "70%", "--eval-batches", "0"], "--eval-batches 0 must be at least 1"),
        (["--keep", "70%", "--device", "cpu"], "--device is for a folder, and"),
        (["--keep", "70%", "--recover", "nowhere"], "--recover nowhere is no file: name a config"),
        (["--keep", "70%", "--pareto", "nowhere/p.svg"], "--pareto nowhere/p.svg is in no folder that is there"),
        (["--keep", "70%", "--recover", "configs/model/tiny.yaml"], "configs/model/tiny.yaml:"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, finished_run: Path, tmp_path: Path, capsys) -> None:
    assert main(["prune", str(finished_run), str(tmp_path / "out"), "--samples", "4", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_where_and_of_what_no_model_is_pruned(finished_run: Path, tmp_path: Path, capsys) -> None:
    """Within the model's own folder, over what is there, and of folders that hold no model."""

    def refusal(model: Path, output: Path) -> str:
        assert main(["prune", str(model), str(output), "--keep", "70%"]) == 2
        return capsys.readouterr().err

    inside = finished_run / "thin"
    assert f"{inside} is in {finished_run}: name a folder beside it" in refusal(finished_run, inside)
    assert not inside.exists()
    assert "exists already: name a folder that is new or empty" in refusal(finished_run, finished_run)
    for name, files, message in (
        ("adapter", {"adapter_config.json": "{}"}, "adapter is an adapter: name its base"),
        (
            "tuning",
            {"config.yaml": "model: hf\ndata: {sources: []}\n"},
            "tuning is a fine-tuning run: it has made no model",
        ),
        ("shards", {"manifest.json": "{}"}, "shards holds no model: name a run, or a Hugging Face folder"),
        ("nothing", {}, "nothing is no run, model, adapter, token shards or tokenizer of ours"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_text(content)
        assert message in refusal(folder, tmp_path / "out"), name
    assert "nowhere is not there: name a folder" in refusal(tmp_path / "nowhere", tmp_path / "out")


def test_nothing_is_overwritten(pruned, finished_run: Path) -> None:
    with pytest.raises(UserError, match="holds checkpoints already: choose another folder"):
        prune_run(finished_run, pruned[1], REQUEST)


def test_a_folder_that_another_command_writes_is_refused(finished_run: Path, tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match="is being written by process")
    with folder_lock(tmp_path / "out", doing="pretrain"), refused:
        prune_run(finished_run, tmp_path / "out", REQUEST)
