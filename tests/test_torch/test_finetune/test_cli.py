import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stellarbyte import door
from stellarbyte.folder_lock import folder_lock
from stellarbyte_torch import LoRAConfig, lora
from stellarbyte_torch import model_folder as model_folder_module
from stellarbyte_torch.finetune import run

from ..finetuning import metrics, model_folder
from ..tiny import tokens

CONFIG = """\
model: {folder}
output_dir: {output}
data:
  sources:
  - path: {folder}/chat.jsonl
  sequence_length: 96
  validation_fraction: 0.2
lora: {{r: 4, target_modules: all-linear}}
training:
  max_steps: 4
  learning_rate: 1e-2
"""
COMMAND = [sys.executable, "-m", "stellarbyte", "finetune"]
SUMMARY = ["finished", "steps", "best_step", "parameters", "trainable_parameters", "train_loss_first"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> str:
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=folder, output=tmp_path / "run"))
    return str(tmp_path / "c.yaml")


@pytest.mark.long
def test_lines_and_a_closing_table(config: str, tmp_path: Path) -> None:
    result = subprocess.run([*COMMAND, config], capture_output=True, text=True, check=True)
    assert result.stderr == ""  # neither libraries' noise nor their bars
    lines = result.stdout.splitlines()
    assert "parameters, 3,712 (9.35%) of them trained, on 1 cpu device(s)" in lines[0]
    assert lines[1].startswith("50 records: 40 training and 10 validation samples")
    assert lines[2].startswith("step 0/4  validation  loss ")
    assert any(line.startswith("step 4/4  loss ") and " tokens/s " in line for line in lines)
    table = [line.split("  ")[0] for line in lines[-6:]]
    assert table == ["trained", "validation loss", "training loss", "speed", "peak memory", "saved in"]
    assert lines[-1].endswith(str(tmp_path / "run" / "adapter"))


def test_json_is_all_there_is_on_stdout(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "write_card", lambda *_, **__: print("as libraries print"))
    assert door.main(["finetune", config, "--training.max_steps", "2", "--json", "--lora.r=2"]) == 0
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert list(summary)[:6] == SUMMARY
    assert (summary["steps"], summary["trainable_parameters"]) == (2, 1856)
    assert "step 0/2  validation  loss " in output.err


@pytest.mark.long
def test_a_bar_on_a_terminal(config: str) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([*COMMAND, config], stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 1 << 16)
        except OSError:  # the other end is closed
            break
        shown += piece
        if not piece:
            break
    os.close(leader)
    assert process.wait(60) == 0
    assert "━" in shown.decode()
    assert b"ETA 0:00:0" in shown
    assert b"peak memory" in shown


