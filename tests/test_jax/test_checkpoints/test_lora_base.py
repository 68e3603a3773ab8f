"""Runs that train adapters: laws 5, 6 and 8, what is saved, what loads them, and a base that has changed."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from jax.sharding import PartitionSpec as P

from convert import hf_checkpoint, run_checkpoint
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.pruning.choice import Wanted
from stellarbyte.pruning.request import Request
from stellarbyte_jax.checkpoints.adapter_trees import join, merge_adapters
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, load_metadata, load_params, save_imported
from stellarbyte_jax.checkpoints.lora_base import load_weights
from stellarbyte_jax.checkpoints.needed import needed_by
from stellarbyte_jax.config import LoRAConfig, MeshConfig, RunConfig
from stellarbyte_jax.config_file import run_config_from_dict, to_dict
from stellarbyte_jax.pruning.prune import prune_run
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training.load import load_model
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.programs import Programs
from stellarbyte_jax.training.start import state_shardings
from stellarbyte_jax.training.state import abstract_model
from test_jax.conftest import twelve_steps
from test_jax.runs import Crash, bits, crash, losses, records
from test_jax.tiny import random_tokens
from tiers import short_tier

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]

LORA = LoRAConfig(
    target_modules=("q_proj", "v_proj", "o_proj", "mlp.down_proj"),
    r=2,
    lora_alpha=8,
    lora_dropout=0.1,
    rank_pattern={"down_proj": 3},
)


def adapting(config: RunConfig, base: Path, suffix: str = "", **fields: Any) -> RunConfig:
    fields = {"init_from": str(base), "lora": LORA, "output_dir": config.output_dir + suffix} | fields
    return dataclasses.replace(config, **fields)


@pytest.fixture(scope="module")
def adapted_run(
    finished_run: Path, small_data: Any, kept_programs: Any, tmp_path_factory: pytest.TempPathFactory
) -> RunConfig:
    """The config of a run of adapters that is done, on one device; nobody may change it."""
    config = adapting(twelve_steps(small_data, tmp_path_factory.mktemp("adapted") / "run"), finished_run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        patch.setattr(Programs, "of", kept_programs)
        assert pretrain(config)
    return config


def test_adapters_learn_and_are_all_that_is_saved(adapted_run: RunConfig, finished_run: Path) -> None:
    written = records(adapted_run.output_dir)
    before, after = records(finished_run)[-1], written[-1]
    assert written[0]["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-6), "B is zero at the start"
    assert after["validation_loss"] < before["validation_loss"] - 0.01

    shapes = {name: leaf.shape for name, leaf in _leaves(load_params(adapted_run.output_dir)[0]).items()}
    layers = "model.layers."
    assert shapes == {
        f"{layers}self_attn.q_proj.lora_A": (2, 16, 2), f"{layers}self_attn.q_proj.lora_B": (2, 2, 16),
        f"{layers}self_attn.v_proj.lora_A": (2, 16, 2), f"{layers}self_attn.v_proj.lora_B": (2, 2, 8),
        f"{layers}self_attn.o_proj.lora_A": (2, 16, 2), f"{layers}self_attn.o_proj.lora_B": (2, 2, 16),
        f"{layers}mlp.down_proj.lora_A": (2, 24, 3), f"{layers}mlp.down_proj.lora_B": (2, 3, 16),
    }  # fmt: skip
    checkpoints = Path(adapted_run.output_dir) / "checkpoints" / "12"
    sums = json.loads((checkpoints / "metadata" / "metadata").read_text())["checksums"]
    moments = [name for name in sums["opt_state"] if "layers" in name]
    assert len(moments) == 2 * len(shapes) and all("lora_" in name for name in moments)
    metadata, step = load_metadata(adapted_run.output_dir)
    assert step == 12 and metadata.base is not None
    assert (metadata.base.run_dir, metadata.base.step) == (str(finished_run), 12)
    assert adapted_run.output_dir in needed_by(finished_run)[12], "which does not delete what they stand on"
    assert run_config_from_dict(metadata.config, "there").lora == LORA


@pytest.mark.parametrize("at", short_tier([3, 8], 1))
@pytest.mark.usefixtures("one_device")
def test_law_6_interrupted_equals_uninterrupted(
    at: int, run_config: MakeConfig, adapted_run: RunConfig, finished_run: Path, disturb: Callable
) -> None:
    config = adapting(run_config(), finished_run)
    disturb(at, crash if at == 8 else lambda: os.kill(os.getpid(), signal.SIGTERM))
    if at == 8:
        with pytest.raises(Crash):
            pretrain(config)
    else:
        assert not pretrain(config)
    assert pretrain(config)
    assert records(config.output_dir) == records(adapted_run.output_dir)
    assert bits(config.output_dir) == bits(adapted_run.output_dir)


@pytest.mark.long  # the step is that of test_mesh.py, which has the law
def test_law_5_eight_devices_equal_one(
    run_config: MakeConfig, adapted_run: RunConfig, finished_run: Path, disturb: Callable
) -> None:
    """Dropout included; A lies like the kernel's inputs, B like its outputs."""
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    config = adapting(run_config(), finished_run, mesh=mesh)
    disturb(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(config)
    found = losses(config.output_dir)
    assert len(found) >= 4  # a busy machine may deliver the signal a step late
    assert np.allclose(found, losses(adapted_run.output_dir)[: len(found)], rtol=1e-5, atol=0)

    abstract = abstract_model(config.model, lora=LORA)[1]
    shardings, frozen = state_shardings(config, abstract, make_optimizer(config.optimizer, 12), Layout(make_mesh(mesh)))
    o_proj = shardings.params["model"]["layers"]["self_attn"]["o_proj"]
    assert (o_proj["lora_A"].spec, o_proj["lora_B"].spec) == (P(None, "tensor", None), P(None, None, "fsdp"))
    assert set(frozen["model"]["layers"]["self_attn"]["o_proj"]) == {"kernel"}


@pytest.mark.long  # the step is that of test_step.py, which has the law
@pytest.mark.usefixtures("one_device")
def test_law_8_micro_batches_equal_one_batch(run_config: MakeConfig, finished_run: Path) -> None:
    plain = dataclasses.replace(LORA, lora_dropout=0.0)  # what is dropped depends on the micro-batch
    for steps, suffix in ((1, "-whole"), (2, "-parts")):
        training = {"max_steps": 4, "gradient_accumulation_steps": steps}
        assert pretrain(adapting(run_config(training=training), finished_run, suffix, lora=plain))
    run_dir = run_config().output_dir
    assert np.allclose(losses(run_dir + "-parts"), losses(run_dir + "-whole"), rtol=1e-5, atol=0)


def test_everything_that_loads_a_run_takes_base_and_adapters(
    adapted_run: RunConfig, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, step_12 = adapted_run.output_dir, records(adapted_run.output_dir)[-1]
    assert main(["evaluate", run_dir, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(step_12["validation_loss"], rel=1e-6)

    base, adapters = load_params(finished_run)[0], load_params(run_dir)[0]
    weights, _, step = load_weights(run_dir)
    assert step == 12
    A_LDR, B_LRF = (
        adapters["model"]["layers"]["mlp"]["down_proj"][leaf].astype(np.float64) for leaf in ("lora_A", "lora_B")
    )
    expected = base["model"]["layers"]["mlp"]["down_proj"]["kernel"] + 8 / 3 * np.einsum("LDR,LRF->LDF", A_LDR, B_LRF)
    assert np.allclose(weights["model"]["layers"]["mlp"]["down_proj"]["kernel"], expected, rtol=1e-6, atol=1e-7)
    differing = {name for name, leaf in _leaves(base).items() if not np.array_equal(leaf, _leaves(weights)[name])}
    assert differing == {
        f"model.layers.{name}.kernel"
        for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    }

    model, _, _ = load_model(run_dir)
    assert np.array_equal(
        model.model.layers.mlp.down_proj.kernel[...], weights["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    )
    assert main(["generate", run_dir, "--prompt", "star", "--max-new-tokens", "4"]) == 0
    hf_checkpoint.to_hf(Path(run_dir), tmp_path / "hf")
    hf_checkpoint.from_hf(tmp_path / "hf", tmp_path / "merged")
    assert bits(tmp_path / "merged") == {
        f"['{k}']".replace(".", "']['"): v.tobytes() for k, v in _leaves(weights).items()
    }
    (report,) = prune_run(run_dir, tmp_path / "pruned", Request((0.9,), Wanted(0.9), samples=4, eval_batches=1))
    assert report.share == pytest.approx(0.9, abs=0.01)
    assert run_checkpoint.load(Path(run_dir)).step == 12


@pytest.mark.usefixtures("one_device")
def test_a_base_that_has_changed_or_gone_is_refused(
    run_config: MakeConfig, finished_run: Path, tmp_path: Path, disturb: Callable
) -> None:
    shutil.copytree(finished_run, tmp_path / "base")
    config = adapting(run_config(), tmp_path / "base")
    disturb(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(config)

    # Elsewhere is no matter, as long as it is the same.
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"holds adapters on step 12 of .*base, where there is no checkpoint"):
        load_model(config.output_dir)
    with pytest.raises(UserError, match="holds no checkpoints"):
        pretrain(config)
    config = dataclasses.replace(config, init_from=str(tmp_path / "moved"))
    disturb(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(config)
    assert load_model(config.output_dir)[2] == 7

    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "12")
    with pytest.raises(UserError, match=r"holds adapters on step 12 of .*moved, where there is only steps 10: bring"):
        pretrain(config)
    params, metadata, _ = load_params(finished_run, 10)
    params["model"]["norm"]["scale"] = np.nextafter(params["model"]["norm"]["scale"], np.float32(9))
    shutil.rmtree(tmp_path / "moved" / "checkpoints")
    save_imported(tmp_path / "other", params, metadata)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "0", tmp_path / "moved" / "checkpoints" / "12")
    with pytest.raises(UserError, match=r"holds adapters on other weights than step 12 of .*moved has now"):
        pretrain(config)


@pytest.mark.usefixtures("one_device")
def test_other_adapters_and_a_base_of_adapters_are_refused(
    run_config: MakeConfig, adapted_run: RunConfig, finished_run: Path
) -> None:
    other = dataclasses.replace(LORA, r=4)
    with pytest.raises(UserError, match=r"holds a run with another config: lora\.r \(was 2, now 4\)"):
        pretrain(dataclasses.replace(adapted_run, lora=other))
    with pytest.raises(UserError, match=r"init_from .* holds adapters on .*: make one model of both with"):
        pretrain(dataclasses.replace(run_config(), init_from=adapted_run.output_dir))
    target = dataclasses.replace(LORA, target_modules=("q_proj", "qkv"), rank_pattern={})
    with pytest.raises(UserError) as refused:
        pretrain(adapting(run_config(), finished_run, lora=target))
    assert str(refused.value) == (
        "lora.target_modules qkv fits no module: a layer of this model has mlp.down_proj, mlp.gate_proj, mlp.up_proj, "
        "self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"
    )


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_by_command_without_naming_the_model(
    run_config: MakeConfig, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = to_dict(run_config(training={"max_steps": 2}, optimizer={"warmup_steps": 0}))
    del fields["model"]
    lora = {"target_modules": "all-linear", "r": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fields | {"init_from": str(finished_run), "lora": lora}))
    assert main(["pretrain", str(tmp_path / "run.yaml"), "--lora.layers", "1"]) == 0
    # The sum of in + out over the seven matrices of a layer, in both layers, of which one stays zero.
    assert "464 parameters of adapters on 0.0 M" in capsys.readouterr().out
    adapters = _leaves(load_params(tmp_path / "run")[0])
    assert sum(leaf.size for leaf in adapters.values()) == 2 * (32 + 24 + 24 + 32 + 40 + 40 + 40)
    assert all(leaf[1].any() and not leaf[0].any() for leaf in adapters.values())


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_imported_adapters_start_a_run(run_config: MakeConfig, adapted_run: RunConfig) -> None:
    config = run_config(training={"max_steps": 2}, optimizer={"warmup_steps": 0, "learning_rate": 1e-4})
    config = dataclasses.replace(config, init_from=adapted_run.init_from, lora=LORA)
    params, metadata, _ = load_params(adapted_run.output_dir)
    imported = {"model": to_dict(config.model), "lora": to_dict(LORA)}
    save_imported(config.output_dir, params, RunMetadata(imported, metadata.tokenizer_files, base=metadata.base))
    with pytest.raises(UserError, match=r"another config: lora \("):
        pretrain(dataclasses.replace(config, lora=dataclasses.replace(LORA, lora_alpha=9)))
    assert pretrain(config)
    first, *_ = records(config.output_dir)
    assert first["validation_loss"] == pytest.approx(records(adapted_run.output_dir)[-1]["validation_loss"], rel=1e-6)


def test_merging_is_what_the_adapter_adds(adapted_run: RunConfig, finished_run: Path) -> None:
    """In a model that computes both, and in one of the merged weights."""
    base, adapters = load_params(finished_run)[0], load_params(adapted_run.output_dir)[0]
    ids = jnp.asarray(random_tokens(adapted_run.model, 2, 9))
    read = jax.jit(lambda graphdef, params: nnx.merge(graphdef, params)(ids).logits, static_argnums=0)
    beside = read(abstract_model(adapted_run.model, lora=LORA)[0], join(base, adapters))
    merged = jax.tree.map(np.asarray, merge_adapters(base, adapters, LORA))
    within = read(abstract_model(adapted_run.model)[0], merged)
    assert np.abs(beside - within).max() <= 1e-5 * np.abs(beside).max()


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
