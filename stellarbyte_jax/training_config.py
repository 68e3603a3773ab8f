"""How a run trains, as frozen dataclasses that refuse contradictions when they are built."""

from dataclasses import dataclass
from typing import Literal

from stellarbyte_jax.bounds import check_number, check_whole, require

TrackerName = Literal["tensorboard", "wandb", "swanlab", "trackio"]


@dataclass(frozen=True)
class TrainingConfig:
    """How long a run trains, how much at once, and how it computes."""

    max_steps: int
    """Number of optimizer steps of the whole run."""

    batch_size: int
    """Number of rows in a step, over all devices and all accumulated parts."""

    gradient_accumulation_steps: int = 1
    """Number of parts into which a step's batch is split, one after the other, to save memory; it must divide
    batch_size. The losses do not change.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of computation. Parameters, norms, softmax, loss and router are float32 in either case."""

    attention_kernel: Literal["auto", "reference", "chunked", "cudnn", "splash"] = "auto"
    """The attention kernel: reference is the plain formula, chunked is for CPUs, cudnn for GPUs and splash for TPUs.
    auto is the one for the devices at hand, or reference where attention_dropout needs it.
    """

    attention_block_size: int = 512
    """For splash: the largest block of queries and keys that it works on at a time, in tokens; a power of two from 128.
    The largest of it, its half, its quarter … down to 128 that divides a device's part of a row is taken.
    """

    remat: Literal["auto", "none", "full", "dots", "dots_without_batch", "save_attention", "offload"] = "none"
    """What a layer keeps for its backward pass; the rest is computed again. none keeps everything, dots the outputs of
    projections and attention, dots_without_batch those of projections, save_attention the layer's input and attention's
    output, full the input alone, and offload the input in the host's memory. auto is the fastest of these that fits the
    devices, as the planner predicts.
    """

    eval_steps: int = 100
    """Number of steps from one validation to the next; the last step is always followed by one."""

    eval_batches: int | None = None
    """Number of batches in a validation; null for the whole validation split."""

    report_to: tuple[TrackerName, ...] = ()
    """Trackers that get the figures of metrics.jsonl as well: tensorboard, wandb, swanlab and trackio. One that fails
    is told and left; training goes on.
    """

    project: str = "stellarbyte"
    """The project in which wandb, swanlab and trackio show the run."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "eval_steps"):
            check_whole(f"training.{name}", getattr(self, name), 1)
        if self.eval_batches is not None:
            check_whole("training.eval_batches", self.eval_batches, 1, otherwise=" or null")
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            "training.batch_size",
            self.batch_size,
            f"is not divisible by gradient_accumulation_steps {self.gradient_accumulation_steps}",
        )
        size = self.attention_block_size
        power_of_two = 128 <= size <= 2**16 and size & (size - 1) == 0
        expected = "must be a power of two of at least 128 and at most 65536"
        require(power_of_two, "training.attention_block_size", size, expected)
        require(
            size == TrainingConfig.attention_block_size or self.attention_kernel in ("auto", "splash"),
            "training.attention_block_size",
            size,
            f"is for attention_kernel splash: set that instead of {self.attention_kernel}, or leave this out",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warm-up, cosine decay and clipped gradients."""

    learning_rate: float = 3e-4
    """Peak learning rate, reached at the end of the warm-up."""

    min_learning_rate_ratio: float = 0.1
    """Learning rate of the last step as a share of the peak, from 0 to 1; a cosine leads there."""

    warmup_steps: int = 100
    """Number of steps in which the learning rate rises linearly to its peak."""

    weight_decay: float = 0.1
    """AdamW's decoupled weight decay. It acts on matrices, but not on norms, biases and other gains."""

    adam_beta1: float = 0.9
    """Decay rate of the running mean of the gradients, from 0 to less than 1."""

    adam_beta2: float = 0.95
    """Decay rate of the running mean of the squared gradients, from 0 to less than 1."""

    adam_epsilon: float = 1e-8
    """Constant added to the root of the squared gradients' mean, by which an update is divided."""

    max_grad_norm: float = 1.0
    """Largest norm of all gradients together; larger gradients are scaled down to it."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adam_epsilon", "max_grad_norm"):
            check_number(f"optimizer.{name}", getattr(self, name), above=0)
        check_whole("optimizer.warmup_steps", self.warmup_steps, 0)
        check_number("optimizer.weight_decay", self.weight_decay, least=0)
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must be in [0, 1)")
        require(
            0 <= self.min_learning_rate_ratio <= 1,
            "optimizer.min_learning_rate_ratio",
            self.min_learning_rate_ratio,
            "must be in [0, 1]",
        )
