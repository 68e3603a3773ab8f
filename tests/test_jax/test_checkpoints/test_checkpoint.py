"""What is saved comes back to the last bit, and nothing that happens to the files makes it come back otherwise."""

import asyncio
import gc
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints import checkpoint as checkpoint_module
from stellarbyte_jax.checkpoints.checkpoint import (
    Checkpointer,
    RunMetadata,
    latest_step,
    load_metadata,
    load_params,
    restore,
    save_imported,
)
from stellarbyte_jax.checkpoints.checksums import checksums
from stellarbyte_jax.checkpoints.file_errors import reason
from stellarbyte_jax.checkpoints.orbax_noise import quieten_orbax
from stellarbyte_jax.config import CheckpointConfig, OptimizerConfig
from stellarbyte_jax.training.optimizer import make_optimizer

METADATA = RunMetadata({"seed": 3, "model": {"vocab_size": 7}}, {"tokenizer.json": '{"é": 1}'}, {"step": 30})
OPTIMIZER = make_optimizer(OptimizerConfig(warmup_steps=1), max_steps=10)


def state_of(step: int, width: int = 48) -> tuple[Any, Any]:
    """Parameters and an optimizer state with no two arrays alike."""
    keys = jax.random.split(jax.random.key(step), 3)
    params = {
        "model": {
            "embed_tokens": {"embedding": jax.random.normal(keys[0], (40, width))},
            "layers": {"mlp": {"up_proj": {"kernel": jax.random.normal(keys[1], (2, width, width))}}},
            "norm": {"scale": 1 + jax.random.normal(keys[2], (width,))},
        }
    }
    updates, opt_state = OPTIMIZER.update(jax.tree.map(lambda x: 0.1 * x - 0.3, params), OPTIMIZER.init(params), params)
    return optax.apply_updates(params, updates), opt_state


def abstract(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


def same_bits(a: Any, b: Any) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved") / "run"
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        for step in (10, 20, 30):
            checkpointer.save(step, *state_of(step), METADATA)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "run")


def steps(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / "checkpoints").iterdir())


def test_round_trip(run: Path) -> None:
    params, opt_state = state_of(30)
    restored = restore(run, abstract(params), abstract(opt_state))
    assert same_bits(restored[0], params)
    assert same_bits(restored[1], opt_state)
    assert restored[2:] == (METADATA, 30, None, None)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored[:2]))


def test_the_last_ones_are_kept(run: Path) -> None:
    assert steps(run) == ["20", "30"]
    assert latest_step(run) == 30
    assert latest_step(run / "nowhere") is None


def test_parameters_alone_are_numpy_and_need_no_model(run: Path) -> None:
    for step in (None, 20):
        params, metadata, found = load_params(run, step)
        assert found == (step or 30)
        assert metadata == METADATA
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
        assert same_bits(params, state_of(found)[0])
    assert load_metadata(run) == (METADATA, 30)


def test_saving_does_not_stop_donation_and_donation_does_not_touch_the_save(tmp_path: Path) -> None:
    def decay(tree: Any) -> Any:
        return jax.tree.map(lambda x: x * 0.5, tree)

    params, opt_state = state_of(1, width=256)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), params)
    step = jax.jit(decay, donate_argnums=0)
    with Checkpointer(tmp_path, CheckpointConfig(save_total_limit=1)) as checkpointer:
        checkpointer.save(1, params, opt_state, METADATA)
        for _ in range(20):
            params = step(params)
    assert same_bits(load_params(tmp_path)[0], expected)


def test_a_step_that_is_there_stays(run: Path) -> None:
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        checkpointer.save(30, *state_of(99), METADATA)
    assert same_bits(load_params(run)[0], state_of(30)[0])


