"""Collects what a model card tells of a run's training: its data, its settings, its figures and a picture of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from stellarbyte.errors import UserError, shown
from stellarbyte.metrics_file import records
from stellarbyte.places import Place

PICTURE = "training.png"

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")

# Names in metrics.jsonl -> their titles on the card, and the formats of their values.
_FIGURES = {
    "validation_loss": ("Validation loss", "{:.4f}"),
    "validation_perplexity": ("Validation perplexity", "{:.2f}"),
    "validation_bits_per_byte": ("Validation bits per byte", "{:.4f}"),
    "validation_accuracy": ("Validation accuracy of the next token", "{:.3f}"),
}

# Settings of a run -> their titles on the card.
_SETTINGS = {
    ("optimizer", "optim"): "Optimizer",
    ("optimizer", "learning_rate"): "Learning rate",
    ("optimizer", "lr_scheduler_type"): "Schedule",
    ("optimizer", "weight_decay"): "Weight decay",
    ("training", "batch_size"): "Rows of a batch",
    ("data", "sequence_length"): "Tokens of a row",
    ("training", "dtype"): "Precision",
}


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run's training, each as title -> value; all empty for an imported model.

    Attributes:
        data: its sources, and the size of what they gave.
        settings: how it was trained.
        figures: what was measured by the exported step.
    """

    data: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)


def read_facts(run_dir: Place, step: int, *, has_figures: bool = True) -> RunFacts:
    """The facts of the run up to `step`; its figures only if they were measured of the exported weights."""
    from stellarbyte_jax.checkpoints.folders import checkpoints_of
    from stellarbyte_jax.checkpoints.metadata import read_metadata

    metadata = read_metadata(checkpoints_of(run_dir) / str(step)).metadata
    figures = read_figures(run_dir / "metrics.jsonl", step) if has_figures else {}
    return RunFacts(_data(metadata.config.get("data"), metadata.data), _settings(metadata.config), figures)


def read_figures(metrics_file: Place, step: int) -> dict[str, str]:
    """Title -> value of what a run had measured by `step`; empty without metrics, as in imported runs."""
    last: dict[str, Any] = {}
    tokens = 0
    for _, record in records(metrics_file):
        if record["step"] <= step:
            numbers = {name: value for name, value in record.items() if _is_number(value)}
            last |= numbers
            tokens += int(numbers.get("tokens", 0))
    figures = {"Tokens seen": f"{tokens:,}"} if tokens else {}
    for name, (title, form) in _FIGURES.items():
        if name in last:
            figures[title] = form.format(last[name])
    return figures


def draw(run_dir: Place, step: int, folder: Path) -> bool:
    """Draws the run's curves up to `step` into `folder`/PICTURE; returns whether there is anything to draw.

    There is nothing in an imported run, or without matplotlib.
    """
    from stellarbyte.curves import Curve, RunCurves, read_curves

    if not (run_dir / "metrics.jsonl").exists():
        return False
    try:
        whole = read_curves(run_dir)
    except UserError:  # it has recorded nothing
        return False
    curves = {}
    for name, curve in whole.items():
        done = curve.steps <= step
        if done.any():
            curves[name] = Curve(curve.steps[done], curve.tokens[done], curve.values[done])
    if "loss" not in curves:  # no step had been done
        return False
    try:
        from stellarbyte.plot import plot

        plot([RunCurves(run_dir.name, curves)], folder / PICTURE)
    except ModuleNotFoundError:
        return False
    return True


def check_license(license_id: str | None) -> None:
    """Raises UserError unless the licence is None or looks like one of the Hub's identifiers, such as apache-2.0."""
    if license_id is not None and not _LICENSE.fullmatch(license_id):
        raise UserError(f"--license {shown(license_id)} is no identifier of the Hub: write apache-2.0 or other")


def _data(config: Any, identity: Any) -> dict[str, str]:
    if not isinstance(config, dict):
        return {}
    # The rest of a path is nobody's business but the run's.
    names = []
    for source in config.get("sources") or ():
        weight = source.get("weight")
        names.append(PurePath(str(source.get("path"))).name + (f" (weight {weight:g})" if weight is not None else ""))
    rows = {"Sources": ", ".join(names)}
    for split, counts in ({} if identity is None else identity.splits).items():
        title = {"train": "Training split", "validation": "Validation split"}.get(split, split)
        rows[title] = f"{counts.tokens:,} tokens, {counts.documents:,} documents, {counts.bytes / 1e6:,.1f} MB of text"
    return rows


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    rows = {}
    for (section, name), title in _SETTINGS.items():
        value = (config.get(section) or {}).get(name)
        if value is not None:
            rows[title] = f"{value:g}" if isinstance(value, float) else str(value)
    return rows


def _is_number(value: object) -> bool:
    # An integer may be beyond every float.
    return isinstance(value, int | float) and abs(value) < 1e300
