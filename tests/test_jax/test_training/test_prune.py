"""A pruned run: chosen by importance, evaluated before and after, saved as a run to go on from."""

import json
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte_jax.checkpoints.checkpoint import latest_step, load_params
from stellarbyte_jax.config_file import load_model_config, load_run_config, save_config
from stellarbyte_jax.training.evaluation import evaluate_run
from stellarbyte_jax.training.load import load_model
from stellarbyte_jax.training.prune import prune_run


@pytest.fixture(scope="module")
def pruned(finished_run: Path, tmp_path_factory: pytest.TempPathFactory):
    output_dir = tmp_path_factory.mktemp("pruned") / "run"
    return prune_run(finished_run, output_dir, 3), output_dir


def test_the_least_important_heads_went(pruned) -> None:
    done, output_dir = pruned
    taken = sorted(done.importance[layer, head] for layer, heads in done.heads.items() for head in heads)
    assert len(taken) == 3
    assert taken == sorted(done.importance.reshape(-1))[:3]
    model, _, _ = load_model(output_dir)
    gone = {layer: list(heads) for layer, heads in enumerate(model.config.pruned_heads or ()) if heads}
    assert gone == done.heads


def test_the_figures_are_those_of_evaluate(pruned, finished_run: Path) -> None:
    done, _ = pruned
    figures, step = evaluate_run(finished_run)
    assert done.step == step
    assert done.before == pytest.approx(figures)
    assert done.after["loss"] != pytest.approx(figures["loss"], abs=1e-6)
    assert done.after["tokens"] == figures["tokens"]


@pytest.mark.usefixtures("one_device")
def test_training_goes_on_from_there(pruned, finished_run: Path, tmp_path: Path, capsys) -> None:
    done, output_dir = pruned
    save_config(load_run_config(finished_run / "config.yaml"), tmp_path / "config.yaml")
    arguments = ["--model", str(output_dir / "model.yaml"), "--output_dir", str(output_dir)]
    assert main(["pretrain", str(tmp_path / "config.yaml"), *arguments]) == 0
    assert latest_step(output_dir) == 12
    params, _, _ = load_params(output_dir)
    H = load_model_config(output_dir / "model.yaml").head_dim
    kernel = np.asarray(params["model"]["layers"]["self_attn"]["o_proj"]["kernel"])
    for layer, heads in done.heads.items():
        for head in heads:
            assert (kernel[layer, head * H : (head + 1) * H] == 0).all(), "what is gone stays gone"
    capsys.readouterr()


def test_nothing_is_overwritten(pruned, finished_run: Path) -> None:
    with pytest.raises(UserError, match="holds checkpoints already: choose another folder"):
        prune_run(finished_run, pruned[1], 1)


@pytest.mark.parametrize("count", [0, -1])
def test_no_batches_are_no_judgement(count: int, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^eval_batches {count} must be at least 1"):
        prune_run(finished_run, tmp_path / "out", 1, eval_batches=count)
    assert not (tmp_path / "out").exists()


def test_command(finished_run: Path, tmp_path: Path, capsys) -> None:
    arguments = [str(finished_run), str(tmp_path / "out"), "--heads", "2", "--whole-groups", "--eval-batches", "1"]
    assert main(["prune", *arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert sum(map(len, record["pruned_heads"].values())) == 2
    assert np.shape(record["importance"]) == (2, 4)
    assert record["before"]["loss"] > 0 and record["after"]["loss"] > 0
    assert main(["prune", str(finished_run), str(tmp_path / "more"), "--heads", "8"]) == 2
    assert "8 heads cannot be taken, only 6: every layer must keep at least one" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_a_folder_that_another_command_writes_is_refused(finished_run: Path, tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match="is being written by process")
    with folder_lock(tmp_path / "out", doing="pretrain"), refused:
        prune_run(finished_run, tmp_path / "out", 1)
