"""How a run trains, as frozen dataclasses that refuse contradictions when they are built."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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

    label_smoothing_factor: float = 0.0
    """Share of a label's weight that training spreads evenly over the vocabulary, from 0 to less than 1. The losses
    that are told, and validation, are without it.
    """

    z_loss_coef: float = 0.0
    """Weight of the square of the logits' logsumexp in what training makes small, such as 1e-4, so that logits do not
    drift (Chowdhery et al. 2022, arXiv:2204.02311). The losses that are told, and validation, are without it.
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

    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is kept and saved beside them, from 0 to less than
    1; null for none. After n steps it is at most (1 + n) / (10 + n), so that the average follows the first steps.
    """

    eval_ema: bool = False
    """Whether a validation measures the average that ema_decay keeps instead of the weights."""

    def __post_init__(self) -> None:
        if self.ema_decay is not None:
            require(0 <= self.ema_decay < 1, "training.ema_decay", self.ema_decay, "must be in [0, 1), or null")
        require(
            not self.eval_ema or self.ema_decay is not None,
            "training.eval_ema",
            "true",
            "measures the average of the weights, which training.ema_decay keeps: set that, such as to 0.999",
        )
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "eval_steps"):
            check_whole(f"training.{name}", getattr(self, name), 1)
        if self.eval_batches is not None:
            check_whole("training.eval_batches", self.eval_batches, 1, otherwise=" or null")
        smoothing = self.label_smoothing_factor
        require(0 <= smoothing < 1, "training.label_smoothing_factor", smoothing, "must be in [0, 1)")
        check_number("training.z_loss_coef", self.z_loss_coef, least=0)
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


# Fields of OptimizerConfig that only some values of another field read: field -> (the other field, these values).
_READ_WITH = {
    "adam_beta1": ("optim", ("adamw", "lion", "muon")),
    "adam_beta2": ("optim", ("adamw", "lion", "muon")),
    "adam_epsilon": ("optim", ("adamw", "muon")),
    "muon_momentum": ("optim", ("muon",)),
    "min_learning_rate_ratio": (
        "lr_scheduler_type",
        ("cosine", "linear", "cosine_with_restarts", "warmup_stable_decay"),
    ),
    "num_cycles": ("lr_scheduler_type", ("cosine_with_restarts",)),
    "cycle_decay": ("lr_scheduler_type", ("cosine_with_restarts",)),
    "num_decay_steps": ("lr_scheduler_type", ("warmup_stable_decay",)),
    "decay_type": ("lr_scheduler_type", ("warmup_stable_decay",)),
}


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer with its learning rate's schedule, weight decay and gradient clipping."""

    learning_rate: float = 3e-4
    """Peak learning rate, reached at the end of the warm-up."""

    min_learning_rate_ratio: float = 0.1
    """Learning rate of the last step as a share of the peak, from 0 to 1; every schedule but constant leads there."""

    warmup_steps: int = 100
    """Number of steps in which the learning rate rises linearly to its peak, before any schedule."""

    lr_scheduler_type: Literal["cosine", "linear", "cosine_with_restarts", "warmup_stable_decay", "constant"] = "cosine"
    """How the learning rate goes on after the warm-up: cosine and linear fall until the last step;
    cosine_with_restarts falls num_cycles times (Loshchilov & Hutter 2017, arXiv:1608.03983); warmup_stable_decay stays
    at the peak and falls in the last num_decay_steps (Hu et al. 2024, arXiv:2404.06395); constant stays at the peak.
    """

    num_cycles: int = 1
    """For cosine_with_restarts: number of cycles, all of the same length; 2 or more."""

    cycle_decay: float = 1.0
    """For cosine_with_restarts: peak of a cycle as a share of the peak of the cycle before, above 0 and at most 1."""

    num_decay_steps: int | None = None
    """For warmup_stable_decay: number of steps at the end in which the learning rate falls; null for a fifth of
    training.max_steps.
    """

    decay_type: Literal["linear", "1-sqrt"] = "linear"
    """For warmup_stable_decay: how the learning rate falls, linearly or as 1 - sqrt(share of these steps that are done)
    (Hägele et al. 2024, arXiv:2405.18392).
    """

    optim: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    """The optimizer. adamw keeps two moments (Loshchilov & Hutter 2019, arXiv:1711.05101). lion keeps one, and wants a
    third to a tenth of AdamW's learning rate (Chen et al. 2023, arXiv:2302.06675). adafactor keeps of a matrix two
    vectors (Shazeer & Stern 2018, arXiv:1804.04235). muon orthogonalises the momentum of the layers' matrices, and
    trains everything else as adamw (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon); its updates are
    as large as AdamW's, so that AdamW's learning rate and weight decay fit (Liu et al. 2025, arXiv:2502.16982).
    """

    weight_decay: float = 0.1
    """Decoupled weight decay. It acts on matrices, but not on norms, biases and other gains."""

    adam_beta1: float = 0.9
    """Decay rate of the running mean of the gradients, from 0 to less than 1. For lion it is the weight of that mean in
    an update.
    """

    adam_beta2: float = 0.95
    """Decay rate of the running mean of the squared gradients, from 0 to less than 1. For lion, which has none, it is
    the decay rate of the running mean of the gradients, and 0.99 is usual.
    """

    adam_epsilon: float = 1e-8
    """Constant added to the root of the squared gradients' mean, by which an update is divided."""

    muon_momentum: float = 0.95
    """For muon: decay rate of the running mean of the matrices' gradients, from 0 to less than 1."""

    learning_rate_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Factors on the learning rate of single parameters, by one or more words of their dotted name, such as
    {embed_tokens: 0.5, self_attn.q_proj: 2}. The first entry that fits a parameter counts; 0 leaves it as it is.
    """

    max_grad_norm: float = 1.0
    """Largest norm of all gradients together; larger gradients are scaled down to it."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adam_epsilon", "max_grad_norm", "cycle_decay"):
            check_number(f"optimizer.{name}", getattr(self, name), above=0)
        check_whole("optimizer.warmup_steps", self.warmup_steps, 0)
        check_number("optimizer.weight_decay", self.weight_decay, least=0)
        for name in ("adam_beta1", "adam_beta2", "muon_momentum"):
            require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must be in [0, 1)")
        require(
            0 <= self.min_learning_rate_ratio <= 1,
            "optimizer.min_learning_rate_ratio",
            self.min_learning_rate_ratio,
            "must be in [0, 1]",
        )
        check_whole("optimizer.num_cycles", self.num_cycles, 1)
        require(self.cycle_decay <= 1, "optimizer.cycle_decay", self.cycle_decay, "must be at most 1")
        if self.num_decay_steps is not None:
            check_whole("optimizer.num_decay_steps", self.num_decay_steps, 1, otherwise=" or null")
        for name, factor in self.learning_rate_pattern.items():
            check_number(f"optimizer.learning_rate_pattern.{name}", factor, least=0)
        for name, (other, values) in _READ_WITH.items():
            require(
                getattr(self, name) == getattr(OptimizerConfig, name) or getattr(self, other) in values,
                f"optimizer.{name}",
                getattr(self, name),
                f"is for {other} {' or '.join(values)}: set that instead of {getattr(self, other)}, or leave this out",
            )
        if self.lr_scheduler_type == "cosine_with_restarts":
            require(self.num_cycles > 1, "optimizer.num_cycles", self.num_cycles, "restarts nothing: set 2 or more")
            lowest = self.cycle_decay ** (self.num_cycles - 1)
            require(
                lowest >= self.min_learning_rate_ratio,
                "optimizer.cycle_decay",
                self.cycle_decay,
                f"takes the peak of the last of {self.num_cycles} cycles to {lowest:.3g} of the first, below "
                f"min_learning_rate_ratio {self.min_learning_rate_ratio}: raise it, or lower that",
            )

    def decay_steps(self, max_steps: int) -> int:
        """Number of steps in which warmup_stable_decay falls, in a run of `max_steps`."""
        return max(1, max_steps // 5) if self.num_decay_steps is None else self.num_decay_steps

    def check_steps(self, max_steps: int) -> None:
        """Refuses a schedule that does not fit into `max_steps`.

        Raises:
            UserError: the warm-up, and what must follow it, take more steps than there are.
        """
        warmup, left = self.warmup_steps, max_steps - self.warmup_steps
        require(left >= 0, "optimizer.warmup_steps", warmup, f"is more than training.max_steps {max_steps}")
        name, least = "num_cycles", self.num_cycles if self.lr_scheduler_type == "cosine_with_restarts" else 0
        if self.lr_scheduler_type == "warmup_stable_decay":
            name, least = "num_decay_steps", self.decay_steps(max_steps)
        require(
            least <= left,
            f"optimizer.{name}",
            least,
            f"is more than the {left} steps that optimizer.warmup_steps {warmup} leaves of training.max_steps "
            f"{max_steps}: lower one of the two",
        )
