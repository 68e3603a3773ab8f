"""Measures what a user asks for of a model, by the wing that it belongs to."""

from importlib import import_module

from stellarbyte.errors import UserError
from stellarbyte.places import local
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.measurements import Measured
from stellarbyte.report.report import Request
from stellarbyte.report.subject import Subject


def measure(subject: Subject, request: Request, architecture: Architecture) -> Measured:
    """What is measured of a run or of a folder.

    Raises:
        UserError: the model cannot be measured so, or cannot be read.
        ModuleNotFoundError: the wing's libraries are not installed.
    """
    asked = {"--latency": request.latency, "--data": request.data is not None, "--step": request.step is not None}
    option = next((name for name, is_asked in asked.items() if is_asked), None)
    if option is None:
        return Measured()
    if not subject.is_stored and not (subject.kind == "run" and request.step is not None):
        raise UserError(f"{option} measures a model, and {subject.path} has no weights: name a run or a folder")
    if subject.kind == "run":
        measured: Measured = import_module("stellarbyte_jax.cli").measured(subject.path, request, architecture)
        return measured
    if request.step is not None:
        raise UserError(f"--step {request.step} is a step of a run, and {subject.path} is a folder: leave it out")
    folder = local(subject.path, "MODEL", "Hugging Face folders are read from this machine: copy it here")
    measured = import_module("stellarbyte_torch.cli").measured(folder, request, architecture)
    return measured
