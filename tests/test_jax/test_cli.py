"""The command line: the path from text to text, one sentence for each mistake, and Ctrl-C."""

import errno
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest

from stellarbyte.door import main
from stellarbyte_jax.checkpoints.checkpoint import latest_step
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import load_run_config, save_config
from stellarbyte_jax.model.causal_lm import ByteModel
from stellarbyte_jax.model.kv_cache import KVCache
from tiers import short_tier

ROOT = Path(__file__).parents[2]

CapSys = pytest.CaptureFixture[str]


@pytest.fixture
def config_file(run_config: Callable[..., RunConfig], tmp_path: Path) -> Path:
    """The tiny run's config as a file."""
    save_config(run_config(), tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


def complaint(arguments: list[Any], capsys: CapSys) -> str:
    """What a command that must be refused says, once it is known to be one sentence and nothing else."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("stellarbyte: error: ") and said.endswith("\n") and said.count("\n") == 1, said
    return said


@pytest.mark.usefixtures("one_device")
def test_from_text_to_text(corpus: Path, run_config: Callable[..., RunConfig], tmp_path: Path, capsys: CapSys) -> None:
    tokenizer, shards = tmp_path / "tokenizer", tmp_path / "shards"
    train = ["tokenizer", "train", "--input", str(corpus), "--vocab-size", "320", "--output", str(tokenizer)]
    assert main(train) == 0
    assert f"320 tokens in {tokenizer}" in capsys.readouterr().out

    save_config(
        run_config(data={"tokenizer": str(tokenizer), "shards": str(shards)}, training={"max_steps": 300}),
        tmp_path / "config.yaml",
    )
    command = [str(tmp_path / "config.yaml"), "--training.max_steps", "4"]
    assert main(["prepare", *command]) == 0
    said = capsys.readouterr().out
    counts = re.findall(r"^(?:train|validation): (\d+) documents, \d+ tokens, \d+ bytes of text$", said, re.MULTILINE)
    assert len(counts) == 2 and sum(map(int, counts)) == len(corpus.read_text(encoding="utf-8").splitlines())
    assert f"token shards in {shards}" in said

    assert main(["pretrain", *command]) == 0
    run = tmp_path / "run"
    assert f"4 steps done; checkpoints, config and metrics in {run}" in capsys.readouterr().out
    assert load_run_config(run / "config.yaml").training.max_steps == 4
    assert main(["pretrain", *command]) == 0, "a finished run is no mistake"
    capsys.readouterr()

    assert main(["evaluate", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["step"] == 4 and figures["bits_per_byte"] > 0
    assert main(["evaluate", str(run)]) == 0
    assert f"bits per byte  {figures['bits_per_byte']:.4f}" in capsys.readouterr().out

    assert main(["generate", str(run), "--prompt", "deep field", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out.startswith("deep field")


def test_generate_streams_what_it_returns(finished_run: Path, capsys: CapSys) -> None:
    """The text of one prompt as it streams, of the same prompt in JSON, and among others."""
    command = ["generate", str(finished_run), "--max-new-tokens", "20", "--temperature", "1", "--top-k", "20"]
    command += ["--top-p", "0.9", "--seed", "3", "--prompt"]
    assert main([*command, "star é"]) == 0
    streamed = capsys.readouterr()
    assert streamed.err == ""
    assert main([*command, "star é", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert streamed.out == record["prompt"] + record["text"] + "\n"
    assert record["prompt"] == "star é" and 0 < record["new_tokens"] <= 20


def test_generate_ends_before_the_first_stop_string(finished_run: Path, capsys: CapSys) -> None:
    command = ["generate", str(finished_run), "--max-new-tokens", "20", "--temperature", "0.8", "--min-p", "0.01"]
    command += ["--repetition-penalty", "1.1", "--prompt", "star"]
    assert main([*command, "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    stop = text[len(text) // 2 :][:3]
    assert stop
    assert main([*command, "--stop", "never said", "--stop", stop]) == 0
    assert capsys.readouterr().out == "star" + text[: text.index(stop)] + "\n"


@pytest.mark.parametrize("options", [(), ("--chat",)])
def test_a_corpus_that_a_signal_cuts_short_leaves_nothing(options: tuple[str, ...], tmp_path: Path) -> None:
    code = """
import os, signal, sys
from stellarbyte import door
from stellarbyte_jax.data import corpus, docstring_chat

def sources():
    yield "a.py", 'def f():\\n    "Do."\\n'
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()

corpus.stdlib_sources = docstring_chat.stdlib_sources = sources
door.program()
"""
    words = ["corpus", "stdlib", str(tmp_path / "out.jsonl"), *options]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (143, "stellarbyte: interrupted by SIGTERM\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_generate_with_a_draft_says_the_same(finished_run: Path, capsys: CapSys) -> None:
    command = ["generate", str(finished_run), "--max-new-tokens", "20", "--prompt", "star"]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert main([*command, "--draft", str(finished_run), "--draft-tokens", "2"]) == 0
    assert capsys.readouterr().out == plain
    assert main([*command, "--draft-tokens", "2"]) == 2
    assert "--draft-tokens counts what --draft guesses, which is not given" in capsys.readouterr().err
    assert main([*command, "--draft", str(finished_run.parent / "none")]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize("draft", short_tier([False, True], 0))
def test_generate_reads_weights_as_int8(
    draft: bool, finished_run: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    in_int8 = ByteModel.in_int8
    monkeypatch.setattr(ByteModel, "in_int8", lambda model: read.append(in_int8(model)) or read[-1])
    command = ["generate", str(finished_run), "--max-new-tokens", "6", "--prompt", "star", "--quantize", "int8"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("star") and len(read) == 1
    if draft:
        assert main([*command, "--draft", str(finished_run)]) == 0
        assert capsys.readouterr().out == text, "the draft is in int8 too"
        assert len(read) == 3


@pytest.mark.parametrize(("dtype", "name"), [("int8", "int8"), ("float8", "float8_e4m3fn")])
def test_generate_keeps_keys_and_values_in_8_bits(
    dtype: str, name: str, finished_run: Path, capsys: CapSys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, create = set(), KVCache.create

    def creating(config: Any, batch_size: int, capacity: int, dtype: Any, slack: int = 0) -> KVCache:
        made.add(str(dtype))
        return create(config, batch_size, capacity, dtype, slack)

    monkeypatch.setattr(KVCache, "create", creating)
    command = ["generate", str(finished_run), "--max-new-tokens", "6", "--prompt", "star", "--kv-cache-dtype", dtype]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("star")
    assert made == {name}


def test_a_budget_of_keys_and_values(finished_run: Path, capsys: CapSys) -> None:
    command = ["generate", str(finished_run), "--max-new-tokens", "20", "--prompt", "star", "--kv-budget", "16"]
    assert main([*command, "--kv-cache-dtype", "int8"]) == 0
    assert capsys.readouterr().out.startswith("star")
    assert main([*command, "--draft", str(finished_run)]) == 2
    assert "--kv-budget 16 drops keys that a check of what --draft guesses may have to" in capsys.readouterr().err
    assert main(["evaluate", str(finished_run), "--kv-budget", "70%", "--kv-policy", "window", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["step"], record["slots"], record["row_tokens"]) == (12, 16, 24)
    assert record["full"]["loss"] != record["pruned"]["loss"]
    assert main(["evaluate", str(finished_run), "--kv-budget", "24"]) == 2
    assert "--kv-budget of 24 slots has room for all 24 tokens of a row" in capsys.readouterr().err


def test_generate_goes_up_to_the_end_of_the_context(finished_run: Path, capsys: CapSys) -> None:
    assert main(["generate", str(finished_run), "--prompt", "star", "--max-new-tokens", "5000", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt_tokens"] + record["new_tokens"] <= 64


def test_several_prompts_are_answered_in_their_order(finished_run: Path, capsys: CapSys) -> None:
    assert main(["generate", str(finished_run), "--max-new-tokens", "4", "--prompt", "star", "dark", "until;"]) == 0
    said = capsys.readouterr().out
    places = [said.index(prompt) for prompt in ("star", "dark", "until;")]
    assert said.startswith("star") and places == sorted(places)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["pretrian", "x.yaml"], "invalid choice: 'pretrian'"),
        (["tokenizer", "train", "--input", "x"], "--vocab-size"),
        (["evaluate", "run", "--stpe", "3"], "unrecognized arguments: --stpe 3"),
        (["generate", "run", "--prompt", "x", "--top-k", "many"], "--top-k: invalid int value: 'many'"),
        (["pretrain", "nowhere.yaml"], "nowhere.yaml"),
        (["prepare", "nowhere.yaml"], "nowhere.yaml"),
        (["evaluate", "nowhere"], "nowhere is not there: name a folder"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere is not there: name a folder"),
        (["generate", "nowhere", "--prompt", "x", "--temperature", "-1"], "temperature -1.0 must be at least 0"),
        (["generate", "nowhere", "--prompt", "x", "--top-p", "2"], "top_p 2.0 must be greater than 0 and at most 1"),
        (["generate", "nowhere", "--prompt", "x", "--top-k", "5"], "top_k 5 has no effect at temperature 0"),
        (["generate", "nowhere", "--prompt", "x", "--min-p", "0.1"], "min_p 0.1 has no effect at temperature 0"),
        (
            ["generate", "nowhere", "--prompt", "x", "--repetition-penalty", "0"],
            "repetition_penalty 0.0 must be greater",
        ),
        (["tokenizer", "train", "--input", "nowhere", "--vocab-size", "300", "--output", "t"], "nowhere"),
        (["corpus", "stdlib", "/dev/null/corpus.jsonl"], "/dev/null"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in complaint(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--training.max_stepz", "3"], "training.max_stepz is not a field; did you mean training.max_steps?"),
        (["--training.max_steps", "many"], "training.max_steps is 'many', expected an integer"),
        (["--model.head_dim", "null", "--model.hidden_size", "30"], "hidden_size 30 is not divisible by"),
        (["--model.vocab_size", "2"], "pad_token_id 2 must be inside the vocabulary"),
        (["--model.vocab_size", "256"], "256"),
        (["--mesh.data", "3"], "needs 3 devices, but there are 1"),
        (["--data.tokenizer", "nowhere"], "nowhere"),
        (["--data.shards", "nowhere"], "nowhere"),
        (["--output_dir", "/dev/null/run"], "/dev/null/run"),
        (["--profile", "5:13"], "--profile 5:13 ends after training.max_steps 12: end with step 12 at most"),
        (["--dump-hlo", "/dev/null/hlo"], "--dump-hlo /dev/null/hlo cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("one_device")
def test_configs_that_pretrain_refuses(overrides: list[str], message: str, config_file: Path, capsys: CapSys) -> None:
    assert message in complaint(["pretrain", config_file, *overrides], capsys)
    assert not (config_file.parent / "run").exists()


def bad_corpus(kind: str, folder: Path) -> Path:
    if kind == "truncated":
        path = folder / "corpus.jsonl.gz"
        whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i * 7919) for i in range(2000)))
        path.write_bytes(whole[: len(whole) // 2])
        return path
    path = folder / "corpus.jsonl"
    good = '{"text": "a star"}\n'
    bad = {"empty": "", "no object": f"{good}[1]\n", "no field": f'{good}{good}{{"txt": "a"}}\n'}
    path.write_text(bad[kind], encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["tokenizer", "prepare"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "no text"),
        ("truncated", r"corpus\.jsonl\.gz"),
        ("no object", r"corpus\.jsonl:2"),
        ("no field", r"corpus\.jsonl:3.*text"),
    ],
)
def test_corpora_that_are_refused(
    command: str, kind: str, message: str, config_file: Path, tmp_path: Path, capsys: CapSys
) -> None:
    path = bad_corpus(kind, tmp_path)
    arguments = {
        "tokenizer": ["tokenizer", "train", "--input", path, "--vocab-size", 300, "--output", tmp_path / "t"],
        "prepare": ["prepare", config_file, "--data.sources.0.path", path, "--data.shards", tmp_path / "shards"],
    }
    assert re.search(message, complaint(arguments[command], capsys))


def test_a_vocabulary_smaller_than_the_special_tokens(corpus: Path, tmp_path: Path, capsys: CapSys) -> None:
    train = ["tokenizer", "train", "--input", corpus, "--vocab-size", "2", "--output", tmp_path / "t"]
    assert "2" in complaint(train, capsys)


def test_a_prompt_longer_than_the_context(finished_run: Path, capsys: CapSys) -> None:
    said = complaint(["generate", finished_run, "--prompt", "star byte " * 100], capsys)
    assert "exceed the context of 64 tokens (max_position_embeddings)" in said


@pytest.mark.usefixtures("one_device")
def test_a_run_of_another_config_and_a_step_that_is_not_there(
    finished_run: Path, config_file: Path, capsys: CapSys
) -> None:
    said = complaint(["pretrain", config_file, "--output_dir", finished_run, "--seed", 5], capsys)
    assert "another config: seed (was 0, now 5)" in said
    assert "no checkpoint of step 7, only of 10, 12" in complaint(["evaluate", finished_run, "--step", 7], capsys)


def test_broken_checkpoints(finished_run: Path, tmp_path: Path, capsys: CapSys) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "12" / "params" / "d")
    assert main(["generate", str(run), "--prompt", "star", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("star")
    assert "12 is broken" in said.err and said.err.count("\n") == 1

    (run / "checkpoints" / "10" / "metadata" / "metadata").write_text("{", encoding="utf-8")
    assert main(["generate", str(run), "--prompt", "star"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(r"error: .* none of its checkpoints can be read \(steps 10, 12\), the newest because .", error)


@pytest.mark.usefixtures("one_device")
def test_a_full_disk_while_saving_leaves_the_earlier_checkpoint(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    save = ocp.CheckpointManager.save

    def fail_at_10(self: ocp.CheckpointManager, step: int, *arguments: Any, **options: Any) -> bool:
        if step == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, *arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", fail_at_10)
    said = complaint(["pretrain", config_file], capsys)
    assert "the checkpoint of step 10 cannot be saved: No space left on device" in said
    assert "that of step 5 is intact" in said
    monkeypatch.undo()
    assert latest_step(config_file.parent / "run") == 5


def test_other_exceptions_are_bugs_and_keep_their_traceback(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("stellarbyte_jax.training.evaluation.evaluate_run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", str(finished_run)])


def stellarbyte(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, with one device."""
    return subprocess.Popen(
        [sys.executable, "-m", "stellarbyte", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONUNBUFFERED": "1"},
        **options,
    )


@pytest.mark.long  # test_processes/test_joined.py has a signal to a process of its own
def test_ctrl_c_saves_and_the_same_command_goes_on(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(training={"max_steps": 100_000}, checkpoint={"save_steps": 100_000})
    save_config(config, tmp_path / "config.yaml")
    process = stellarbyte("pretrain", tmp_path / "config.yaml")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if re.match(r"step [1-9]\d*/100000  loss", line):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "SIGINT: finishing this step, then saving" in err
    assert "Traceback" not in err
    stopped = latest_step(config.output_dir)
    assert stopped is not None and stopped >= 1
    assert f"stopped after step {stopped}, saved in {config.output_dir}" in out

    process = stellarbyte("pretrain", tmp_path / "config.yaml")
    assert process.stdout is not None
    assert f"going on after step {stopped}" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (latest_step(config.output_dir) or 0) > stopped


def test_a_mistake_in_a_process_of_its_own(config_file: Path) -> None:
    process = stellarbyte("pretrain", config_file.name, "--model.hidden_sise", "3", cwd=config_file.parent)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == (
        "stellarbyte: error: --model.hidden_sise 3: model.hidden_sise is not a field; did you mean model.hidden_size?\n"
    )


def test_a_reader_that_has_gone_is_no_error(finished_run: Path) -> None:
    """As with `stellarbyte generate … | head -c 0`."""
    process = stellarbyte("generate", finished_run, "--prompt", "star", "--max-new-tokens", "8")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert err == ""


def test_cpu_devices_get_threads_to_wait_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys) -> None:
    (tmp_path / "config.yaml").write_text("model: {}\n")
    for devices, given, expected in (("8", None, "32"), ("8", "5", "5"), ("1", None, None), (None, None, None)):
        for name, value in (("JAX_NUM_CPU_DEVICES", devices), ("NPROC", given)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        assert main(["evaluate", str(tmp_path)]) == 2
        assert os.environ.get("NPROC") == expected
        monkeypatch.delenv("NPROC", raising=False)
    capsys.readouterr()


def test_info_of_a_run(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(finished_run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "pretraining run" and facts["step"] == facts["steps_wanted"] == facts["checkpoints"][-1]
    assert facts["parameters"] > 0 and facts["loss"] > 0
