"""Runs that start from another run's weights: the very bits, the law of resuming, and what is refused."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from convert import hf_checkpoint
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import latest_step, load_metadata
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import load_run_config, save_config, to_dict
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.start import start
from stellarbyte_jax.training.state import init_state
from test_jax.runs import Crash, bits, crash, losses, records
from tiers import short_tier

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]


def started(config: RunConfig, folder: Path, **fields: object) -> RunConfig:
    return dataclasses.replace(config, init_from=str(folder), **fields)


def tree_bits(tree: object) -> dict[str, bytes]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


@pytest.mark.usefixtures("one_device")
def test_the_weights_are_the_other_runs_and_all_else_is_new(run_config: MakeConfig, finished_run: Path) -> None:
    config = started(run_config(training={"max_steps": 4}), finished_run)
    optimizer = make_optimizer(config.optimizer, config.training.max_steps)
    lies = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: lies, jax.eval_shape(lambda: init_state(config.model, optimizer, 0)))
    begun = start(config, optimizer, shardings, {})
    state = begun.state
    assert begun.step == 0 == int(state.step)
    assert (begun.frozen, begun.base) == ({}, None)
    assert tree_bits(state.params) == bits(finished_run)
    assert tree_bits(state.opt_state) == tree_bits(jax.jit(optimizer.init)(state.params))

    assert pretrain(config)
    first, *_ = records(config.output_dir)
    assert first["step"] == 0
    assert first["validation_loss"] == pytest.approx(records(finished_run)[-1]["validation_loss"], rel=1e-6)
    assert records(config.output_dir)[1]["learning_rate"] == pytest.approx(1e-2 / 3)
    metadata, step = load_metadata(config.output_dir)
    assert step == 4 and metadata.config["init_from"] == str(finished_run)


@pytest.mark.parametrize("at", short_tier([3, 8]))  # test_loop.py has law 6
@pytest.mark.usefixtures("one_device")
def test_law_6_goes_on_from_its_own_checkpoints(
    at: int, run_config: MakeConfig, finished_run: Path, tmp_path: Path, disturb: Callable
) -> None:
    """A crash before the first checkpoint starts from the other run again; one after it no longer needs it."""
    shutil.copytree(finished_run, tmp_path / "first")
    config = started(run_config(), tmp_path / "first")
    whole = dataclasses.replace(config, output_dir=f"{config.output_dir}-whole")
    assert pretrain(whole)
    disturb(at, crash)
    with pytest.raises(Crash):
        pretrain(config)
    assert latest_step(config.output_dir) == (5 if at > 5 else None)
    if at > 5:
        shutil.rmtree(tmp_path / "first")
    assert pretrain(config)
    assert records(config.output_dir) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)
    if at > 5:
        with pytest.raises(UserError, match=r"init_from \(was .*first, now None\)"):
            pretrain(dataclasses.replace(config, init_from=None))


@pytest.mark.long  # test_mesh.py has law 5
def test_law_5_eight_devices_read_their_own_parts(run_config: MakeConfig, finished_run: Path, tmp_path: Path) -> None:
    steps = {"training": {"max_steps": 4}}
    one, eight = run_config(**steps), run_config(**steps, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    eight = started(eight, finished_run)
    assert pretrain(eight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        one = started(one, finished_run, output_dir=str(tmp_path / "one"))
        assert pretrain(one)
    assert np.allclose(losses(eight.output_dir), losses(one.output_dir), rtol=1e-5, atol=0)


def test_the_model_may_be_left_out(run_config: MakeConfig, finished_run: Path, tmp_path: Path) -> None:
    fields = to_dict(run_config())
    del fields["model"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(fields | {"init_from": str(finished_run)}))
    assert load_run_config(path).model == run_config().model
    assert load_run_config(path, ["--model.hidden_dropout", "0.1"]).model.hidden_dropout == 0.1

    shutil.copytree(finished_run / "checkpoints", tmp_path / "imported" / "checkpoints")
    override = ["--init_from", str(tmp_path / "imported")]
    with pytest.raises(UserError, match=r"has neither config\.yaml nor model\.yaml: name its model in `model`"):
        load_run_config(path, override)
    save_config(run_config().model, tmp_path / "imported" / "model.yaml")
    assert load_run_config(path, override).model == run_config().model

    path.write_text(yaml.safe_dump(fields | {"init_from": str(tmp_path / "nowhere")}))
    with pytest.raises(UserError, match=r"config\.yaml:\d+: init_from .*nowhere holds no checkpoints: name the output"):
        load_run_config(path)


@pytest.mark.usefixtures("one_device")
def test_a_hugging_face_folder_is_told_the_command(
    run_config: MakeConfig, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that the error names makes a folder that works."""
    hf_checkpoint.to_hf(finished_run, tmp_path / "hf")
    config = started(run_config(training={"max_steps": 2}, optimizer={"warmup_steps": 0}), tmp_path / "hf")
    with pytest.raises(UserError) as refused:
        pretrain(config)
    assert f"`stellarbyte convert from-hf {tmp_path}/hf {tmp_path}/hf-run`" in str(refused.value)

    hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "hf-run")
    fields = to_dict(config) | {"init_from": str(tmp_path / "hf-run")}
    del fields["model"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fields))
    assert main(["pretrain", str(tmp_path / "run.yaml")]) == 0
    assert f"from the weights of {tmp_path}/hf-run" in capsys.readouterr().out
    first, *_ = records(config.output_dir)
    assert first["validation_loss"] == pytest.approx(records(finished_run)[-1]["validation_loss"], rel=1e-6)


@pytest.mark.usefixtures("one_device")
def test_another_model_or_tokenizer_is_refused(
    run_config: MakeConfig, finished_run: Path, corpus: Path, tmp_path: Path
) -> None:
    config = started(run_config(model={"rope_theta": 500.0, "num_hidden_layers": 3}), finished_run)
    with pytest.raises(UserError) as refused:
        pretrain(config)
    assert "model.num_hidden_layers (there 2, here 3), model.rope_theta (there 10000.0, here 500.0)" in str(
        refused.value
    )
    assert not Path(config.output_dir).exists()

    train_tokenizer([corpus.read_text(encoding="utf-8")], 300, tmp_path / "other", report=lambda _: None)
    config = run_config(data={"tokenizer": str(tmp_path / "other"), "shards": str(tmp_path / "shards")})
    prepare(config.data, report=lambda _: None)
    with pytest.raises(UserError, match=r"init_from .* has another tokenizer than data\.tokenizer .*other"):
        pretrain(started(config, finished_run))


def test_the_folder_of_the_run_itself_is_refused(run_config: MakeConfig) -> None:
    config = run_config()
    with pytest.raises(UserError, match="is output_dir as well"):
        started(config, Path(config.output_dir + "/"))
