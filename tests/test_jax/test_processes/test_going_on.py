"""Law 6 on two processes: a run that was stopped in mid-epoch reads the same rows when it goes on, of text and chat."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stellarbyte_jax.checkpoints.checkpoint import checkpoint_steps, latest_step
from stellarbyte_jax.config import DataConfig, RunConfig, SourceConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.data.prepare import prepare
from test_jax.jobs import Job, stopped_in_step
from test_jax.runs import bits, records
from test_jax.shards import train_loader


def chat_of(data: DataConfig, folder: Path) -> DataConfig:
    """Conversations of unequal lengths, some of which share a row."""
    lines = []
    for n in range(48):
        turns = [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "light and dark " * (n % 3 + 1)}]
        lines.append(json.dumps({"messages": turns * (n % 2 + 1)}) + "\n")
    (folder / "chat.jsonl").write_text("".join(lines), encoding="utf-8")
    source = (SourceConfig(str(folder / "chat.jsonl")),)
    data = dataclasses.replace(data, kind="chat", sources=source, shards=str(folder / "chat"), sequence_length=64)
    prepare(data, report=lambda _: None)
    return data


def run_job(config: RunConfig, folder: Path, codes: list[int], first: dict[int, str] | None = None) -> None:
    save_config(config, folder / "config.yaml")
    with Job(folder / "config.yaml", count=2, devices=1, first=first or {}) as job:
        ends = job.ends()
    assert [code for code, *_ in ends] == codes, ends


@pytest.mark.long
@pytest.mark.parametrize("kind", ["text", "chat"])
def test_law_6_two_processes_go_on_as_two(kind: str, run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(mesh={"data": 2}, checkpoint={"save_steps": 100})
    if kind == "chat":
        config = dataclasses.replace(config, data=chat_of(config.data, tmp_path))
    assert 6 * 4 < len(train_loader(config.data, 4, seed=0)) < 12 * 4, "it stops in one epoch and ends in the next"
    whole = dataclasses.replace(config, output_dir=config.output_dir + "-whole")
    run_job(whole, tmp_path, [0, 0])
    run_job(config, tmp_path, [143, 143], first={1: stopped_in_step(4)})
    assert latest_step(config.output_dir) in (4, 5, 6)
    run_job(config, tmp_path, [0, 0])
    assert records(config.output_dir) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)


@pytest.mark.long
def test_two_processes_save_by_the_clock_of_one(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    """They would wait for each other for ever if they did not agree on the steps."""
    checkpoint = {"save_steps": None, "save_minutes": 0.005, "save_total_limit": 1000}
    config = run_config(mesh={"data": 2}, training={"max_steps": 300, "eval_steps": 300}, checkpoint=checkpoint)
    run_job(config, tmp_path, [0, 0])
    saved = checkpoint_steps(config.output_dir)
    assert saved[-1] == 300 and len(saved) >= 3
