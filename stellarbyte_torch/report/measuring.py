"""Measures what a report asks for of a Hugging Face folder."""

from pathlib import Path
from typing import Any

from stellarbyte.progress import progress
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.measurements import Latency, Measured
from stellarbyte.report.on_text import measure_on_text
from stellarbyte.report.pass_work import pass_work
from stellarbyte.report.report import Request
from stellarbyte.report.timing import measure_latency, points
from stellarbyte_torch.evaluation.scorer import TorchScorer
from stellarbyte_torch.model_folder import load_model
from stellarbyte_torch.report.reader import TorchReader
from stellarbyte_torch.report.speed import TorchEngine


def measure(folder: Path, request: Request, architecture: Architecture) -> Measured:
    """The speed of the folder's model, and what it makes of a text, as far as they are asked for.

    Raises:
        UserError: the folder cannot be loaded, there is no text, or the model gives numbers that are not finite.
    """
    scorer = None if request.data is None else TorchScorer(folder)
    model: Any = load_model(folder) if scorer is None else scorer.model
    latency = _latency(model, architecture) if request.latency else None
    if scorer is None or request.data is None:
        return Measured(latency=latency)
    found = measure_on_text(TorchReader(scorer), request.data)
    return Measured(
        latency=latency,
        heads=found.heads,
        attention=found.attention,
        token_losses=found.token_losses,
        remarks=found.remarks,
    )


def _latency(model: Any, architecture: Architecture) -> Latency:
    size = sum(weight.nbytes for weight in model.parameters()) / sum(weight.numel() for weight in model.parameters())

    def work(phase: str, batch: int, length: int) -> tuple[float, float]:
        return pass_work(architecture, phase, batch, length, size, model.dtype.itemsize)

    with progress("timing passes") as update:
        return measure_latency(TorchEngine(model), points(architecture.context, work), update)
