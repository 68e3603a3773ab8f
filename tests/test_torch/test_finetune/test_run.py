import copy
import errno
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stellarbyte.errors import UserError
from stellarbyte.figures import figure_of
from stellarbyte.file_manifest import MANIFEST, write_manifest
from stellarbyte_torch.finetune.checkpoints import newest_checkpoint
from stellarbyte_torch.finetune.config import load_finetune_config
from stellarbyte_torch.finetune.progress import FinetuneProgress
from stellarbyte_torch.lora import LoRAManager, load_lora, merge_and_save
from tiers import short_tier

from ..finetuning import LORA, config, metrics, model_folder, run
from ..lora_models import llama
from ..tiny import SWITCHES, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def changed(folder: Path, trained: Path) -> set[str]:
    before, after = load_file(folder / "model.safetensors"), load_file(trained / "model.safetensors")
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_lora_leaves_a_stock_peft_folder(folder: Path, tmp_path: Path) -> None:
    summary, printed = run(config(folder, tmp_path))
    assert summary["validation_loss_after"] < summary["validation_loss_before"] - 0.5
    assert summary["steps"] == summary["best_step"] == 8
    assert summary["trainable_parameters"] / summary["parameters"] < 0.1
    assert summary["peak_memory_bytes"] > 1e8
    assert "50 records: 40 training and 10 validation samples" in printed
    # Stock PEFT finds the base by itself, from whatever folder it is called in.
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"
    assert fields["base_model_name_or_path"] == str(folder.resolve())
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "adapter")) == 300
    # It is the model whose validation loss was printed last.
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokens(2, 12)
    assert not torch.equal(model(ids).logits, base(ids).logits)
    newest = PeftModel.from_pretrained(base, tmp_path / "checkpoints" / "checkpoint-8")
    assert torch.equal(model(ids).logits, newest(ids).logits)
    # Each step once, the validation before the first step, and after the last though 3 does not divide 8.
    assert [record["step"] for record in metrics(tmp_path) if "loss" in record] == list(range(1, 9))
    assert [record["step"] for record in metrics(tmp_path) if "validation_loss" in record] == [0, 3, 6, 8]
    assert all(figure_of(key) is not None for record in metrics(tmp_path) for key in record if key != "step")
    steps = [record for record in metrics(tmp_path) if "loss" in record]
    assert steps[-1]["tokens_seen"] == sum(record["tokens"] for record in steps)
    assert not list(tmp_path.rglob("training_args.bin"))


def test_full_fine_tuning_leaves_a_hugging_face_folder(folder: Path, tmp_path: Path) -> None:
    summary, _ = run(config(folder, tmp_path, lora=None))
    assert summary["trainable_parameters"] == summary["parameters"]
    assert changed(folder, tmp_path / "model") == set(load_file(folder / "model.safetensors"))
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "model"))
    assert before == after
    written = {path.name for path in (tmp_path / "model").iterdir()}
    assert written >= {"tokenizer.json", "modeling_stellarbyte.py", "configuration_stellarbyte.py"}
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_frozen_layers(folder: Path, tmp_path: Path) -> None:
    trainable = load_trainable(tmp_path, "layers: '1', norms: true")
    run(config(folder, tmp_path / "run", lora=None, trainable=trainable))
    names = set(load_file(folder / "model.safetensors"))
    expected = {name for name in names if "layers.1." in name or "norm" in name}
    assert changed(folder, tmp_path / "run" / "model") == expected


