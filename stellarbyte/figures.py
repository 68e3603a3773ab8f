"""The one table of the figures in metrics.jsonl: what each is called, what it means, and how a terminal shows it.

Both wings write these names. A validation's record has the same names with `validation_` before them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

VALIDATION = "validation_"

# What fine-tuning wrote until 2026-11 for a figure of today.
FORMER_NAMES = {"eval_loss": "validation_loss"}

# The groups of parameters whose norms training.log_norms records, in the order in which a parameter is given to one.
NORM_GROUPS = ("adapters", "experts", "embeddings", "head", "norms", "attention", "feed_forward")


def perplexity(loss: float) -> float:
    """The exponential of a mean loss in nats; infinity where a float holds it no more."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: its key in a record. GROUP in it stands for each of NORM_GROUPS, TASK for the name of any task.
        unit: its unit; empty for a plain number.
        meaning: what it is.
        shown: how a terminal shows it, as a format; empty if it does not.
        better: whether less or more of it is better; empty if neither.
        of: the records that have it: of steps, of validations, or of both.
    """

    name: str
    unit: str
    meaning: str
    shown: str = ""
    better: Literal["", "less", "more"] = ""
    of: Literal["step", "validation", "both"] = "step"

    @property
    def label(self) -> str:
        """What a terminal calls it: the words of `shown` without the number."""
        return re.sub(r"\{[^}]*\}", "", self.shown).strip()

    def number(self, value: float) -> str:
        """The value as a terminal shows it, without the words."""
        (place,) = re.findall(r"\{[^}]*\}", self.shown)
        return str(place).format(value)

    def in_words(self, value: float | None) -> str | None:
        """The value with its words; None for a step without a rate, which is no fault."""
        if value is not None:
            return self.shown.format(value)
        return None if self.unit.endswith("/s") else f"{self.label} not finite"


FIGURES: tuple[Figure, ...] = (
    Figure(
        "loss",
        "nats a token",
        "plain cross-entropy, the mean over labelled tokens; never with label smoothing, z-loss or routers' losses. "
        "In fine-tuning it is what the Trainer makes small, and validation's is plain",
        "loss {:.4f}",
        "less",
        "both",
    ),
    Figure(
        "objective",
        "nats a token",
        "what training makes small, where that is not the loss: with label smoothing, z-loss and routers' losses",
        "objective {:.4f}",
        "less",
    ),
    Figure(
        "divergence",
        "nats a token",
        "training.distill: KL(teacher ‖ student) at the temperature, the mean over labelled tokens",
        "from teacher {:.4f}",
        "less",
    ),
    Figure("perplexity", "", "exp(loss)", "perplexity {:.2f}", "less", "both"),
    Figure("accuracy", "share", "labelled tokens that the model thinks most likely", "accuracy {:.3f}", "more", "both"),
    Figure(
        "bits_per_byte",
        "bits a byte",
        "loss of the whole text over its length in bytes, by which tokenizers can be compared",
        "bits/byte {:.4f}",
        "less",
        "validation",
    ),
    Figure(
        "task_TASK",
        "share",
        "training.eval_tasks: questions of a task whose right choice is the likeliest",
        "TASK {:.3f}",
        "more",
        "validation",
    ),
    Figure(
        "task_TASK_by_bytes",
        "share",
        "training.eval_tasks: the same by the likeliest choice a byte, so that long ones are not at a disadvantage",
        "TASK by bytes {:.3f}",
        "more",
        "validation",
    ),
    Figure("balance_loss", "", "experts: the load-balance loss, 1 for an even load", "balance {:.3f}", "less"),
    Figure("z_loss", "", "experts: the routers' z-loss"),
    Figure("expert_load", "share", "experts: each expert's share of all choices, a list"),
    Figure("dropped_share", "share", "experts: choices beyond moe_capacity_factor", "dropped {:.3f}", "less"),
    Figure("grad_norm", "", "norm of all gradients together, before clipping", "gradient {:.2f}"),
    Figure("grad_norm_GROUP", "", "the same of a group of parameters, with training.log_norms"),
    Figure("update_norm_GROUP", "", "norm of what a step adds to a group of parameters, with training.log_norms"),
    Figure("kept_channels", "share", "training.prune: feed-forward channels that are left", "channels {:.1%}"),
    Figure("kept_heads", "share", "training.prune: query heads that are left", "heads {:.1%}"),
    Figure("learning_rate", "", "learning rate of the step", "rate {:.2e}"),
    Figure("epoch", "epochs", "rows trained on, over the rows of an epoch"),
    Figure(
        "tokens",
        "tokens",
        "labelled tokens of the step or validation; in fine-tuning all but padding",
        of="both",
    ),
    Figure("tokens_seen", "tokens", "tokens of this step and all before it; null if records of some are lost"),
    Figure("tokens_per_second", "tokens/s", "tokens over step_seconds", "{:,.0f} tokens/s", "more"),
    Figure("tflops_per_second", "TFLOP/s", "model FLOPs of one device"),
    Figure("mfu", "share", "model FLOPs over what the chip could do, where JAX knows it", "MFU {:.1%}", "more"),
    Figure("step_seconds", "s", "time of the step, without validating, saving and compiling; null if it compiled"),
    Figure("data_seconds", "s", "the part of it in which the host waited for the batch"),
    Figure("checkpoint_seconds", "s", "time that a save before this step took from training"),
    Figure("seconds", "s", "time of the validation, without compiling", of="validation"),
    Figure("trace_seconds", "s", "time to trace a program that was compiled since the record before", of="both"),
    Figure("lower_seconds", "s", "time to lower it", of="both"),
    Figure("compile_seconds", "s", "time to compile it, or to read it from the compile cache", of="both"),
    Figure("compile_cache", "", "whether the compile cache had it: hit, miss or off", of="both"),
    Figure("host_bytes", "bytes", "memory of the process on the host"),
    Figure("hbm_bytes", "bytes", "memory in use on the process's fullest device"),
    Figure("hbm_peak_bytes", "bytes", "the most that was in use there"),
    Figure("hbm_limit_bytes", "bytes", "what there is"),
)

_TASK = "TASK"
_OF_TASKS = tuple(figure for figure in FIGURES if _TASK in figure.name)
_FIXED = tuple(figure for figure in FIGURES if figure not in _OF_TASKS)
_BY_NAME = {figure.name.replace("GROUP", group): figure for figure in _FIXED for group in NORM_GROUPS}

# The figures of every validation of which less or more is better; those of tasks are beside them.
JUDGING = tuple(VALIDATION + figure.name for figure in _FIXED if figure.better and figure.of != "step")


def split_name(key: str) -> tuple[bool, str]:
    """Whether a record's key is of a validation, and the figure's name; former names are today's."""
    key = FORMER_NAMES.get(key, key)
    return key.startswith(VALIDATION), key.removeprefix(VALIDATION)


