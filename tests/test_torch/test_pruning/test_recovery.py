"""A pruned folder that is fine-tuned by the same command, with the folder before as its teacher."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from stellarbyte.door import main
from stellarbyte_torch.finetune.checkpoints import newest_checkpoint
from stellarbyte_torch.lora.adapters import load_lora


def config(text: Path, path: Path, **changes: object) -> Path:
    fields = {
        "data": {"sources": [{"path": str(text)}], "sequence_length": 32, "validation_fraction": 0.1},
        "training": {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "eval_steps": 6},
        "distill": {"teacher": "nobody", "weight": 0.5},
    }
    path.write_text(yaml.safe_dump(fields | changes))
    return path


@pytest.mark.long
@pytest.mark.parametrize("lora", [{"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, None])
def test_the_folder_before_teaches_the_pruned_one(
    lora: dict[str, object] | None, folder: Path, text: Path, tmp_path: Path
) -> None:
    recovery = config(text, tmp_path / "recovery.yaml", lora=lora)
    words = [
        "prune",
        str(folder),
        str(tmp_path / "thin"),
        "--keep",
        "80%",
        "--multiple",
        "1",
        "--samples",
        "4",
        "--json",
    ]
    words += ["--data", str(text), "--device", "cpu", "--recover", str(recovery), "--distill"]
    done = subprocess.run(
        [sys.executable, "-m", "stellarbyte", *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    cut, recovered = json.loads(done.stdout)
    assert recovered["is_recovered"] and recovered["after"]["loss"] < cut["after"]["loss"]
    assert recovered["after"]["parameters"] == cut["after"]["parameters"]
    saved = yaml.safe_load((tmp_path / "thin-recovery" / "config.yaml").read_text())
    assert saved["distill"]["teacher"] == str(folder) and saved["model"] == str(tmp_path / "thin")
    if lora is None:
        assert recovered["remark"].endswith(f"the recovered model is in {tmp_path / 'thin-recovery' / 'model'}")
        AutoModelForCausalLM.from_pretrained(tmp_path / "thin-recovery" / "model")
    else:
        assert "`stellarbyte merge` makes one model of both" in recovered["remark"]
        adapter = tmp_path / "thin-recovery" / "adapter"
        load_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "thin"), adapter)
        assert main(["merge", str(tmp_path / "thin"), str(adapter), str(tmp_path / "merged")]) == 0


def terminate(prune: "subprocess.Popen[str]") -> None:
    prune.send_signal(signal.SIGTERM)


def kill_the_training(prune: "subprocess.Popen[str]") -> None:
    (training,) = Path(f"/proc/{prune.pid}/task/{prune.pid}/children").read_text().split()
    os.kill(int(training), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize(("stop", "code"), [(terminate, 128 + signal.SIGTERM), (kill_the_training, 2)])
def test_an_interrupted_recovery_goes_on(
    stop: Callable[["subprocess.Popen[str]"], None], code: int, folder: Path, text: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 80, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "eval_steps": 5}
    recovery = config(text, tmp_path / "recovery.yaml", lora=None, training=training)

    def prune(name: str) -> "subprocess.Popen[str]":
        given = f"prune {folder} {name} --keep 80% --multiple 1 --samples 4 --data {text} --device cpu --distill"
        words = [sys.executable, "-m", "stellarbyte", *given.split(), "--recover", str(recovery)]
        return subprocess.Popen(words, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with prune("thin") as process:
        deadline = time.monotonic() + 300
        while newest_checkpoint(tmp_path / "thin-recovery") is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        stop(process)
        told, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "kept: 79" in told or "kept: 80" in told, "what was cut is told before the training"
    goes_on = re.search(r"holds the pruned model, and `stellarbyte (.*)` goes on with it", errors)
    assert goes_on is not None, errors
    assert not (tmp_path / "thin-recovery" / "model").exists()
    words = [sys.executable, "-m", "stellarbyte", *shlex.split(goes_on[1])]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout + done.stderr

    with prune("other") as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    one, other = (tmp_path / f"{name}-recovery" / "model" / "model.safetensors" for name in ("thin", "other"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"max_steps": "many"}}, "training.max_steps"),
        ({"distill": {"teacher": "x", "weight": 2}}, "distill.weight 2.0 must be in (0, 1]"),
        ({"mesh": {"data": 1}}, "mesh"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused_before_the_work(
    changes: dict[str, object],
    message: str,
    folder: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["prune", str(folder), str(tmp_path / "thin"), "--keep", "80%", "--data", str(text)]
    recovery = config(text, tmp_path / "recovery.yaml", **changes)
    assert main([*words, "--recover", str(recovery)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "thin").exists()


def test_a_recovery_overwrites_nothing(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thin-recovery").mkdir()
    (tmp_path / "thin-recovery" / "mine.txt").write_text("mine")
    words = ["prune", str(folder), str(tmp_path / "thin"), "--keep", "80%", "--data", str(text)]
    assert main([*words, "--recover", str(config(text, tmp_path / "recovery.yaml")), "--distill"]) == 2
    assert "thin-recovery, to which --recover writes, exists already" in capsys.readouterr().err