@pytest.mark.long
def test_ctrl_c_saves_and_the_same_command_goes_on(config: str, tmp_path: Path) -> None:
    command = [*COMMAND, config, "--training.max_steps", "5000", "--training.eval_steps", "5000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and len(lines.read_text().splitlines()) > 5):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.endswith("stellarbyte: SIGINT: finishing this step, then saving; once more to stop at once\n")
    done = metrics(tmp_path / "run")[-1]["step"]
    assert f"stopped after step {done}, saved in {tmp_path / 'run'}: the same command goes on from there" in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"checkpoint-{done}"]
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.long
def test_two_processes_are_one(config: str, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["--training.per_device_train_batch_size", "2", "--training.per_device_eval_batch_size", "4", "--json"]
    words += ["--training.use_cpu", "true", "--output_dir", str(tmp_path / "two")]
    result = subprocess.run(
        [*launch, "-m", *COMMAND[2:], config, *words], capture_output=True, text=True, check=True, timeout=120
    )
    two = json.loads(result.stdout)  # one of them speaks
    assert door.main(["finetune", config, "--training.per_device_train_batch_size", "4"]) == 0
    one = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in ("validation_loss_before", "validation_loss_after", "train_loss_first", "train_loss_last"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name
    counted = ([record.get("tokens") for record in metrics(tmp_path / name)] for name in ("run", "two"))
    assert next(counted) == next(counted)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--training.max_stps", "3"], "training.max_stps is not a field; did you mean training.max_steps?"),
        (["--lora.target_modules", "[q_prj]"], "lora.target_modules has 'q_prj', which matches no module"),
        (["--model", "nowhere"], "model nowhere is not a folder"),
        (["--data.sources.0.path", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--data.sources.0.format", "alpaca"], "chat.jsonl:1 lacks the field 'instruction'"),
        (["--jsn"], "--jsn has no value: write --jsn value"),
    ],
)
def test_mistakes_get_one_sentence(
    words: list[str], complaint: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["finetune", config, *words]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("stellarbyte: error: ")
    assert complaint in output.err
    assert output.err.count("\n") == 1


def test_merge(folder: Path, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["finetune", config]) == 0
    adapter, merged = tmp_path / "run" / "adapter", tmp_path / "merged"
    capsys.readouterr()
    assert door.main(["merge", str(folder), str(adapter), str(merged), "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("merged 14 modules in float32; rounding to bfloat16 moves a weight by at most ")
    assert f"the merged model is in {merged}" in printed
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).merge_and_unload()
    weights: dict[str, Any] = load_file(merged / "model.safetensors")
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach().bfloat16(), rtol=1e-2, atol=1e-6)
    ids = tokens(1, 8)
    AutoModelForCausalLM.from_pretrained(merged)(ids)
    assert (merged / "tokenizer.json").exists()

    assert door.main(["merge", str(folder), str(adapter), str(merged)]) == 2
    assert f"{merged} is in use: name a folder that is new or empty" in capsys.readouterr().err
    assert door.main(["merge", str(folder), str(folder), str(tmp_path / "x")]) == 2
    assert "holds no adapter_config.json: give a folder in PEFT's format" in capsys.readouterr().err


def test_a_second_merge_into_one_folder_is_refused_before_it_computes(
    folder: Path, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["finetune", config, "--training.max_steps", "1"]) == 0
    words = ["merge", str(folder), str(tmp_path / "run" / "adapter"), str(tmp_path / "merged")]
    loaded: list[Path] = []
    load_model = model_folder_module.load_model

    def loading(path: Path, *rest: Any, **options: Any) -> Any:
        if not loaded:
            loaded.append(path)
            assert door.main(words) == 2  # the second one, while the first is at work
        return load_model(path, *rest, **options)

    monkeypatch.setattr(model_folder_module, "load_model", loading)
    capsys.readouterr()
    assert door.main(words) == 0
    assert f"{tmp_path / 'merged'} is being written by process {os.getpid()}" in capsys.readouterr().err
    assert loaded == [folder]
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_half_merge(
    number: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, lora_config = tmp_path / "adapter", LoRAConfig(r=2, target_modules=["q_proj"])
    lora.apply_lora_to_model(AutoModelForCausalLM.from_pretrained(folder), lora_config).save_pretrained(adapter)

    def interrupted(*arguments: Any) -> None:
        (arguments[1] / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(lora, "merge_and_save", interrupted)
    assert door.main(["merge", str(folder), str(adapter), str(tmp_path / "merged")]) == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_help_says_how_fields_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    """That it loads nothing heavy, test_door.py holds for all commands."""
    with pytest.raises(SystemExit) as stop:
        door.main(["finetune", "--help"])
    assert stop.value.code == 0 and "--section.field value" in capsys.readouterr().out


def processes(count: int, script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`stellarbyte finetune` in several processes, by a script that says what they do first."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    launch += [str(script), "finetune", *words, "--training.use_cpu", "true"]
    return subprocess.run(launch, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The command, in a process that dies after the step that STOP_AFTER names."""
    path = tmp_path / "dying.py"
    path.write_text("""\
import os, sys
from stellarbyte import door
from stellarbyte_torch.finetune.progress import FinetuneProgress
on_step_end, last = FinetuneProgress.on_step_end, int(os.environ.get("STOP_AFTER", "-1"))
def ending(self, args, state, control, **kwargs):
    if state.global_step == last + 1:
        os._exit(9)
    return on_step_end(self, args, state, control, **kwargs)
FinetuneProgress.on_step_end = ending
sys.exit(door.main(sys.argv[1:]))
""")
    return path


# 42 training samples, 4 a step and process: an epoch ends with a step that one process has no sample for.
RESUMED = ["--training.per_device_train_batch_size", "4", "--training.max_steps", "14", "--training.eval_steps", "2"]
RESUMED += ["--lora.lora_dropout", "0.2", "--data.validation_fraction", "0.18"]
SHARDED = ["--training.fsdp", "true", "--training.fsdp_config", "{version: 2}"]


@pytest.mark.long
@pytest.mark.parametrize("words", [[], ["--data.packing", "true"], SHARDED], ids=["padded", "packed", "fsdp"])
def test_two_processes_that_died_in_an_epoch_go_on_in_it(
    words: list[str], config: str, script: Path, tmp_path: Path
) -> None:
    alone = "fsdp needs several processes" if words is SHARDED else "was written by 2 process(es), and now there are 1"
    words = [config, *RESUMED, *words]
    whole = processes(2, script, *words, "--output_dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    for stop in ("3", "9"):
        died = processes(2, script, *words, "--output_dir", str(tmp_path / "parts"), STOP_AFTER=stop)
        assert died.returncode != 0
        assert (tmp_path / "parts" / "checkpoints").exists(), died.stderr
    parts = processes(2, script, *words, "--output_dir", str(tmp_path / "parts"))
    assert parts.returncode == 0, parts.stderr
    assert "going on after step 8" in parts.stdout
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()
    fewer = processes(1, script, *words, "--output_dir", str(tmp_path / "parts"), "--lora.r", "4")
    assert "has ended already" in fewer.stdout
    (tmp_path / "parts" / "summary.json").unlink()
    fewer = processes(1, script, *words, "--output_dir", str(tmp_path / "parts"))
    assert alone in fewer.stderr


@pytest.mark.long
def test_two_processes_of_which_the_first_can_print_no_more(config: str, script: Path, tmp_path: Path) -> None:
    failing = tmp_path / "failing.py"
    failing.write_text("""\
import os, sys
from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte import door
say = Display.say
def failing(self, text):
    if os.environ["RANK"] == "0" and text.startswith("step 2/"):
        raise UserError("the output cannot be written")
    say(self, text)
Display.say = failing
sys.exit(door.main(sys.argv[1:]))
""")
    words = [config, *RESUMED]
    whole = processes(2, script, *words, "--output_dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    failed = processes(2, failing, *words, "--output_dir", str(tmp_path / "parts"))
    assert "error: the output cannot be written; stopped after step 3, saved in" in failed.stderr
    again = processes(2, script, *words, "--output_dir", str(tmp_path / "parts"))
    assert "going on after step 3" in again.stdout
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("lora", [[], ["--lora", "null"]], ids=["lora", "full"])
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(stage: int, lora: list[str], config: str, script: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    (tmp_path / "ds.json").write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
                "zero_allow_untested_optimizer": True,
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
            }
        )
    )
    words = [config, *lora, "--training.per_device_train_batch_size", "2", "--output_dir"]
    plain = processes(2, script, *words, str(tmp_path / "plain"))
    assert plain.returncode == 0, plain.stderr
    words += [str(tmp_path / "zero"), "--training.deepspeed", str(tmp_path / "ds.json")]
    died = processes(2, script, *words, STOP_AFTER="2", DS_ACCELERATOR="cpu")
    assert died.returncode != 0
    zero = processes(2, script, *words, DS_ACCELERATOR="cpu")
    assert zero.returncode == 0, zero.stderr
    for one, other in zip(metrics(tmp_path / "plain"), metrics(tmp_path / "zero"), strict=True):
        name = "loss" if "loss" in one else "validation_loss"
        assert other[name] == pytest.approx(one[name], rel=1e-5)
    result = "model/model.safetensors" if lora else "adapter/adapter_model.safetensors"
    ours, theirs = (load_file(tmp_path / name / result) for name in ("zero", "plain"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)


def test_a_second_run_in_one_folder_is_refused(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(tmp_path / "run", doing="finetune"):
        assert door.main(["finetune", config]) == 2
    assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
