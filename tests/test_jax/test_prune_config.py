"""Pruning that cannot be, or that comes to nothing, is refused with a sentence."""

import re
from typing import Any

import pytest

from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte_jax.config import (
    DataConfig,
    LoRAConfig,
    OptimizerConfig,
    PruneConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)

DATA = DataConfig((SourceConfig("corpus.jsonl"),), "tokenizer", "shards", sequence_length=64)


def run_with(prune: dict[str, Any], training: dict[str, Any], **sections: Any) -> RunConfig:
    pruning = PruneConfig(**({"from_step": 10, "to_step": 90, "keep_channels": 0.5} | prune))
    known: dict[str, Any] = {"model": ByteConfig(), "data": DATA, "optimizer": OptimizerConfig(warmup_steps=5)}
    steps = TrainingConfig(max_steps=100, batch_size=1, prune=pruning, **training)
    return RunConfig("runs/x", training=steps, **(known | sections))


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"from_step": -1}, "from_step -1 must be at least 0"),
        ({"from_step": 90}, "from_step 90 must be less than training.prune.to_step 90"),
        ({"to_step": 101}, "to_step 101 is more than training.max_steps 100: the run would end before its model is"),
        ({"every_steps": 0}, "every_steps 0 must be at least 1"),
        ({"every_steps": 81}, "every_steps 81 is more than the 80 steps from from_step to to_step"),
        ({"keep_channels": 0.0}, "keep_channels 0.0 must be in (0, 1), such as 0.5, or null"),
        ({"keep_channels": 1.0}, "keep_channels 1.0 must be in (0, 1)"),
        ({"keep_heads": 1.5}, "keep_heads 1.5 must be in (0, 1)"),
        ({"keep_channels": None}, " keeps all channels and all heads: set keep_channels or keep_heads"),
        ({"multiple": 0}, "multiple 0 must be at least 1"),
        ({"multiple": 3073}, "multiple 3073 is more than the 3072 channels of a layer"),
        ({"keep_channels": None, "keep_heads": 0.5, "multiple": 16}, "multiple 16 is for keep_channels"),
    ],
)
def test_a_section_that_contradicts_itself(prune: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"^training\.prune\.?" + re.escape(message)):
        run_with(prune, {})


@pytest.mark.parametrize(
    ("prune", "training", "sections", "message"),
    [
        ({}, {"early_stopping_patience": 3}, {}, "training.early_stopping_patience 3 could end the run before"),
        (
            {},
            {},
            {"init_from": "x", "lora": LoRAConfig("all-linear")},
            "training.prune cuts weights that are trained, and lora keeps them as they are",
        ),
        (
            {},
            {},
            {"model": ByteConfig(num_experts=4)},
            "training.prune.keep_channels 0.5 is for a dense model, and this one has model.num_experts 4",
        ),
        (
            {"multiple": 64},
            {"quantize": "w4"},
            {},
            "training.prune.multiple 64 is no multiple of training.quantize_group_size 128",
        ),
        (
            {"keep_channels": None, "keep_heads": 0.5},
            {"quantize": "w4"},
            {},
            "training.prune.keep_heads 0.5 leaves heads of 64 channels, which training.quantize_group_size 128 does",
        ),
    ],
)
def test_pruning_that_does_not_fit_the_run(
    prune: dict[str, Any], training: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match="^" + re.escape(message)):
        run_with(prune, training, **sections)


def test_heads_of_a_model_with_experts() -> None:
    run_with({"keep_channels": None, "keep_heads": 0.5}, {}, model=ByteConfig(num_experts=4))
