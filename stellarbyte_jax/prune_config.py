"""PruneConfig: how a run prunes its model while it trains."""

from dataclasses import dataclass

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.bounds import check_whole, require


@dataclass(frozen=True)
class PruneConfig:
    """Structured pruning in training: the least important channels and heads become zero, and are cut out at last.

    The share that is kept falls from 1 as 1 - keep times a cubic that is steep at first (Zhu & Gupta 2017,
    arXiv:1710.01878). What has become zero stays zero.
    """

    from_step: int
    """Number of steps before the share begins to fall."""

    to_step: int
    """Number of steps after which the share is reached; the model is then cut, and trains on as a smaller one."""

    every_steps: int = 10
    """Number of steps from one pruning to the next."""

    keep_channels: float | None = None
    """Share of the feed-forward channels that is kept in the end, more than 0 and less than 1; null for all."""

    keep_heads: float | None = None
    """Share of the query heads that is kept in the end, more than 0 and less than 1; null for all. A key/value head
    goes with the last query head that reads it.
    """

    even: bool = False
    """Whether all layers keep the same number, and heads go by whole groups that share a key/value head, as a stock
    architecture wants it; otherwise layers keep what matters most in the whole model.
    """

    multiple: int = 8
    """For keep_channels: number of which the channels that a layer keeps are a multiple; matmuls on accelerators are
    fast on whole blocks. The share is rounded to it, and each layer keeps so many at least.
    """

    def __post_init__(self) -> None:
        check_whole("training.prune.from_step", self.from_step, 0)
        check_whole("training.prune.to_step", self.to_step, 1)
        require(
            self.from_step < self.to_step,
            "training.prune.from_step",
            self.from_step,
            f"must be less than training.prune.to_step {self.to_step}, by which the share is reached",
        )
        check_whole("training.prune.every_steps", self.every_steps, 1)
        steps = self.to_step - self.from_step
        require(
            self.every_steps <= steps,
            "training.prune.every_steps",
            self.every_steps,
            f"is more than the {steps} steps from from_step to to_step: all would go at once",
        )
        shares = {"keep_channels": self.keep_channels, "keep_heads": self.keep_heads}
        for name, share in shares.items():
            is_share = share is None or (not isinstance(share, bool | str) and 0 < share < 1)
            require(is_share, f"training.prune.{name}", share, "must be in (0, 1), such as 0.5, or null to keep all")
        require(
            any(share is not None for share in shares.values()),
            "training.prune",
            "keeps",
            "all channels and all heads: set keep_channels or keep_heads, or leave the section out",
        )
        check_whole("training.prune.multiple", self.multiple, 1)
        require(
            self.keep_channels is not None or self.multiple == PruneConfig.multiple,
            "training.prune.multiple",
            self.multiple,
            "is for keep_channels: set that, or leave this out",
        )

    def check_run(self, max_steps: int, early_stopping_patience: int | None) -> None:
        """Refuses a run that may end before its model is cut; raises UserError."""
        require(
            self.to_step <= max_steps,
            "training.prune.to_step",
            self.to_step,
            f"is more than training.max_steps {max_steps}: the run would end before its model is cut",
        )
        require(
            early_stopping_patience is None,
            "training.early_stopping_patience",
            early_stopping_patience,
            "could end the run before training.prune has cut its model: leave one of the two out",
        )

    def check_model(self, model: ByteConfig, group_size: int | None) -> None:
        """Refuses to prune what the model does not have, or to leave what groups of a grid of weights do not divide.

        Raises:
            UserError: a field does not fit.
        """
        if self.keep_channels is not None:
            require(
                model.num_experts == 0,
                "training.prune.keep_channels",
                self.keep_channels,
                f"is for a dense model, and this one has model.num_experts {model.num_experts}: set keep_heads alone",
            )
            narrowest = min(model.intermediate_sizes)
            require(
                self.multiple <= narrowest,
                "training.prune.multiple",
                self.multiple,
                f"is more than the {narrowest} channels of a layer: lower it",
            )
            require(
                group_size is None or self.multiple % group_size == 0,
                "training.prune.multiple",
                self.multiple,
                f"is no multiple of training.quantize_group_size {group_size}, so that groups would not divide the "
                f"channels that are left: set {group_size}, or a multiple of it",
            )
        require(
            self.keep_heads is None or group_size is None or (model.head_dim or 0) % group_size == 0,
            "training.prune.keep_heads",
            self.keep_heads,
            f"leaves heads of {model.head_dim} channels, which training.quantize_group_size {group_size} does not "
            "divide: set that to a divisor, or null",
        )
