"""metrics.jsonl holds each step once with honest rates, and the terminal shows the same."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from stellarbyte.chips import GIB
from stellarbyte.errors import UserError
from stellarbyte_jax.training.watching.compile_watch import Compilation
from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.utilization import Utilization


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a test moves on by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def values(loss: float = 2.0) -> dict[str, Any]:
    return {"loss": jnp.float32(loss), "accuracy": 0.25, "grad_norm": 1.5, "learning_rate": 1e-3, "tokens": 1000}


def test_one_record_a_step(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", 0, 3) as log:
        for step in (1, 2, 3):
            log.train(step, values(2.0 / step))
        log.validation(3, {"loss": 1.0, "bits_per_byte": 0.5})
    *train, validation = records(tmp_path / "run")
    assert [record["step"] for record in train] == [1, 2, 3]
    assert [record["loss"] for record in train] == pytest.approx([2.0, 1.0, 2 / 3])
    assert train[0]["perplexity"] == pytest.approx(7.389, rel=1e-3)
    assert train[0]["tokens"] == 1000
    assert validation == {
        "step": 3,
        "validation_loss": 1.0,
        "validation_bits_per_byte": 0.5,
        "validation_perplexity": pytest.approx(2.71828, rel=1e-4),
    }


def test_a_figure_for_each_expert_is_a_list(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, 1) as log:
        log.train(1, values() | {"expert_load": jnp.array([0.25, float("nan"), 0.75]), "balance_loss": jnp.ones(())})
    (record,) = records(tmp_path)
    assert record["expert_load"] == [0.25, None, 0.75]
    assert record["balance_loss"] == 1.0


def test_rates_leave_out_compiling_and_what_is_paused(tmp_path: Path, clock: list[float]) -> None:
    with MetricsLog(tmp_path, 0, 4) as log:
        with log.paused():
            clock[0] += 7  # validation before training
        clock[0] += 60  # compiling
        log.train(1, values())
        clock[0] += 2
        log.train(2, values())
        with log.paused():
            clock[0] += 50
            log.validation(2, {"loss": 1.0})
        clock[0] += 4
        log.train(3, values())
        clock[0] += 30
        log.validation(3, {"loss": 1.0})
        clock[0] += 5
        log.train(4, values())
    rates = [record["tokens_per_second"] for record in records(tmp_path) if "loss" in record]
    assert rates == [None, 500.0, 250.0, 200.0]


class Chip(Utilization):
    """A device with a memory of its own."""

    def memory(self) -> dict[str, int]:
        return {"hbm_bytes": GIB, "hbm_peak_bytes": 3 * GIB // 2, "hbm_limit_bytes": 16 * GIB}


def test_use_of_the_chip(tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, 0, 2, Chip(flops=10**12, devices=2, peak=1e12, local=[])) as log:
        for step in (1, 2):
            clock[0] += 2
            log.train(step, values())
    first, second = records(tmp_path)
    assert "mfu" not in first and first["hbm_peak_bytes"] == 3 * GIB // 2
    assert (second["mfu"], second["tflops_per_second"], second["hbm_limit_bytes"]) == (0.25, 0.25, 16 * GIB)
    assert "500 tokens/s  MFU 25.0%  HBM 1.5 of 16.0 GiB  ETA" in capsys.readouterr().out.splitlines()[-1]


def test_a_step_that_compiles_again_says_so_and_has_no_rate(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsLog(tmp_path, 0, 4) as log:
        for step in (1, 2, 3, 4):
            clock[0] += 2
            if step == 3:
                log.compiled(Compilation("train step", 1.0, 2.0, 30.0, "miss", again="batch['labels'] is new"))
            log.train(step, values())
        log.compiled(Compilation("eval step", 0.5, 0.25, 0.125, "hit"))
        log.validation(4, {"loss": 1.0})
    *train, validation = records(tmp_path)
    assert [record["tokens_per_second"] for record in train] == [None, 500.0, None, 500.0]
    figures = {"trace_seconds": 1.0, "lower_seconds": 2.0, "compile_seconds": 30.0, "compile_cache": "miss"}
    assert figures.items() <= train[2].items()
    assert not figures.keys() & (train[1].keys() | train[3].keys())
    assert validation["validation_compile_cache"] == "hit" and validation["validation_trace_seconds"] == 0.5
    said = "warning: train step compiled again in 30.0 s (traced in 1.0 s, lowered in 2.0 s): batch['labels'] is new"
    assert said in capsys.readouterr().out.splitlines()


def test_values_under_way_are_fetched_a_step_later(tmp_path: Path, clock: list[float]) -> None:
    fetched: list[int] = []

    real = jax.device_get

    def device_get(tree: Any) -> Any:
        fetched.append(int(real(tree)["loss"]))
        return real(tree)

    with pytest.MonkeyPatch.context() as patch, MetricsLog(tmp_path, 0, 3) as log:
        patch.setattr(jax, "device_get", device_get)
        patch.setattr(type(jnp.float32(0)), "is_ready", lambda _: False)
        log.train(1, values(1))
        assert fetched == []
        clock[0] += 1
        log.train(2, values(2))
        assert fetched == [1]
        clock[0] += 1
        log.train(3, values(3))
        assert fetched == [1, 2]
        clock[0] += 1
    assert [record["tokens_per_second"] for record in records(tmp_path)] == [None, 1000.0, 1000.0]


def test_resuming_keeps_each_step_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, 4) as log:
        log.validation(0, {"loss": 9.0})
        for step in (1, 2, 3, 4):
            log.train(step, values(step))
        log.validation(2, {"loss": 5.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    with MetricsLog(tmp_path, 2, 4) as log:
        log.validation(2, {"loss": 5.0})
        for step in (3, 4):
            log.train(step, values(10 * step))
    assert [(r["step"], r["loss"]) for r in records(tmp_path) if "loss" in r] == [(1, 1), (2, 2), (3, 30), (4, 40)]
    assert [r["step"] for r in records(tmp_path) if "validation_loss" in r] == [0, 2]
    assert [r["tokens_seen"] for r in records(tmp_path) if "loss" in r] == [1000, 2000, 3000, 4000]
    (tmp_path / "metrics.jsonl").unlink()
    with MetricsLog(tmp_path, 4, 5) as log:
        log.train(5, values())
    assert records(tmp_path)[0]["tokens_seen"] is None, "what was before is not known"
    with MetricsLog(tmp_path, 0, 4):
        pass
    assert records(tmp_path) == []


def test_a_validation_and_a_save_have_times_of_their_own(
    tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with MetricsLog(tmp_path, 0, 2) as log:
        log.train(1, values())
        with log.paused("checkpoint"):
            clock[0] += 3
        with log.paused("validation"):
            clock[0] += 7
            log.validation(1, {"loss": 1.0})
            clock[0] += 1
        with log.clock.waiting():
            clock[0] += 0.5
        clock[0] += 1.5
        log.train(2, values())
        log.validation(2, {"loss": 1.5})
        log.conclude("the end")
    first, validation, second, _ = records(tmp_path)
    assert first["step_seconds"] is None and "checkpoint_seconds" not in first
    assert validation["validation_seconds"] == 7
    assert (second["step_seconds"], second["data_seconds"], second["checkpoint_seconds"]) == (2, 0.5, 3)
    assert second["host_bytes"] > 1 << 20
    lines = capsys.readouterr().out.splitlines()
    assert "step 2/2  validation  loss 1.5000 (+0.5000)  perplexity 4.48 (+1.76)  best loss 1.0000 at step 1" in lines
    assert len([line for line in lines if line.startswith("step 2/2  loss")]) == 1 and lines[-1] == "the end"


def test_numbers_that_are_none_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, 0, 2) as log:
        log.train(1, values(float("nan")))
        log.train(2, values(1e4))
    first, second = records(tmp_path)
    assert first["loss"] is None
    assert (second["loss"], second["perplexity"]) == (1e4, None)
    assert "loss not finite" in capsys.readouterr().out


def test_plain_lines_come_seldom(tmp_path: Path, clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with MetricsLog(tmp_path, 0, 100) as log:
        for step in range(1, 101):
            clock[0] += 1
            log.train(step, values())
        log.validation(100, {"loss": 1.0, "accuracy": 0.5, "bits_per_byte": 0.75})
        log.say("[saved] at 100")
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 14
    assert lines[1].split("  ") == [
        "step 11/100", "loss 2.0000", "perplexity 7.39", "accuracy 0.250", "gradient 1.50", "rate 1.00e-03",
        "1,000 tokens/s", "ETA 0:01:29",
    ]  # fmt: skip
    assert "step 100/100  validation  loss 1.0000  perplexity 2.72  accuracy 0.500  bits/byte 0.7500" in lines
    assert "[saved] at 100" in lines
    assert lines[-1].startswith("step 100/100  loss 2.0000")
    assert "validation bits/byte 0.750" in lines[-1]


def test_a_terminal_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with MetricsLog(tmp_path, 0, 3) as log:
        for step in (1, 2, 3):
            log.train(step, values())
        log.say("a line")
    shown = capsys.readouterr().out
    assert "step 3/3" in shown
    assert "perplexity 7.39" in shown
    assert "a line" in shown
    assert "ETA" in shown


def test_an_exception_passes_and_closes_the_file(tmp_path: Path) -> None:
    def fail() -> None:
        with MetricsLog(tmp_path, 0, 3) as log:
            log.train(1, values())
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        fail()
    assert [record["step"] for record in records(tmp_path)] == [1]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written"), MetricsLog(tmp_path / "file", 0, 3):
        pass