def figure_of(key: str) -> Figure | None:
    """The figure that a record's key names; None if there is no such figure."""
    is_validation, name = split_name(key)
    figure = _BY_NAME.get(name) or _of_task(name)
    others = "step" if is_validation else "validation"
    return None if figure is None or figure.of == others else figure


def _of_task(name: str) -> Figure | None:
    """The figure of a task; None if the name is no such figure's."""
    for figure in reversed(_OF_TASKS):  # the longer name first
        before, _, behind = figure.name.partition(_TASK)
        task = name[len(before) : len(name) - len(behind)]
        if task and name == f"{before}{task}{behind}":
            return replace(figure, name=name, shown=figure.shown.replace(_TASK, task))
    return None


def task_name(file: str) -> str:
    """The name of the task in a file of questions: the file's own without its suffixes."""
    return PurePath(file).name.partition(".")[0]


def task_figures(files: Sequence[str]) -> list[str]:
    """The names of the figures that validations record of the tasks in these files."""
    return [VALIDATION + figure.name.replace(_TASK, task_name(file)) for file in files for figure in _OF_TASKS]


def value_of(record: Mapping[str, Any], key: str) -> Any:
    """The value of a figure in a record, by its name or by a former one; None if it is not there."""
    former = (old for old, new in FORMER_NAMES.items() if new == key)
    return next((record[name] for name in (key, *former) if name in record), None)


def finite_json(value: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): finite_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite(value: Any) -> float | None:
    """The value if it is a finite number; somebody may have written anything into a file."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    with suppress(OverflowError):  # a whole number beyond all floats
        return float(value) if math.isfinite(value) else None
    return None


def greater_is_better(key: str) -> bool:
    """Whether more of this figure is better."""
    figure = figure_of(key)
    assert figure is not None and figure.better
    return figure.better == "more"


def in_words(record: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The figures of a record that a terminal shows, in the table's order; a number that is missing is not finite."""
    words = (figure.in_words(record[prefix + figure.name]) for figure in figures_in(record, prefix))
    return [text for text in words if text is not None]


def figures_in(record: Mapping[str, Any], prefix: str = "") -> Sequence[Figure]:
    """The figures of a step's record that a terminal shows, or with the prefix `validation_` of a validation's."""
    others = "step" if prefix == VALIDATION else "validation"
    fixed = [figure for figure in _FIXED if figure.shown and figure.of != others and prefix + figure.name in record]
    tasks = [_of_task(key.removeprefix(VALIDATION)) for key in record if key.startswith(VALIDATION)]
    return fixed if others == "validation" else [*fixed, *(figure for figure in tasks if figure is not None)]
