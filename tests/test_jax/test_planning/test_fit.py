"""A run that does not fit is told so before anything is compiled: what it needs, what there is, what to change."""

import dataclasses
import re
from types import SimpleNamespace

import pytest

from stellarbyte.chips import CHIPS
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.planning import fit
from stellarbyte_jax.planning.fit import check_fits
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.topology import parse_topology

RUN = {"training": {"batch_size": 8, "attention_kernel": "reference"}}


def gpu(limit: float | None, kind: str = "NVIDIA A100-SXM4-80GB") -> SimpleNamespace:
    stats = None if limit is None else {"bytes_limit": limit}
    return SimpleNamespace(platform="gpu", device_kind=kind, process_index=0, memory_stats=lambda: stats)


def test_what_is_needed_is_what_the_planner_says_and_the_advice_fits(planned_run):
    config = planned_run(**RUN)
    needed = make_plan(config, parse_topology("h100:1x1")).memory.total
    assert check_fits(config, [gpu(needed)]) is None
    word = check_fits(config, [gpu(needed - 1)])
    assert word is not None and re.search(r"may not fit: it needs some \d+\.\d\d GiB of a NVIDIA A100", word)
    available = 0.6 * needed
    with pytest.raises(UserError, match=r"does not fit: it needs .* GiB of a NVIDIA A100.*--no-memory-check") as error:
        check_fits(config, [gpu(available)])
    advice = re.search(r"gradient_accumulation_steps (\d+) and training.remat (\w+)", str(error.value))
    training = dataclasses.replace(config.training, gradient_accumulation_steps=int(advice[1]), remat=advice[2])
    assert check_fits(dataclasses.replace(config, training=training), [gpu(available)]) is None
    with pytest.raises(UserError, match=r"use more devices .* or a smaller model"):
        check_fits(config, [gpu(1000)])


def test_where_nothing_is_known_nothing_is_said(planned_run):
    assert check_fits(planned_run(**RUN), [gpu(None)]) is None
    kinds = [gpu(None, kind="NVIDIA H200")]
    assert fit._memory_of(kinds[0]) == CHIPS["h200"].hbm_bytes, "by the table where JAX does not say"


def test_a_model_larger_than_the_host_is_refused_by_the_command(planned_run, tmp_path, monkeypatch, capsys):
    config = planned_run(**RUN)
    save_config(config, tmp_path / "run.yaml")
    monkeypatch.setattr("stellarbyte_jax.training.pretrain.pretrain", lambda *_, **__: True)
    command = ["pretrain", str(tmp_path / "run.yaml")]
    assert main(command) == 0
    monkeypatch.setattr(fit, "host_memory", lambda: 1000.0)
    capsys.readouterr()
    assert main(command) == 2
    assert re.search(r"does not fit: it needs at least .* and this machine has 0\.0; use a", capsys.readouterr().err)
    assert main([*command, "--no-memory-check"]) == 0


def test_this_machine_has_memory():
    assert 2**28 < fit.host_memory() < 2**50
