"""A corpus of a few pages, its tokenizer and token shards, and a run config over them."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from stellarbyte_jax.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.planning import fit
from stellarbyte_jax.pruning import prune
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training import loop, objective
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.programs import Programs
from stellarbyte_jax.training.teacher import Teacher
from stellarbyte_jax.training.watching.metrics import MetricsLog
from test_jax.tiny import tiny_config

VOCAB_SIZE = 320

WORDS = ("star", "byte", "light", "dark", "deep field", "of the", "turns into", "falls through", "silence,", "until;")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen documents of very unequal lengths, some longer than a row."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(16):
            text = " ".join(generator.choice(WORDS, generator.integers(2, 60)))
            file.write(json.dumps({"text": f"{text} é。"}) + "\n")
    return path


@pytest.fixture(scope="session")
def small_data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """The corpus with its tokenizer, prepared; nobody may change it."""
    folder = tmp_path_factory.mktemp("small_data")
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    train_tokenizer(texts, VOCAB_SIZE, folder / "tokenizer", report=lambda _: None)
    data = DataConfig(
        sources=(SourceConfig(str(corpus)),),
        tokenizer=str(folder / "tokenizer"),
        shards=str(folder / "shards"),
        sequence_length=24,
        validation_fraction=0.15,
    )
    prepare(data, report=lambda _: None)
    return data


def twelve_steps(data: DataConfig, output_dir: Path) -> RunConfig:
    return RunConfig(
        output_dir=str(output_dir),
        model=tiny_config(vocab_size=VOCAB_SIZE, initializer_range=0.05),
        data=data,
        training=TrainingConfig(max_steps=12, batch_size=4, eval_steps=6),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
        mesh=MeshConfig(data=1),
        checkpoint=CheckpointConfig(save_steps=5),
    )


@pytest.fixture
def run_config(small_data: DataConfig, tmp_path: Path) -> Callable[..., RunConfig]:
    """A run of twelve steps, saved at 5, 10 and 12; `training={...}` and the like change fields of a section."""

    def make(seed: int = 0, **sections: dict[str, Any]) -> RunConfig:
        config = twelve_steps(small_data, tmp_path / "run")
        changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
        return dataclasses.replace(config, seed=seed, **changed)

    return make


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs see the first of the eight devices only."""
    device = jax.devices()[:1]
    for room in (loop, prune):
        monkeypatch.setattr(room, "make_mesh", functools.partial(make_mesh, devices=device))
    monkeypatch.setattr(fit, "check_fits", lambda config, _, check=fit.check_fits: check(config, device))


@pytest.fixture(scope="module")
def kept_programs() -> Callable[..., Programs]:
    """`Programs.of`, which returns the same programs to runs that differ in nothing that a program depends on."""
    make, kept = Programs.of, dict[Any, Programs]()

    def programs(config: RunConfig, layout: Layout, teacher: Teacher | None = None) -> Programs:
        alike = dataclasses.replace(config, output_dir="run", checkpoint=CheckpointConfig())
        key = repr(alike), layout, objective.forward  # which poison.py replaces
        if key not in kept:
            kept[key] = make(config, layout, teacher)
        return kept[key]

    return programs


@pytest.fixture
def traced_once(kept_programs: Callable[..., Programs], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a module that are alike share their programs: tracing them is most of what a run of twelve steps costs.

    A run that goes on reads the very same programs from the compile cache otherwise.
    """
    monkeypatch.setattr(Programs, "of", kept_programs)


@pytest.fixture(scope="session")
def finished_run(small_data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that is done; nobody may change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert pretrain(twelve_steps(small_data, folder / "run"))
    return folder / "run"


@pytest.fixture
def disturb(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Has something happen as soon as step n is computed, before it can be saved."""
    train = MetricsLog.train

    def plan(at: int, event: Callable[[], None]) -> None:
        def train_then(self: MetricsLog, step: int, values: Mapping[str, Any]) -> None:
            train(self, step, values)
            if step == at:
                monkeypatch.setattr(MetricsLog, "train", train)
                event()

        monkeypatch.setattr(MetricsLog, "train", train_then)

    return plan