def delete(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def biggest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("damage", [delete, halve, flip])
@pytest.mark.parametrize(
    "victim",
    [
        lambda step: biggest(step / "params"),
        lambda step: biggest(step / "opt_state"),
        lambda step: step / "params" / "manifest.ocdbt",
        lambda step: step / "opt_state" / "_METADATA",
        lambda step: step / "metadata" / "metadata",
    ],
    ids=["params", "opt_state", "manifest", "array list", "metadata"],
)
def test_a_damaged_checkpoint_falls_back_and_says_so(
    run: Path, victim: Callable[[Path], Path], damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    damage(victim(run / "checkpoints" / "30"))
    params, opt_state = state_of(20)
    restored = restore(run, abstract(params), abstract(opt_state))
    assert restored[3] == 20
    assert same_bits(restored[:2], (params, opt_state))
    warnings = capfd.readouterr().err.splitlines()
    assert len(warnings) == 2, warnings
    assert "checkpoints/30 is broken: " in warnings[0]
    assert warnings[1].endswith("checkpoints/30.broken")

    # Training goes on and writes the step anew.
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        checkpointer.save(30, *state_of(31), METADATA)
    assert steps(run) == ["20", "30", "30.broken"]
    assert same_bits(load_params(run)[0], state_of(31)[0])


@pytest.mark.long
@pytest.mark.parametrize("damage", [delete, halve, flip])
def test_whatever_file_is_damaged_what_comes_back_is_what_was_saved(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Of some files nothing is read; of the others damage is seen. And training goes on in either case."""
    inside = saved / "checkpoints" / "30"
    found = set()
    for number, file in enumerate(path for path in sorted(inside.rglob("*")) if path.is_file()):
        run = Path(shutil.copytree(saved, tmp_path / str(number)))
        damage(run / "checkpoints" / "30" / file.relative_to(inside))
        params, opt_state = state_of(30)
        restored = restore(run, abstract(params), abstract(opt_state))
        found.add(restored[3])
        assert same_bits(restored[:2], state_of(restored[3]))
        with Checkpointer(run, CheckpointConfig()) as checkpointer:
            checkpointer.save(40, *state_of(40), METADATA)
        assert latest_step(run) == 40
    assert found == {20, 30}


def test_reading_alone_moves_nothing(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    halve(biggest(run / "checkpoints" / "30" / "params"))
    params, _, step = load_params(run)
    assert step == 20
    assert same_bits(params, state_of(20)[0])
    assert "checkpoints/30 is broken" in capfd.readouterr().err
    assert steps(run) == ["20", "30"]
    with pytest.raises(UserError, match=r"checkpoints/30 cannot be read \(.+\): choose another step \(20\)"):
        load_params(run, 30)


@pytest.mark.parametrize("name", ["_METADATA", "_sharding", "manifest.ocdbt", "array_metadatas/process_0"])
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "endless device"])
def test_what_would_be_waited_for_is_not_opened(run: Path, name: str, put: Callable[[Path], None]) -> None:
    path = run / "checkpoints" / "30" / "params" / name
    path.unlink()
    put(path)
    assert load_params(run)[2] == 20
    with pytest.raises(UserError, match=rf"30 cannot be read \({path} is a pipe or a device\)"):
        load_params(run, 30)


@pytest.mark.parametrize("name", ["_METADATA", "array_metadatas/process_0"])
def test_lists_of_arrays_that_are_nested_too_deep(run: Path, name: str) -> None:
    (run / "checkpoints" / "30" / "params" / name).write_bytes(b"[" * 100_000)
    params, opt_state = state_of(20)
    assert restore(run, abstract(params), abstract(opt_state))[3] == 20


def test_nothing_left(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for step in ("20", "30"):
        delete(run / "checkpoints" / step / "params" / "_METADATA")
    complaint = (
        r"checkpoints: none of its checkpoints can be read \(steps 20, 30\), the newest because no list of the arr"
    )
    with pytest.raises(UserError, match=complaint):
        restore(run, *map(abstract, state_of(20)))
    assert capfd.readouterr().err == "", "what ends in a sentence needs no warnings before it"
    assert steps(run) == ["20", "30"]
    with pytest.raises(UserError, match="nowhere/checkpoints holds no checkpoint"):
        load_params(run / "nowhere")
    (run / "hf").mkdir()
    (run / "hf" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"RUN_DIR .*hf is a Hugging Face folder: make a run of it with"):
        load_params(run / "hf")
    with pytest.raises(UserError, match="holds no checkpoint of step 25, only of 20, 30"):
        load_params(run, 25)


def test_a_broken_checkpoint_of_a_model_that_was_cut(tmp_path: Path) -> None:
    """The one before it is of the larger model, and not what the run would go on with."""
    pruned = {"kept": {"channels": jnp.array([[True, False]])}}
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        checkpointer.save(1, *state_of(1), METADATA, None, pruned)
        checkpointer.save(2, *state_of(2), METADATA)
    wanted = [abstract(tree) for tree in state_of(2)]
    assert restore(tmp_path, *wanted)[5] is None
    delete(tmp_path / "checkpoints" / "2" / "params" / "_METADATA")
    with pytest.raises(
        UserError, match=r"1 holds the model before training\.prune had cut it, and the checkpoints aft"
    ):
        restore(tmp_path, *wanted)
    assert same_bits(restore(tmp_path, *wanted, abstract_pruned=abstract(pruned))[5], pruned)


def test_leftovers_of_a_crash_are_no_checkpoint(run: Path) -> None:
    leftover = run / "checkpoints" / "40.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "30", leftover)
    assert latest_step(run) == 30
    assert load_params(run)[2] == 30
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        checkpointer.save(40, *state_of(40), METADATA)
    assert steps(run) == ["30", "40"]


def test_other_arrays_are_refused_not_taken_for_damage(run: Path) -> None:
    params, opt_state = map(abstract, state_of(30))

    def complaint(params: Any) -> str:
        with pytest.raises(UserError) as caught:
            restore(run, params, opt_state)
        return str(caught.value)

    wider = jax.tree.map(lambda x: x, params)
    wider["model"]["norm"]["scale"] = jax.ShapeDtypeStruct((49,), jnp.float32)
    assert complaint(wider).endswith("30/params: model.norm.scale is float32[48], but this config makes it float32[49]")
    wider["model"]["norm"]["scale"] = jax.ShapeDtypeStruct((48,), jnp.bfloat16)
    assert "is float32[48], but this config makes it bfloat16[48]" in complaint(wider)
    del wider["model"]["norm"]
    assert complaint(wider).endswith("30/params holds model.norm.scale, for which this config has no place")
    more = {**params, "lm_head": {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}}
    assert complaint(more).endswith("30/params lacks lm_head.kernel, which this config asks for")
    assert steps(run) == ["20", "30"]


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file over 20 kB can be written: the system refuses as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("little_room")
def test_a_failed_save_is_one_sentence_and_leaves_the_last_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def train() -> None:
        with Checkpointer(tmp_path, CheckpointConfig(save_total_limit=1)) as checkpointer:
            checkpointer.save(1, *state_of(1, width=8), METADATA)
            checkpointer.save(2, *state_of(2, width=256), METADATA)

    with pytest.raises(UserError) as caught:
        train()
    message = str(caught.value)
    assert message == (
        f"{tmp_path}/checkpoints: the checkpoint of step 2 cannot be saved: File too large; "
        "that of step 1 is intact, and the next run goes on from it"
    )
    assert capfd.readouterr().err == ""
    assert steps(tmp_path) == ["1"]
    params, opt_state = state_of(1, width=8)
    restored = restore(tmp_path, abstract(params), abstract(opt_state))
    assert same_bits(restored[:2], (params, opt_state))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpointer(tmp_path, CheckpointConfig(save_total_limit=1)) as checkpointer:

        def full() -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpointer._manager, "wait_until_finished", full)
        with pytest.raises(UserError, match=r"checkpoints: checkpoints cannot be saved: No space left on device$"):
            checkpointer.wait()
        monkeypatch.undo()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="checkpoints cannot be saved: Not a directory"):
        Checkpointer(tmp_path / "run", CheckpointConfig(save_total_limit=1))


def test_an_imported_model_is_step_0_without_an_optimizer(tmp_path: Path) -> None:
    params, opt_state = state_of(5)
    save_imported(tmp_path, jax.tree.map(np.asarray, params), METADATA)
    assert same_bits(load_params(tmp_path)[0], params)
    restored = restore(tmp_path, abstract(params), abstract(opt_state))
    assert same_bits(restored[0], params)
    assert restored[1] is None
    assert restored[3] == 0
    with pytest.raises(UserError, match="holds a checkpoint of step 0 already: choose another run directory"):
        save_imported(tmp_path, params, METADATA)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
def test_checksums_see_every_element_and_are_equal_on_both_sides(dtype: str) -> None:
    array = (100 * jax.random.normal(jax.random.key(0), (3, 5, 7))).astype(dtype)
    (device,) = checksums({"a": array}).values()
    assert checksums({"a": np.asarray(array)}) == {"a": device}
    assert checksums({"a": np.asarray(array)[:, ::-1]}) != {"a": device}
    changed = [checksums({"a": np.asarray(array.at[index].multiply(2))}) for index in np.ndindex(3, 5, 7)]
    assert all(each != {"a": device} for each, index in zip(changed, np.ndindex(3, 5, 7), strict=True) if array[index])
    assert checksums({"a": jnp.int32(7)}) == checksums({"a": np.array(7, np.int32)}) == {"a": 7}


ACROSS_MESHES = """
import sys, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, load_params, restore
from stellarbyte_jax.config import CheckpointConfig
def mesh(a, b): return jax.make_mesh((a, b), ("x", "y"), axis_types=(AxisType.Auto, AxisType.Auto))
values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
first = NamedSharding(mesh(2, 4), P("x", "y"))
with Checkpointer(sys.argv[1], CheckpointConfig()) as checkpointer:
    checkpointer.save(1, {"kernel": jax.device_put(values, first)}, None, RunMetadata({}, {}))
for sharding in (NamedSharding(mesh(8, 1), P("x")), NamedSharding(mesh(4, 2), P("y", "x")), None):
    target = {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=sharding)}
    params, *_ = restore(sys.argv[1], target, None)
    assert np.array_equal(params["kernel"], values)
    assert sharding is None or params["kernel"].sharding == sharding
assert np.array_equal(load_params(sys.argv[1])[0]["kernel"], values)
"""


def test_saved_on_one_mesh_restored_on_others(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ACROSS_MESHES, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["00040", "checkpoint-foo", "-1", "1" * 40])
def test_folders_that_no_run_has_made_are_passed_over(run: Path, name: str) -> None:
    (run / "checkpoints" / name).mkdir()
    assert latest_step(run) == 30
    assert load_params(run)[2] == 30
    restored = restore(run, *map(abstract, state_of(30)))
    assert restored[3] == 30
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        checkpointer.save(40, *state_of(40), METADATA)
    assert load_params(run)[2] == 40
    assert (run / "checkpoints" / name).is_dir()


def test_a_checkpoint_that_was_removed_while_it_was_read_is_not_called_broken(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read = checkpoint_module.read_numpy_arrays

    def overtaken(folder: Path, *arguments: Any) -> Any:
        if folder.parent.name == "30":  # the run that goes on saves two more, and removes this one
            (run / "checkpoints" / "20").rename(run / "checkpoints" / "50")
            shutil.rmtree(folder)
        return read(folder, *arguments)

    monkeypatch.setattr(checkpoint_module, "read_numpy_arrays", overtaken)
    params, _, step = load_params(run)
    assert step == 50
    assert same_bits(params, state_of(20)[0])
    assert capfd.readouterr().err == ""


def test_what_a_failed_save_leaves_to_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(str(unraisable.exc_value)))
    quieten_orbax()
    quieten_orbax()
    for words in ("Event loop is closed", "another"):
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(words)))  # type: ignore[arg-type]
    assert said == ["another"]


def test_what_a_failed_read_leaves_to_say_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async def abandon() -> None:
        loop = asyncio.get_running_loop()
        loop.create_future().set_exception(ValueError("what another array has told"))
        gc.collect()
        loop.call_exception_handler({"message": "another"})

    quieten_orbax()
    asyncio.run(abandon())
    assert [record.message for record in caplog.records] == ["another"]


def test_the_reason_is_the_systems_own_words() -> None:
    told = "RESOURCE_EXHAUSTED: Error writing x [os_error_code='28'] [tensorstore_spec='{locking: true}']"
    assert reason(ValueError(told)) == "No space left on device"
