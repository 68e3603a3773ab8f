"""Measures what a report asks for of a Hugging Face folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stellarbyte.progress import progress
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.measurements import Latency, Measured
from stellarbyte.report.on_text import measure_on_text
from stellarbyte.report.report import Request
from stellarbyte.report.timing import latency_of
from stellarbyte_torch.evaluation.scorer import TorchScorer
from stellarbyte_torch.model_folder import load_model
from stellarbyte_torch.report.reader import TorchReader
from stellarbyte_torch.report.speed import TorchEngine


def measure(folder: Path, request: Request, architecture: Architecture) -> Measured:
    """The speed of the folder's model, and what it makes of a text, as far as they are asked for.

    Raises:
        UserError: the folder cannot be loaded, there is no text, or the model gives numbers that are not finite.
    """
    # A model alone needs no tokenizer.
    scorer = None if request.data is None else TorchScorer(folder, dtype=request.dtype)
    model: Any = load_model(folder, dtype=request.dtype) if scorer is None else scorer.model
    latency = _latency(model, architecture) if request.latency else None
    found = Measured()
    if scorer is not None and request.data is not None:
        found = measure_on_text(TorchReader(scorer), request.data)
    return replace(found, latency=latency)


def _latency(model: Any, architecture: Architecture) -> Latency:
    weights = list(model.parameters())
    weight_bytes = sum(weight.nbytes for weight in weights) / sum(weight.numel() for weight in weights)
    with progress("timing passes") as update:
        return latency_of(TorchEngine(model), architecture, weight_bytes, model.dtype.itemsize, update)
