"""How the weights follow the gradients, as a frozen dataclass that refuses contradictions when it is built."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stellarbyte_jax.bounds import check_number, check_whole, require

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
