"""How a run trains, as a frozen dataclass that refuses contradictions when it is built."""

from dataclasses import dataclass
from typing import Literal

from stellarbyte_jax.batch_stages import Growth
from stellarbyte_jax.bounds import check_number, check_whole, require
from stellarbyte_jax.distill_config import DistillConfig
from stellarbyte_jax.prune_config import PruneConfig

# The losses of the window are kept in every checkpoint's metadata.
_LONGEST_WINDOW = 10_000

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

    initial_batch_size: int | None = None
    """Number of rows in the first steps, which doubles until it is batch_size (Smith et al. 2018, arXiv:1711.00489): a
    half, a quarter, an eighth … of that; null for batch_size from the start.
    """

    batch_size_warmup_steps: int = 0
    """For initial_batch_size: number of steps until batch_size is reached; each size before it has as many of them."""

    initial_sequence_length: int | None = None
    """Number of tokens in a row of the first steps, which doubles until it is data.sequence_length (Li et al. 2022,
    arXiv:2108.06084): a half, a quarter … of that; null for whole rows from the start. Rows are cut, so a step has more
    rows and as many tokens as before.
    """

    sequence_length_warmup_steps: int = 0
    """For initial_sequence_length: number of steps until rows are whole; each length before has as many of them."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of computation. Parameters, norms, softmax, loss and router are float32 in either case."""

    quantize: Literal["none", "w4", "w8"] = "none"
    """For a model that is to be quantised: the weights of layers are rounded in every pass of training and validation
    to a grid of 4 or 8 bits, that of an export's plain rounding, and their gradients are passed straight through
    (Bengio et al. 2013, arXiv:1308.3432). The weights that are trained and saved stay float32. none rounds nothing.
    """

    quantize_group_size: int | None = 128
    """For quantize: number of input channels that share a scale of the grid; it must divide the inputs of every linear
    layer. null gives each output channel one scale.
    """

    prune: PruneConfig | None = None
    """For a model that is to be smaller: the channels and heads that matter least become zero while the run trains, and
    are cut out of it in the end; null prunes nothing.
    """

    distill: DistillConfig | None = None
    """For a model that also learns from another, such as the one that it was pruned from; null for the data alone."""

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

    eval_tasks: tuple[str, ...] = ()
    """Files of multiple-choice questions (.jsonl: context, choices, answer) that each validation asks as well; a task
    is named after its file. The answer is the choice that the model thinks likeliest.
    """

    report_to: tuple[TrackerName, ...] = ()
    """Trackers that get the figures of metrics.jsonl as well: tensorboard, wandb, swanlab and trackio. One that fails
    is told and left; training goes on.
    """

    project: str = "stellarbyte"
    """The project in which wandb, swanlab and trackio show the run."""

    log_norms: bool = False
    """Whether metrics.jsonl also holds the norms of gradients and updates of each group of weights: embeddings,
    attention, feed_forward, norms, head, experts and adapters.
    """

    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is kept and saved beside them, from 0 to less than
    1; null for none. After n steps it is at most (1 + n) / (10 + n), so that the average follows the first steps.
    """

    eval_ema: bool = False
    """Whether a validation measures the average that ema_decay keeps instead of the weights."""

    on_not_finite: Literal["stop", "skip", "rollback"] = "stop"
    """What a run does if the loss or the gradient of a step is not finite; the step is not applied in any case. stop
    ends the run, with its last good step saved; skip leaves the batch out and goes on with the next; rollback goes back
    to a checkpoint and leaves out all batches up to the bad one (Chowdhery et al. 2022, arXiv:2204.02311).
    """

    max_skipped_in_a_row: int = 5
    """For on_not_finite and loss_spike_zscore: number of batches that a run leaves out in a row, or of rollbacks
    without a newer checkpoint in between, before it stops.
    """

    loss_spike_zscore: float | None = None
    """A step is not applied, and its batch is left out, if its loss is more than so many standard deviations above the
    mean of the last loss_spike_window applied steps, such as 6; null to apply every step.
    """

    loss_spike_window: int = 128
    """For loss_spike_zscore: number of steps over which mean and standard deviation are taken. No step is left out
    before there are so many.
    """

    early_stopping_patience: int | None = None
    """Number of validations in a row without an improvement of checkpoint.metric_for_best_model after which a run ends;
    null to end at max_steps alone.
    """

    early_stopping_threshold: float = 0.0
    """For early_stopping_patience: how far checkpoint.metric_for_best_model must get beyond its best for an
    improvement.
    """

    position_shift: int = 0
    """Largest offset of positions in training; 0 for none. Each document of a row gets an offset of its own, drawn from
    0 to this number, so that positions beyond data.sequence_length are trained as well.
    """

    xpos_regularization_coef: float = 0.0
    """For model.xpos_learnable: weight, in what training makes small, of a penalty on zeta where it falls from a pair
    to the next or is far from its start. The losses that are told are without it.
    """

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
        require(
            not smoothing or self.distill is None or self.distill.weight < 1,
            "training.label_smoothing_factor",
            smoothing,
            "smooths labels, of which training.distill.weight 1 leaves nothing: leave one of the two out",
        )
        check_number("training.z_loss_coef", self.z_loss_coef, least=0)
        if self.prune is not None:
            self.prune.check_run(self.max_steps, self.early_stopping_patience)
        self._check_what_guards()
        self._check_grid()
        check_whole("training.position_shift", self.position_shift, 0)
        check_number("training.xpos_regularization_coef", self.xpos_regularization_coef, least=0)
        require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            "training.batch_size",
            self.batch_size,
            f"is not divisible by gradient_accumulation_steps {self.gradient_accumulation_steps}",
        )
        self.batch_growth.check("training", "batch_size", "training.batch_size", self.max_steps)
        require(
            self.batch_growth.smallest % self.gradient_accumulation_steps == 0,
            "training.initial_batch_size",
            self.initial_batch_size,
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

    @property
    def batch_growth(self) -> Growth:
        """How batches grow, in rows."""
        return Growth(self.initial_batch_size, self.batch_size, self.batch_size_warmup_steps)

    def _check_grid(self) -> None:
        """Refuses a size of groups that is none, or that nothing reads."""
        size = self.quantize_group_size
        if size is not None:
            check_whole("training.quantize_group_size", size, 1, otherwise=" or null")
        require(
            self.quantize != "none" or size == TrainingConfig.quantize_group_size,
            "training.quantize_group_size",
            size,
            "is for quantize: set that, or leave this out",
        )

    def _check_what_guards(self) -> None:
        """Refuses fields about steps that are left out, and about an early end, that say nothing without another."""
        check_whole("training.max_skipped_in_a_row", self.max_skipped_in_a_row, 1)
        check_whole("training.loss_spike_window", self.loss_spike_window, 2, _LONGEST_WINDOW)
        check_number("training.early_stopping_threshold", self.early_stopping_threshold, least=0)
        if self.loss_spike_zscore is not None:
            check_number("training.loss_spike_zscore", self.loss_spike_zscore, above=0)
        if self.early_stopping_patience is not None:
            check_whole("training.early_stopping_patience", self.early_stopping_patience, 1, otherwise=" or null")
        spikes, early = self.loss_spike_zscore is not None, self.early_stopping_patience is not None
        for name, is_read, by in (
            ("max_skipped_in_a_row", spikes or self.on_not_finite != "stop", "on_not_finite skip or rollback"),
            ("loss_spike_window", spikes, "loss_spike_zscore"),
            ("early_stopping_threshold", early, "early_stopping_patience"),
        ):
            require(
                is_read or getattr(self, name) == getattr(TrainingConfig, name),
                f"training.{name}",
                getattr(self, name),
                f"is for {by}: set that, or leave this out",
            )
