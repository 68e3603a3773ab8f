"""Conversions go tensor by tensor, go on where they were interrupted, and hold no more than a few tensors."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import hf_checkpoint, names, run_checkpoint, shards, weights
from convert.run_checkpoint import RunCheckpoint
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupted
from stellarbyte.journal import NAME, Journal
from stellarbyte_jax.checkpoint_config import CheckpointConfig
from stellarbyte_jax.checkpoints import array_writer, stored_arrays
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata
from stellarbyte_jax.config_file import save_config, to_dict
from test_convert.models import bits, held, random_params, sensible_params, tiny

SIZE = "20KB"  # makes several files of the tests' run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt_after(nbytes):
    def progress(done, _):
        if done > nbytes:
            raise Interrupted(signal.SIGINT)

    return progress


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_files_are_those_of_the_safetensors_library(tmp_path, dtype):
    config = tiny(xpos_learnable=True, num_hidden_layers=11)
    params = sensible_params(config)
    tensors = weights.to_hf(params, config, dtype)
    shards.write(tensors, tmp_path, 10**9, lambda *_: None, Journal(tmp_path, {}))
    arrays = {key: np.asarray(tensor) for key, tensor in tensors.items()}
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / shards.WEIGHTS).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_an_interrupted_export_goes_on(run_dir, tmp_path, capsys):
    hf_checkpoint.to_hf(run_dir, tmp_path / "whole" / "hf", max_shard_size=SIZE)
    whole, target = contents(tmp_path / "whole" / "hf"), tmp_path / "home" / "hf"
    partial = target.with_name(".hf.partial")
    with pytest.raises(Interrupted) as interrupted:
        hf_checkpoint.to_hf(run_dir, target, max_shard_size=SIZE, progress=interrupt_after(50_000))
    assert interrupted.value.state.endswith(".hf.partial, and the same command goes on from there")
    assert [path.name for path in target.parent.iterdir()] == [".hf.partial"]
    whole_files = Journal(partial, json.loads((partial / NAME).read_text().split("\n")[0])).done
    (partial / min(whole_files)).write_bytes(b"damaged")
    (partial / "stranger.py").write_text("evil()")
    hf_checkpoint.to_hf(run_dir, target, max_shard_size=SIZE)
    assert contents(target) == whole
    assert [path.name for path in target.parent.iterdir()] == ["hf"]
    files = sum(name.endswith(".safetensors") for name in whole)
    told = f"going on: {len(whole_files) - 1} of {files} files of weights are there"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"max_shard_size": "30KB"}, {"run": "another"}])
def test_what_another_conversion_left_is_not_taken(run_dir, tmp_path, other, capsys):
    target = tmp_path / "hf"
    with pytest.raises(Interrupted):
        hf_checkpoint.to_hf(run_dir, target, max_shard_size=SIZE, progress=interrupt_after(50_000))
    options, run = {"max_shard_size": SIZE} | other, run_dir
    if options.pop("run", None):
        checkpoint = run_checkpoint.load(run_dir)
        params = weights.unflatten({path: -np.asarray(leaf) for path, leaf in weights.flatten(checkpoint.params)})
        run = tmp_path / "run"
        run_checkpoint.save(run, replace(checkpoint, params=params))
    hf_checkpoint.to_hf(run, target, **options)
    hf_checkpoint.to_hf(run, tmp_path / "whole" / "hf", **options)
    assert contents(target) == contents(tmp_path / "whole" / "hf")
    assert "going on" not in capsys.readouterr().err


def test_damage_leaves_nothing_to_go_on_with(run_dir, tmp_path):
    checkpoint = run_checkpoint.load(run_dir)
    params = {path: np.asarray(leaf) for path, leaf in weights.flatten(checkpoint.params)}
    params["lm_head", "kernel"] = params["lm_head", "kernel"] * np.nan
    run_checkpoint.save(tmp_path / "run", replace(checkpoint, params=weights.unflatten(params)))
    with pytest.raises(UserError, match=r"lm_head\.weight with 7200 of 7200 values that are nan"):
        hf_checkpoint.to_hf(tmp_path / "run", tmp_path / "hf", max_shard_size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_interrupted_import_goes_on(exported, tmp_path, monkeypatch):
    for module in (stored_arrays, array_writer):
        monkeypatch.setattr(module, "SMALL_BYTES", 1000)
    hf_checkpoint.from_hf(exported, tmp_path / "whole")
    with pytest.raises(Interrupted, match="SIGINT"):
        hf_checkpoint.from_hf(exported, tmp_path / "run", interrupt_after(50_000))
    assert not (tmp_path / "run").exists()
    read, original = [], shards._read_values

    def counted(path, begin, shape, dtype):
        read.append(begin)
        return original(path, begin, shape, dtype)

    monkeypatch.setattr(shards, "_read_values", counted)
    hf_checkpoint.from_hf(exported, tmp_path / "run")
    assert 0 < len(read) < len(load_file(exported / shards.WEIGHTS))
    assert bits(run_checkpoint.load(tmp_path / "run").params) == bits(run_checkpoint.load(tmp_path / "whole").params)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "model.yaml"}
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["0"]


def test_float16_is_refused_outside_its_range_and_tells_of_zeros(run_dir, tmp_path, capsys):
    checkpoint = run_checkpoint.load(run_dir)
    params = {path: np.asarray(leaf).copy() for path, leaf in weights.flatten(checkpoint.params)}
    head = params["lm_head", "kernel"]
    head[0, :3] = 1e-8, -1e-8, 0.0
    run_checkpoint.save(tmp_path / "small", replace(checkpoint, params=weights.unflatten(params)))
    assert main(["convert", "to-hf", str(tmp_path / "small"), str(tmp_path / "hf"), "--dtype", "float16"]) == 0
    assert "warning: 2 weights are too small for float16 and are zero in the export" in capsys.readouterr().err
    stored = load_file(tmp_path / "hf" / shards.WEIGHTS)
    assert {str(array.dtype) for key, array in stored.items() if "zeta" not in key} == {"float16"}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float16"
    np.testing.assert_array_equal(stored["lm_head.weight"], head.T.astype(np.float16))
    head[0, :2] = 65520.0, -1e30
    run_checkpoint.save(tmp_path / "large", replace(checkpoint, params=weights.unflatten(params)))
    with pytest.raises(UserError, match=r"lm_head\.weight with 2 of 7200 values beyond the largest of float16, 65504"):
        hf_checkpoint.to_hf(tmp_path / "large", tmp_path / "never", dtype="float16")
    assert not (tmp_path / "never").exists()


def test_the_best_step_is_exported(run_dir, tmp_path, capsys):
    before = run_checkpoint.load(run_dir)
    metadata = RunMetadata({"model": to_dict(before.config)}, dict(before.tokenizer_files))
    run = tmp_path / "run"
    with Checkpointer(run, CheckpointConfig(save_total_limit=3)) as checkpointer:
        for step in (1, 2, 3):
            params = weights.unflatten({path: step * leaf for path, leaf in weights.flatten(held(before.params))})
            checkpointer.save(step, params, None, metadata)
    save_config(before.config, run / "model.yaml")
    with pytest.raises(UserError, match="no checkpoint of a step with a validation_loss"):
        hf_checkpoint.to_hf(run, tmp_path / "none", step="best")
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 0.5}  # of step 4 there is no checkpoint
    records = [{"step": step, "validation_loss": loss} for step, loss in losses.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["convert", "to-hf", str(run), str(tmp_path / "hf"), "--step", "best"]) == 0
    assert "step 2, " in capsys.readouterr().out
    stored = load_file(tmp_path / "hf" / shards.WEIGHTS)["model.norm.weight"]
    np.testing.assert_array_equal(stored, 2 * np.asarray(before.params["model"]["norm"]["scale"]))


@pytest.fixture(scope="module")
def wide_run(tokenizer, tmp_path_factory):
    """A run of 0.5 GB."""
    config = tiny(vocab_size=300, hidden_size=1024, intermediate_size=4096, num_hidden_layers=9, head_dim=256)
    draw = np.random.default_rng(0)
    shapes = names.jax_shapes(config)
    params = {path: draw.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    path = tmp_path_factory.mktemp("wide") / "run"
    run_checkpoint.save(path, RunCheckpoint(weights.unflatten(params), config, tokenizer.files, step=0))
    return path


@pytest.mark.long
def test_memory_is_a_few_tensors(wide_run, tmp_path, memory_of):
    hf, again = str(tmp_path / "hf"), str(tmp_path / "again")
    for command in (["to-hf", str(wide_run), hf, "--max-shard-size", "50MB"], ["from-hf", hf, again]):
        code, megabytes = memory_of("convert", *command)
        assert code == 0
        assert megabytes < 0.95 * (2 * 50 + 300), "two files and 300 MB, in MiB; the model has 500 MB"


@pytest.fixture(scope="module")
def worded_run(tokenizer, tmp_path_factory):
    """A run of 0.6 GB, most of which are an embedding and a head of 262 MB each."""
    config = tiny(vocab_size=64_000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=2, head_dim=256)
    draw = np.random.default_rng(0)
    shapes = names.jax_shapes(config)
    params = {path: 0.02 * draw.standard_normal(shape, np.float32) for path, shape in shapes.items()}
    path = tmp_path_factory.mktemp("worded") / "run"
    run_checkpoint.save(path, RunCheckpoint(weights.unflatten(params), config, tokenizer.files, step=0))
    return path


@pytest.mark.long
def test_verifying_holds_no_more_than_two_files(worded_run, tmp_path, memory_of):
    hf = tmp_path / "hf"
    hf_checkpoint.to_hf(worded_run, hf, max_shard_size="100MB")  # the embedding and the head have files of their own
    file = max(path.stat().st_size for path in hf.glob("*.safetensors")) / 2**20
    code, megabytes = memory_of(
        "convert",
        "verify",
        str(worded_run),
        str(hf),
        imports="convert.verifying.jax_side, convert.verifying.torch_side",
    )
    assert json.loads((hf / "certificate.json").read_text())["verdict"] == "PASS"
    assert code == 0
    assert megabytes < 2 * file + 0.95 * 300, "two files and 300 MB, in MiB"


@pytest.mark.long
@pytest.mark.parametrize("direction", ["to-hf", "from-hf"])
def test_a_killed_conversion_goes_on(wide_run, tmp_path, direction):
    hf_checkpoint.to_hf(wide_run, tmp_path / "whole" / "hf", max_shard_size="50MB")
    source = wide_run if direction == "to-hf" else tmp_path / "whole" / "hf"
    options = ["--max-shard-size", "50MB"] if direction == "to-hf" else []
    command = [sys.executable, "-m", "stellarbyte", "convert", direction, str(source), str(tmp_path / "out" / "hf")]
    killed = subprocess.Popen([*command, *options])
    notes = tmp_path / "out" / ".hf.partial" / ".unfinished.jsonl"
    deadline = time.monotonic() + 60
    while not (notes.exists() and notes.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out" / "hf").exists()
    assert notes.exists()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert "going on: " in done.stderr
    if direction == "to-hf":
        assert contents(tmp_path / "out" / "hf") == contents(tmp_path / "whole" / "hf")
    else:
        found = run_checkpoint.load(tmp_path / "out" / "hf").params
        assert bits(found) == bits(run_checkpoint.load(wide_run).params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_bits_go_through_files(tmp_path, dtype):
    config = tiny(num_experts=3, moe_intermediate_size=8, num_shared_experts=1, xpos_learnable=True)
    tensors = weights.to_hf(random_params(config, dtype=dtype), config)
    shards.write(tensors, tmp_path, 9000, lambda *_: None, Journal(tmp_path, {}))
    assert bits(weights.from_hf(shards.read(tmp_path), config)) == bits(random_params(config, dtype=dtype))