def load_trainable(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "c.yaml"
    path.write_text(f"model: x\noutput_dir: y\ndata: {{sources: [{{path: x}}]}}\ntrainable: {{{text}}}\n")
    return load_finetune_config(path).trainable


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupting(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.undo()
    on_step_end = FinetuneProgress.on_step_end
    monkeypatch.setattr(FinetuneProgress, "on_step_end", interrupting)


@pytest.mark.parametrize(
    "changes",
    short_tier(
        [
            {"lora": {**LORA, "lora_dropout": 0.2}, "training": {"gradient_accumulation_steps": 2}},
            {"lora": None, "training": {"eval_steps": 5, "per_device_train_batch_size": 4}},
            {"data": {"packing": True}, "lora": {**LORA, "lora_dropout": 0.2}},
            {"early_stopping_patience": 4, "training": {"eval_steps": 1, "learning_rate": 0.2, "max_steps": 20}},
        ],
        *(1, 2),
    ),
    ids=["lora", "full", "packed", "early"],
)
def test_interrupted_is_uninterrupted(
    changes: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(name: str) -> Any:
        return config(folder, tmp_path / name, **copy.deepcopy(changes))

    whole, _ = run(settings("whole"))
    # In the first epoch, and in a later one; where it stops by itself at 11, when evaluations are no better any more.
    stops = (2, 9) if whole["steps"] == 11 else (2, 6)
    for stop_at in stops:
        interrupt_at(stop_at, monkeypatch)
        summary, printed = run(settings("parts"))
        assert not summary["finished"]
        assert f"stopped after step {stop_at}, saved in {tmp_path / 'parts'}: the same command goes on" in printed
        assert not (tmp_path / "parts" / "summary.json").exists()
    monkeypatch.undo()
    summary, printed = run(settings("parts"))
    assert summary["finished"] and f"going on after step {stops[-1]}" in printed
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for name in ("steps", "best_step", "train_loss_first", "validation_loss_before", "validation_loss_after"):
        assert summary[name] == whole[name]
    kind = "model" if changes.get("lora", LORA) is None else "adapter"
    (one,), (other,) = ((tmp_path / name / kind).glob("*.safetensors") for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()
    before = (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    again, printed = run(settings("parts"))
    assert again == summary and "has ended already" in printed
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == before


def test_a_run_that_an_earlier_version_began_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config.yaml calls data.sequence_length data.max_length, and its adapter is an adapter."""
    interrupt_at(3, monkeypatch)
    run(config(folder, tmp_path / "run"))
    monkeypatch.undo()
    saved = tmp_path / "run" / "config.yaml"
    assert saved.read_text().count("sequence_length: 96") == 1
    saved.write_text(saved.read_text().replace("sequence_length: 96", "max_length: 96"))
    other = config(folder, tmp_path / "run", data={"sequence_length": 64})
    with pytest.raises(UserError, match=r"another config: data\.sequence_length \(was 96, now 64\)"):
        run(other)
    summary, printed = run(config(folder, tmp_path / "run"))
    assert summary["finished"] and "going on after step 3" in printed
    assert "sequence_length: 96" in saved.read_text()

    saved.write_text(saved.read_text().replace("sequence_length: 96", "max_length: 96"))
    again, printed = run(config(folder, tmp_path / "run"))
    assert again == summary and "has ended already" in printed
    merge_and_save(
        load_lora(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "run" / "adapter"), tmp_path / "m"
    )
    AutoModelForCausalLM.from_pretrained(tmp_path / "m")


def test_a_checkpoint_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    for step, state in ((9, "{}"), (10, '{"epo'), (11, None)):
        checkpoint = tmp_path / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        if state is not None:
            (checkpoint / "trainer_state.json").write_text(state)
        if step == 9:
            write_manifest(checkpoint, {})
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-9"
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_early_stopping_keeps_the_best(folder: Path, tmp_path: Path) -> None:
    # So high a rate that validation gets worse again soon.
    training = {"max_steps": 40, "eval_steps": 1, "learning_rate": 0.3, "warmup_steps": 0, "max_grad_norm": 0.0}
    summary, _ = run(config(folder, tmp_path, early_stopping_patience=2, training=training))
    losses = [record["validation_loss"] for record in metrics(tmp_path) if "validation_loss" in record]
    assert summary["steps"] < 40
    assert summary["validation_loss_after"] == min(losses[1:])
    assert summary["best_step"] == losses.index(min(losses[1:]), 1) == summary["steps"] - 2
    best = tmp_path / "checkpoints" / f"checkpoint-{summary['best_step']}" / "adapter_model.safetensors"
    assert best.read_bytes() == (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    again, _ = run(config(folder, tmp_path, early_stopping_patience=2, training=training))
    assert again == summary  # it has ended, and is not trained on


@pytest.mark.parametrize("changes", [{}, {"lora": None}], ids=["lora", "full"])
def test_activation_checkpointing_changes_no_loss(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    run(config(folder, tmp_path / "plain", **changes, training={"max_steps": 3}))
    run(config(folder, tmp_path / "less", **changes, training={"max_steps": 3, "activation_checkpointing": True}))
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "less")


def test_bfloat16(folder: Path, tmp_path: Path) -> None:
    mixed, _ = run(config(folder, tmp_path / "mixed", training={"bf16": True}))
    pure, _ = run(config(folder, tmp_path / "pure", dtype="bfloat16", lora=None))
    exact, _ = run(config(folder, tmp_path / "exact"))
    assert mixed["validation_loss_after"] == pytest.approx(exact["validation_loss_after"], rel=0.02)
    assert mixed["validation_loss_after"] != exact["validation_loss_after"]
    assert pure["validation_loss_after"] < pure["validation_loss_before"] - 0.5
    assert {value.dtype for value in load_file(tmp_path / "pure" / "model" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    adapter = load_file(tmp_path / "mixed" / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}


def test_lora_on_an_int8_base(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    rounded, _ = run(config(folder, tmp_path / "int8", quantization="int8"))
    exact, _ = run(config(folder, tmp_path / "float"))
    for name in ("validation_loss_before", "validation_loss_after"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.01)
        assert rounded[name] != exact[name]
    # What was trained on the rounded base loads on the whole one.
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "int8" / "adapter")
    assert torch.isfinite(model(tokens(1, 8)).logits).all()


def test_another_model_and_no_validation(folder: Path, tmp_path: Path) -> None:
    model = llama(vocab_size=300)
    model.save_pretrained(tmp_path / "llama")
    data = {"tokenizer": str(folder), "validation_fraction": 0.0}
    settings = config(folder, tmp_path / "run", data=data)
    summary, _ = run(type(settings)(**{**settings.__dict__, "model": str(tmp_path / "llama")}))
    assert summary["validation_loss_before"] is summary["validation_loss_after"] is None
    assert summary["train_loss_last"] < summary["train_loss_first"]
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


def test_experts_train_by_their_routers_losses_too(tmp_path: Path) -> None:
    sparse = model_folder(tmp_path / "sparse", **SWITCHES["experts"], router_aux_loss_coef=10.0)
    run(config(sparse, tmp_path / "full", lora=None, training={"max_steps": 2}))
    run(config(sparse, tmp_path / "lora", training={"max_steps": 2}))
    full, lora = metrics(tmp_path / "full"), metrics(tmp_path / "lora")
    assert full[0] == lora[0]  # the validation loss is the cross entropy alone
    assert full[1]["loss"] > lora[1]["loss"] + 9.0


def test_another_run_in_the_folder(folder: Path, tmp_path: Path) -> None:
    run(config(folder, tmp_path, training={"max_steps": 1}))
    with pytest.raises(UserError, match=r"holds a run with another config: lora\.r \(was 4, now 8\), training\.seed"):
        run(config(folder, tmp_path, lora={**LORA, "r": 8}, training={"max_steps": 1, "seed": 3}))
    run(config(folder, tmp_path, training={"max_steps": 1, "logging_steps": 5, "save_total_limit": 9}))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"holds another kind of run, choose another one: .*:1: seed is not a field"):
        run(config(folder, tmp_path))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"holds checkpoints, but no run of this command: choose another one"):
        run(config(folder, tmp_path))
    with pytest.raises(UserError, match=r"holds config\.json, but no run of this command: choose another one"):
        run(config(folder, folder))


def test_other_data_under_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "model")
    settings = config(folder, tmp_path / "run")
    interrupt_at(2, monkeypatch)
    assert not run(settings)[0]["finished"]
    lines = (folder / "chat.jsonl").read_text().splitlines(keepends=True)
    (folder / "chat.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match="holds a run on other samples: the sources or the tokenizer have changed"):
        run(settings)


@pytest.mark.parametrize("logging_steps", [1, 50])
def test_a_loss_that_is_not_finite(logging_steps: int, folder: Path, tmp_path: Path) -> None:
    training = {"learning_rate": 1e30, "warmup_steps": 0, "logging_steps": logging_steps}
    with pytest.raises(UserError, match=r"of step \d+ is (nan|inf): lower training.learning_rate") as error:
        run(config(folder, tmp_path, lora=None, dtype="float32", training=training))
    assert all(record.get("loss") is not None or "validation_loss" in record for record in metrics(tmp_path))
    # It stops before the step is taken: the model of the last good one is whole, and finite.
    (step,) = re.findall(r"of step (\d+), the last good one, is saved in", str(error.value))
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{step}"
    assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """What a full disk does to every writer, but for the words."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 3_000])  # the first file does not fit, or one of the last
@pytest.mark.parametrize("changes", short_tier([{}, {"lora": None}], 0), ids=["lora", "full"])
def test_a_full_disk_at_a_checkpoint(size: int, changes: Any, folder: Path, tmp_path: Path) -> None:
    on_step_end = FinetuneProgress.on_step_end
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:

        def filling(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            on_step_end(self, args, state, control, **kwargs)
            if state.global_step == 6:
                stack.enter_context(small_files(size))

        patch.setattr(FinetuneProgress, "on_step_end", filling)
        with pytest.raises(UserError, match="cannot be written"):
            run(config(folder, tmp_path / "run", **changes))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-3"]
    _, printed = run(config(folder, tmp_path / "run", **changes))
    assert "going on after step 3" in printed
    run(config(folder, tmp_path / "whole", **changes))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), Exception("No space left (os error 28)")])
def test_a_full_disk_at_the_end(error: Exception, folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def filling(*_: Any, **__: Any) -> None:
            raise error

        patch.setattr("stellarbyte_torch.finetune.run.write_card", filling)
        with pytest.raises(UserError, match=r"run/adapter: [Nn]o space left"):
            run(config(folder, tmp_path / "run"))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "samples.sha256", "metrics.jsonl", "checkpoints"}
    summary, _ = run(config(folder, tmp_path / "run"))
    assert summary["finished"] and (tmp_path / "run" / "adapter" / MANIFEST).exists()


def test_a_damaged_result_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    run(config(folder, tmp_path / "lora", training={"max_steps": 1}))
    run(config(folder, tmp_path / "full", lora=None, training={"max_steps": 1}))
    adapter, model = tmp_path / "lora" / "adapter", tmp_path / "full" / "model"
    manager = LoRAManager(AutoModelForCausalLM.from_pretrained(folder))
    manager.register("good", adapter)
    for path in (adapter / "adapter_model.safetensors", model / "model.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    damaged = "is damaged: .*model.safetensors is not as it was written; bring it back from a copy"
    with pytest.raises(UserError, match=damaged):
        manager.register("bad", adapter)
    with pytest.raises(UserError, match=damaged):
        run(replace(config(folder, tmp_path / "next"), model=str(model)))
    manager.save("good", adapter)  # another one in its place has no manifest to keep
    manager.register("saved", adapter)


def test_a_result_that_is_damaged_is_made_again(folder: Path, tmp_path: Path) -> None:
    run(config(folder, tmp_path, training={"max_steps": 2}))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    _, printed = run(config(folder, tmp_path, training={"max_steps": 2}))
    assert "adapter is damaged (adapter_model.safetensors is not as it was written): it is made again" in printed
    assert "going on after step 2" in printed and weights.read_bytes() == good
    shutil.rmtree(tmp_path / "adapter")
    run(config(folder, tmp_path, training={"max_steps": 2}))
    assert weights.read_bytes() == good


def test_drop_last_is_about_training_alone(folder: Path, tmp_path: Path) -> None:
    training = {
        "max_steps": -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 7,
        "per_device_eval_batch_size": 4,
    }
    run(config(folder, tmp_path / "all", training=training))
    run(config(folder, tmp_path / "dropped", training={**training, "dataloader_drop_last": True}))
    whole, dropped = metrics(tmp_path / "all"), metrics(tmp_path / "dropped")
    assert whole[0] == dropped[0] and "validation_loss" in whole[0]
    assert max(record["step"] for record in whole) == 6 and max(record["step"] for record in dropped) == 5


def test_the_card_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    run(config(folder, tmp_path / "stock", training={"max_steps": 1}))
    run(config(folder, tmp_path / "ours", lora={**LORA, "activation": "silu"}, training={"max_steps": 1}))
    run(config(folder, tmp_path / "full", lora=None, training={"max_steps": 1}))
    stock, ours = ((tmp_path / name / "adapter" / "README.md").read_text() for name in ("stock", "ours"))
    full = (tmp_path / "full" / "model" / "README.md").read_text()
    assert "PeftModel.from_pretrained(base" in stock and "lora.r: 4" in stock and "chat.jsonl" in stock
    assert "load_lora(base" in ours and "stock PEFT cannot load it" in ours
    for text in (stock, ours, full):
        assert f"base_model: {folder}" in text and "- validation loss: " in text and "More Information" not in text
        (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        exec(program, {})  # as it stands
    # Where StellarByte is not installed, whatever reads config.json needs the code beside it.
    assert full.count(", trust_remote_code=True)") == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"lora": {"target_modules": ["q_prj"]}},
            r"lora\.target_modules has 'q_prj', which matches no module",
        ),
        ({"lora": {**LORA, "train_layers": "9"}}, r"lora\.train_layers names layer 9, and the model has layers 0 to 1"),
        ({"data": {"sequence_length": 129}}, r"data\.sequence_length 129 is more than the 128 positions of model"),
        ({"data": {"validation_fraction": 0.0, "sources": ()}}, r"sources is \(\) but must name at least one source"),
        ({"training": {"fp16": True}}, r"training\.fp16 needs a CUDA GPU, and there is none here"),
        ({"training": {"report_to": "swanlab"}}, r"training\.report_to swanlab needs a package: pip install swanlab"),
        (
            {"training": {"fsdp": "full_shard"}},
            r"training\.fsdp needs several processes: start the command by `torchrun",
        ),
        (
            {"training": {"dataloader_drop_last": True, "per_device_train_batch_size": 64}},
            r"training\.dataloader_drop_last leaves out all 40 training rows, as a batch on 1 .* has 64: .* 40 or",
        ),
        ({"training": {"max_steps": 0}}, r"training\.max_steps is 0: choose 1 or more"),
        (
            {"training": {"max_steps": -1, "num_train_epochs": 0}},
            r"training\.num_train_epochs is 0: choose more than 0",
        ),
        ({"training": {"report_to": "foo"}}, r"training\.report_to is 'foo', expected one of none, all, "),
        ({"training": {"accelerator_config": "x.json"}}, r"training\.accelerator_config x\.json is not a file"),
        ({"training": {"deepspeed": "x.json"}}, r"training\.deepspeed needs a package: pip install deepspeed"),
        ({"training": {"save_steps": 4}}, r"training: .*requires the saving steps to be a round multiple"),
        (
            {"early_stopping_patience": 1, "training": {"load_best_model_at_end": False}},
            "early_stopping_patience needs the best model to be kept",
        ),
        ({"quantization": "int8"}, r"quantization int8 needs torchao: pip install torchao"),
        ({"quantization": "nf4"}, r"quantization nf4 needs a CUDA GPU, and there is none here"),
        ({"model": "nowhere"}, r"model nowhere is not a folder, relative to .*: give a model's Hugging Face folder"),
        ({"model": "../x/hf"}, r"model \.\./x/hf is not a folder"),
    ],
    ids=str,
)
def test_mistakes(
    changes: dict[str, Any], complaint: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stellarbyte_torch.finetune.base_model.find_spec", lambda _: None)
    monkeypatch.setattr("stellarbyte_torch.finetune.setup.find_spec", lambda _: None)
    with pytest.raises(UserError, match=complaint):
        run(config(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_optimizer_whose_package_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training: You need to install `galore_torch`"):
        run(config(folder, tmp_path, training={"optim": "galore_adamw", "optim_target_modules": ["q_proj"]}))


def test_mistakes_of_layers(folder: Path, tmp_path: Path) -> None:
    for text, complaint in (
        ("layers: 5-7", r"trainable\.layers names layer 5, and the model has layers 0 to 1"),
        ("layers: [x]", r"c\.yaml:4: trainable\.layers\.0 is 'x', expected an integer"),
    ):
        with pytest.raises(UserError, match=complaint):
            run(config(folder, tmp_path / "run", lora=None, trainable=load_trainable(tmp_path, text)))


def test_folders_without_a_template_or_a_model(folder: Path, tmp_path: Path) -> None:
    bare = model_folder(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template: set data\.chat_template to a Jinja file"):
        run(config(bare, tmp_path / "run"))
    summary, _ = run(config(bare, tmp_path / "run", data={"chat_template": "stellarbyte"}, training={"max_steps": 1}))
    saved = AutoTokenizer.from_pretrained(summary["saved_in"])
    assert saved.chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model .*empty holds no config\.json"):
        run(config(tmp_path / "empty", tmp_path / "other"))
