import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401 - has loggers of its own
from rich.console import Console
from transformers import AutoTokenizer

from stellarbyte import door
from stellarbyte.adapter_base import AdapterWarning
from stellarbyte.display import Display
from stellarbyte_torch.library_words import hear_libraries

from .finetuning import LORA, config, model_folder, run


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """What the commands set for a process, taken back."""
    loggers = [logging.root, *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield
    for logger, handlers, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.filters, deepspeed.handlers, deepspeed.propagate = [], [], True


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_each_warning_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    hear_libraries("program")
    for _ in range(2):
        for library in ("transformers", "peft", "accelerate", "torch", "torch.distributed", "somebody"):
            logging.getLogger(f"{library}.module").warning("of\n  %s", library)
        logging.getLogger("transformers.trainer").info("noise")
        warnings.warn("an adapter's", AdapterWarning, stacklevel=1)
        warnings.warn("a user's", UserWarning, stacklevel=1)
        warnings.warn_explicit("PEFT's", RuntimeWarning, "/lib/site-packages/peft/helpers.py", 1)
    assert said(capsys) == [
        "program: transformers: of transformers",
        "program: peft: of peft",
        "program: accelerate: of accelerate",
        "program: torch: of torch",
        "program: torch: of torch.distributed",
        "program: somebody: of somebody",
        "program: note: an adapter's",
        "program: warning: a user's",
        "program: peft: PEFT's",
    ]


def test_what_is_noise_is_dropped_and_nothing_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    hear_libraries("program")
    logging.getLogger("torchao").warning("Failed to load /x.so: no")
    logging.getLogger("transformers.loss").warning("`loss_type=None` was set in the config but it is unrecognized. U")
    too_long = (
        "Token indices sequence length is longer than the specified maximum sequence length for this model (9 > 8)."
    )
    logging.getLogger("transformers.tokenization_utils_base").warning(too_long)
    of_steps = (
        "Warning: The following arguments do not match the ones in the `trainer_state.json` within the checkpoint"
    )
    logging.getLogger("transformers.trainer_utils").warning(of_steps)
    warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
    warnings.warn("The following rank_pattern keys did not match any targeted module", RuntimeWarning, stacklevel=1)
    warnings.warn("Adapter name 'a' should not be contained in the prefix 'lora_'.", UserWarning, stacklevel=1)
    warnings.warn("`torch.distributed.all_gather` is deprecated. Please", FutureWarning, stacklevel=1)
    assert said(capsys) == []
    logging.getLogger("torchao").warning("the weights are wrong")
    logging.getLogger("transformers.loss").warning("`loss_type=Mine` was set in the config but it is unrecognized")
    warnings.warn("`generate` is deprecated", FutureWarning, stacklevel=1)
    assert len(said(capsys)) == 3


def test_deepspeed_writes_to_stdout_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    hear_libraries("program")
    logger = logging.getLogger("DeepSpeed")  # as it sets it up when it is imported
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.warning("Setting accelerator to CPU. If you have GPU")
    logger.info("noise")
    logger.error("the ranks differ")
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "program: DeepSpeed: the ranks differ\n")


def test_of_several_processes_one_tells_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    hear_libraries("program", speaks=False)
    logging.getLogger("transformers").warning("one")
    warnings.warn("two", UserWarning, stacklevel=1)
    logging.getLogger("transformers").error("three %s", "of mine")
    assert said(capsys) == ["program: transformers: three of mine"]


def test_a_line_comes_above_the_live_ones(capfd: pytest.CaptureFixture[str]) -> None:
    hear_libraries("program")
    shown = io.StringIO()
    with Display(console=Console(file=shown, force_terminal=True, width=100)) as display:
        display.begin(0, 10)
        logging.getLogger("transformers").warning("mind the step")
    assert "program: transformers: mind the step\n" in shown.getvalue()
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("run")
    run(config(folder, output_dir, training={"max_steps": 1}))
    return output_dir / "adapter"


@pytest.mark.parametrize("command", ["generate", "chat", "finetune", "merge", "data preview"])
def test_every_command_tells_them(
    command: str,
    folder: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from_pretrained = AutoTokenizer.from_pretrained

    def warning(*args: Any, **kwargs: Any) -> Any:
        logging.getLogger("transformers.tokenization").warning("the tokenizer has a regex of old")
        return from_pretrained(*args, **kwargs)

    (tmp_path / "c.yaml").write_text(
        f"model: {folder}\noutput_dir: {tmp_path / 'run'}\nlora: {LORA}\ntraining: {{max_steps: 1}}\n"
        f"data: {{sources: [{{path: {folder}/chat.jsonl}}], sequence_length: 96}}\n"
    )
    words = {
        "generate": [str(folder), "--prompt", "x", "--max-new-tokens", "1"],
        "chat": [str(folder), "--max-new-tokens", "1"],
        "finetune": [str(tmp_path / "c.yaml")],
        "merge": [str(folder), str(adapter), str(tmp_path / "merged")],
        "data preview": [str(tmp_path / "c.yaml")],
    }[command]
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", warning)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert door.main([*command.split(), *words]) == 0
    told = [line for line in said(capsys) if not line.startswith("(")]  # where an answer was cut off
    assert told == ["stellarbyte: transformers: the tokenizer has a regex of old"]
