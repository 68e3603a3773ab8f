"""The dataclasses refuse contradictions, in sentences that name the field, its value and the fix."""

import dataclasses
import math
from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import (
    ByteConfig,
    CheckpointConfig,
    DataConfig,
    DistributedConfig,
    LoRAConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)

DATA = DataConfig(sources=(SourceConfig("corpus"),), tokenizer="tokenizer", shards="shards", sequence_length=64)
SOURCE = {"sources": (SourceConfig("corpus"),), "tokenizer": "tokenizer", "shards": "shards"}
LORA = {"target_modules": "all-linear"}
SMALL = {"max_steps": 1, "batch_size": 1}
CONSTANT: dict[str, Any] = {"lr_scheduler_type": "constant"}
RESTARTS: dict[str, Any] = {"lr_scheduler_type": "cosine_with_restarts"}
STABLE: dict[str, Any] = {"lr_scheduler_type": "warmup_stable_decay"}


def test_derived_values() -> None:
    config = ByteConfig(hidden_size=96, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim) == (6, 16)


def test_given_values_stay() -> None:
    config = ByteConfig(hidden_size=96, num_attention_heads=5, num_key_value_heads=1, head_dim=32)
    assert (config.num_key_value_heads, config.head_dim) == (1, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size 0 must be at least 1"),
        ({"hidden_size": 100}, "hidden_size 100 is not divisible by num_attention_heads 12"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5 must divide num_attention_heads 12"),
        ({"head_dim": 3}, "head_dim 3 must be even"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps 0.0 must be greater than 0"),
        ({"vocab_size": 2}, "pad_token_id 2 must be inside the vocabulary"),
        ({"pad_token_id": 0}, "must differ from bos_token_id 0"),
        ({"position_embedding": "rope", "xpos_learnable": True}, "xpos_learnable True needs position_embedding xpos"),
        ({"xpos_scale_base": 1.0}, "xpos_scale_base 1.0 lets XPos leave the range of float32"),
    ],
)
def test_model_rejections(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ByteConfig(**fields)


def test_the_xpos_base_it_names_fits() -> None:
    with pytest.raises(UserError, match="use at least 31"):
        ByteConfig(xpos_scale_base=30.0)
    ByteConfig(xpos_scale_base=31.0)


def test_xpos_range_is_that_of_the_compute_dtype() -> None:
    config = ByteConfig(xpos_scale_base=31.0)
    with pytest.raises(UserError, match="float16"):
        config.check_xpos_range("float16")
    dataclasses.replace(config, position_embedding="rope").check_xpos_range("float16")


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (SourceConfig, {"path": "x", "fields": ()}, "fields"),
        (DataConfig, {"sources": (), "tokenizer": "t", "shards": "s"}, "data.sources"),
        (TrainingConfig, {"max_steps": 0, "batch_size": 1}, "training.max_steps 0"),
        (TrainingConfig, {"max_steps": 1, "batch_size": 3, "gradient_accumulation_steps": 2}, "not divisible"),
        (TrainingConfig, {"max_steps": 1, "batch_size": 1, "eval_batches": 0}, "or null"),
        (
            TrainingConfig,
            SMALL | {"attention_block_size": 64},
            "attention_block_size 64 must be a power of two of at l",
        ),
        (TrainingConfig, SMALL | {"attention_block_size": 384}, "attention_block_size 384 must be a power of two"),
        (
            TrainingConfig,
            SMALL | {"attention_block_size": 256, "attention_kernel": "cudnn"},
            "attention_block_size 256 is for attention_kernel splash: set that instead of cudnn, or leave this out",
        ),
        (TrainingConfig, SMALL | {"label_smoothing_factor": 1.0}, "training.label_smoothing_factor 1.0 must be in"),
        (TrainingConfig, SMALL | {"z_loss_coef": -1.0}, "training.z_loss_coef -1.0 must be at least 0"),
        (TrainingConfig, SMALL | {"ema_decay": 1.0}, r"training.ema_decay 1.0 must be in \[0, 1\), or null"),
        (TrainingConfig, SMALL | {"eval_ema": True}, "training.eval_ema true measures the average of the weights"),
        (
            TrainingConfig,
            SMALL | {"max_skipped_in_a_row": 3},
            "max_skipped_in_a_row 3 is for on_not_finite skip or",
        ),
        (TrainingConfig, SMALL | {"loss_spike_window": 64}, "loss_spike_window 64 is for loss_spike_zscore: set that"),
        (TrainingConfig, SMALL | {"loss_spike_zscore": 0.0}, "loss_spike_zscore 0.0 must be greater than 0"),
        (
            TrainingConfig,
            SMALL | {"early_stopping_patience": 0},
            "early_stopping_patience 0 must be at least 1 or nul",
        ),
        (
            TrainingConfig,
            SMALL | {"early_stopping_threshold": 0.1},
            "threshold 0.1 is for early_stopping_patience: s",
        ),
        (TrainingConfig, SMALL | {"position_shift": -1}, "training.position_shift -1 must be at least 0"),
        (TrainingConfig, SMALL | {"quantize": "w8", "quantize_group_size": 0}, "size 0 must be at least 1 or null"),
        (TrainingConfig, SMALL | {"quantize_group_size": 64}, "quantize_group_size 64 is for quantize: set that, or"),
        (OptimizerConfig, {"learning_rate": -1.0}, "optimizer.learning_rate -1.0"),
        (OptimizerConfig, {"adam_beta2": 1.0}, "optimizer.adam_beta2 1.0"),
        (OptimizerConfig, {"min_learning_rate_ratio": 2.0}, "optimizer.min_learning_rate_ratio"),
        (OptimizerConfig, {"muon_momentum": 1.0, "optim": "muon"}, "optimizer.muon_momentum 1.0 must be in"),
        (OptimizerConfig, {"muon_momentum": 0.9}, "optimizer.muon_momentum 0.9 is for optim muon: set that instead of"),
        (OptimizerConfig, {"adam_epsilon": 1e-6, "optim": "lion"}, "adam_epsilon 1e-06 is for optim adamw or muon: "),
        (
            OptimizerConfig,
            {"adam_beta1": 0.8, "optim": "adafactor"},
            "adam_beta1 0.8 is for optim adamw or lion or muo",
        ),
        (OptimizerConfig, {"learning_rate_pattern": {"a": -1.0}}, "learning_rate_pattern.a -1.0 must be at least 0"),
        (OptimizerConfig, {"num_cycles": 3}, "optimizer.num_cycles 3 is for lr_scheduler_type cosine_with_restarts: "),
        (OptimizerConfig, {"decay_type": "1-sqrt"}, "decay_type 1-sqrt is for lr_scheduler_type warmup_stable_decay"),
        (OptimizerConfig, CONSTANT | {"min_learning_rate_ratio": 0.0}, "min_learning_rate_ratio 0.0 is for lr_schedul"),
        (OptimizerConfig, RESTARTS, "optimizer.num_cycles 1 restarts nothing: set 2 or more"),
        (OptimizerConfig, RESTARTS | {"num_cycles": 2, "cycle_decay": 1.5}, "cycle_decay 1.5 must be at most 1"),
        (
            OptimizerConfig,
            RESTARTS | {"num_cycles": 4, "cycle_decay": 0.25},
            "cycle_decay 0.25 takes the peak of the last of 4 cycles to 0.0156 of the first, below min_learning_rate_r",
        ),
        (OptimizerConfig, STABLE | {"num_decay_steps": 0}, "num_decay_steps 0 must be at least 1 or null"),
        (MeshConfig, {"data": 0}, "mesh.data 0"),
        (MeshConfig, {"data": -1, "fsdp": -1}, "more than one -1"),
        (CheckpointConfig, {"save_total_limit": 0}, "checkpoint.save_total_limit 0"),
        (CheckpointConfig, {"save_steps": None}, "checkpoint.save_steps null leaves a run without checkpoints"),
        (CheckpointConfig, {"save_minutes": 0.0}, "checkpoint.save_minutes 0.0 must be greater than 0"),
        (
            CheckpointConfig,
            {"grace_seconds": 1e9},
            "checkpoint.grace_seconds 1000000000.0 must be at most 604800, or n",
        ),
        (CheckpointConfig, {"keep_best": 0}, "checkpoint.keep_best 0 must be at least 1 or null"),
        (CheckpointConfig, {"keep_every_steps": 150}, "keep_every_steps 150 must be a multiple of save_steps, .* 100:"),
        (
            CheckpointConfig,
            {"save_steps": None, "save_minutes": 5.0, "keep_every_steps": 10},
            "keep_every_steps 10 must be a multiple of save_steps, which is null",
        ),
        # What no machine holds, and what is no number of this kind.
        (ByteConfig, {"hidden_size": 10**12}, "hidden_size 1000000000000 must be at most 1048576"),
        (ByteConfig, {"hidden_size": 2**42, "num_attention_heads": 4}, "^hidden_size 4398046511104 must be at most"),
        (ByteConfig, {"num_hidden_layers": True}, "num_hidden_layers True must be a whole number"),
        (
            DataConfig,
            SOURCE | {"sequence_length": 10**12},
            "data.sequence_length 1000000000000 must be at most 2147483647",
        ),
        (DataConfig, SOURCE | {"tokens_per_shard": 10**20}, "data.tokens_per_shard 1.* must be at most 68719476736"),
        (TrainingConfig, SMALL | {"max_steps": 10**12}, "training.max_steps 1000000000000 must be at most 2147483647"),
        (TrainingConfig, SMALL | {"batch_size": 10**20}, "training.batch_size 1.* must be at most 2147483647"),
        (TrainingConfig, SMALL | {"batch_size": True}, "training.batch_size True must be a whole number"),
        (
            TrainingConfig,
            SMALL | {"eval_batches": 10**12},
            "training.eval_batches 1.* must be at most 2147483647 or null",
        ),
        (TrainingConfig, SMALL | {"attention_block_size": 2**60}, "must be a power of two .* at most 65536"),
        (OptimizerConfig, {"learning_rate": math.inf}, "optimizer.learning_rate inf must be a finite number"),
        (OptimizerConfig, {"learning_rate": 1e-320}, "optimizer.learning_rate 1e-320 must be .* that float32 holds"),
        (OptimizerConfig, {"adam_epsilon": 1e39}, "optimizer.adam_epsilon 1e\\+39 must be .* that float32 holds"),
        (MeshConfig, {"rules": {"hidden": ("data", "data")}}, "mesh.rules.hidden .* names an axis twice"),
        (DataConfig, SOURCE | {"tokenizer": ""}, "data.tokenizer is empty: name a folder"),
        (DataConfig, SOURCE | {"shards": "a\nb"}, r"data.shards 'a\\nb' holds a character that cannot be printed"),
        (OptimizerConfig, {"weight_decay": math.nan}, "optimizer.weight_decay nan must be a finite number"),
        (OptimizerConfig, {"learning_rate": True}, "optimizer.learning_rate True must be a finite number"),
        (OptimizerConfig, {"warmup_steps": 1.5}, "optimizer.warmup_steps 1.5 must be a whole number"),
        (MeshConfig, {"fsdp": 10**12}, "mesh.fsdp 1000000000000 must be at most 1048576, or -1 to infer it"),
        (MeshConfig, {"slices": 10**12}, "mesh.slices 1000000000000 must be at most 1048576"),
        (CheckpointConfig, {"save_steps": 10**12}, "checkpoint.save_steps 1000000000000 must be at most 2147483647"),
        (DistributedConfig, {"num_processes": 10**12}, "distributed.num_processes 1.* must be at most 1048576"),
        (DistributedConfig, {"lost_after": 10**12}, "distributed.lost_after 1.* must be at most 604800"),
        (DistributedConfig, {"local_device_ids": (-1,)}, "distributed.local_device_ids -1 must be at least 0"),
        (LoRAConfig, LORA | {"r": 10**12}, "lora.r 1000000000000 must be .* at most 65536"),
        (
            LoRAConfig,
            LORA | {"rank_pattern": {"k": 10**12}},
            "lora.rank_pattern.k 1.* must be .* at most 65536",
        ),
        (LoRAConfig, LORA | {"alpha_pattern": {"k": math.nan}}, "lora.alpha_pattern.k nan must be a finite number"),
        (LoRAConfig, LORA | {"layers": "0-99999999999999999999"}, "lora.layers is .*: write layer numbers as"),
    ],
)
def test_other_rejections(kind: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**fields)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_validation_fraction(fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.validation_fraction"):
        dataclasses.replace(DATA, validation_fraction=fraction)


def test_run_rejections_across_sections() -> None:
    model = ByteConfig(max_position_embeddings=32)
    training = TrainingConfig(max_steps=10, batch_size=1)
    warm = OptimizerConfig(warmup_steps=5)
    with pytest.raises(UserError, match=r"data\.sequence_length 64 is longer than model\.max_position_embeddings 32"):
        RunConfig("runs/x", model, DATA, training, warm)
    with pytest.raises(UserError, match=r"output_dir is empty"):
        RunConfig("", ByteConfig(), DATA, training, warm)
    with pytest.raises(UserError, match=r"init_from is empty"):
        RunConfig("runs/x", ByteConfig(), DATA, training, warm, init_from="")
    with pytest.raises(UserError, match=r"optimizer\.warmup_steps 100 is more than training\.max_steps 10"):
        RunConfig("runs/x", ByteConfig(), DATA, training)
    with pytest.raises(
        UserError, match=r"optimizer\.num_decay_steps 6 is more than the 5 steps that optimizer\.warmup"
    ):
        RunConfig("runs/x", ByteConfig(), DATA, training, OptimizerConfig(warmup_steps=5, num_decay_steps=6, **STABLE))
    with pytest.raises(
        UserError, match=r"optimizer\.num_cycles 6 is more than the 5 steps that optimizer\.warmup_steps"
    ):
        RunConfig("runs/x", ByteConfig(), DATA, training, OptimizerConfig(warmup_steps=5, num_cycles=6, **RESTARTS))


@pytest.mark.parametrize(
    ("checkpoint", "data", "message"),
    [
        (
            CheckpointConfig(150, keep_best=1),
            DATA,
            r"keep_best 1 .*save_steps \(now 150\) a multiple of .*eval_steps 100",
        ),
        (
            CheckpointConfig(None, 5.0, keep_best=1),
            DATA,
            r"save_steps \(now null\) a multiple of training.eval_steps 100",
        ),
        (
            CheckpointConfig(keep_best=2),
            dataclasses.replace(DATA, validation_fraction=0.0),
            r"keep_best 2 needs a validation split to judge by, but data\.validation_fraction is 0",
        ),
    ],
)
def test_the_best_is_kept_where_it_can_be_told(checkpoint: CheckpointConfig, data: DataConfig, message: str) -> None:
    training, warm = TrainingConfig(max_steps=10, batch_size=1), OptimizerConfig(warmup_steps=5)
    with pytest.raises(UserError, match=message):
        RunConfig("runs/x", ByteConfig(), data, training, warm, checkpoint=checkpoint)
    RunConfig("runs/x", ByteConfig(), DATA, training, warm, checkpoint=CheckpointConfig(200, keep_best=2))


@pytest.mark.parametrize(
    ("training", "sections", "message"),
    [
        ({"position_shift": 1985}, {}, r"position_shift 1985 and data\.sequence_length 64 .* shift by 1984 at most"),
        (
            {"position_shift": 1},
            {"model": ByteConfig(position_embedding="none")},
            "position_shift 1 shifts nothing, ",
        ),
        ({"xpos_regularization_coef": 0.1}, {}, r"xpos_regularization_coef 0\.1 is for a zeta that is trained: set"),
        (
            {"xpos_regularization_coef": 0.1},
            {"model": ByteConfig(xpos_learnable=True), "init_from": "x", "lora": LoRAConfig(**LORA)},
            r"xpos_regularization_coef 0\.1 is for a zeta that is trained: set",
        ),
        (
            {"quantize": "w4", "quantize_group_size": 48},
            {"model": ByteConfig(intermediate_size=3000)},
            r"quantize_group_size 48 does not divide the 3000 inputs of down_proj: choose a divisor, such as 40, or",
        ),
        (
            {"quantize": "w4", "quantize_group_size": 64},
            {"model": ByteConfig(intermediate_size=(3072, 3008, 3000), num_hidden_layers=3)},
            r"quantize_group_size 64 does not divide the 3000 inputs of a down_proj of 3000: choose a divisor",
        ),
        (
            {"quantize": "w8"},
            {"init_from": "x", "lora": LoRAConfig(**LORA)},
            r"training\.quantize w8 trains all weights for their export, and lora keeps them as they are: leave one",
        ),
        (
            {"on_not_finite": "rollback"},
            {"checkpoint": CheckpointConfig(None, 5.0)},
            r"training\.on_not_finite rollback goes back to a checkpoint of checkpoint\.save_steps, which is null",
        ),
        (
            {"early_stopping_patience": 2},
            {"data": dataclasses.replace(DATA, validation_fraction=0.0)},
            r"early_stopping_patience 2 needs a validation split to judge by",
        ),
        (
            {},
            {"checkpoint": CheckpointConfig(metric_for_best_model="validation_accuracy")},
            r"validation_accuracy is for keep_best and training\.early_stopping_patience: set one of them",
        ),
        (
            {"eval_tasks": ("my/quiz.jsonl",), "early_stopping_patience": 2},
            {"checkpoint": CheckpointConfig(metric_for_best_model="validation_task_puzzle")},
            r"validation_task_puzzle is of a task that .* does not ask: use validation_task_quiz or",
        ),
    ],
)
def test_guards_and_positions_fit_the_rest(training: dict, sections: dict, message: str) -> None:
    known = {"model": ByteConfig(), "data": DATA, "optimizer": OptimizerConfig(warmup_steps=5)} | sections
    with pytest.raises(UserError, match=message):
        RunConfig("runs/x", training=TrainingConfig(max_steps=10, batch_size=1, **training), **known)


def test_what_guards_need_is_enough() -> None:
    training = TrainingConfig(10, 1, position_shift=1984, xpos_regularization_coef=0.1, early_stopping_patience=2)
    checkpoint = CheckpointConfig(metric_for_best_model="validation_accuracy")
    model, warm = ByteConfig(xpos_learnable=True), OptimizerConfig(warmup_steps=5)
    RunConfig("runs/x", model, DATA, training, warm, checkpoint=checkpoint)
    asking = TrainingConfig(10, 1, eval_tasks=("my/quiz.jsonl",), early_stopping_patience=2)
    by_task = CheckpointConfig(metric_for_best_model="validation_task_quiz_by_bytes")
    RunConfig("runs/x", ByteConfig(), DATA, asking, warm, checkpoint=by_task)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 1, 10**20, True])
def test_a_seed_is_one_of_those_that_draw_apart(seed: int) -> None:
    """JAX draws by the lowest 32 bits: 2^32 + 1 would be 1 again."""
    training, warm = TrainingConfig(max_steps=10, batch_size=1), OptimizerConfig(warmup_steps=5)
    with pytest.raises(UserError, match=rf"seed {seed} must be"):
        RunConfig("runs/x", ByteConfig(), DATA, training, warm, seed=seed)
    assert RunConfig("runs/x", ByteConfig(), DATA, training, warm, seed=2**32 - 1).seed == 2**32 - 1
