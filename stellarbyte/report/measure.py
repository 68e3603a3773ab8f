"""Measures what a user asks for of a model, by the wing that it belongs to."""

from importlib import import_module

from stellarbyte.errors import UserError
from stellarbyte.places import local
from stellarbyte.records.sources import source_files
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.measurements import Measured
from stellarbyte.report.report import Request
from stellarbyte.report.subject import Subject


def check_request(subject: Subject, request: Request) -> None:
    """Raises UserError if a model cannot be measured so, before the work that takes a while."""
    asked = {"--latency": request.latency, "--data": request.data is not None, "--step": request.step is not None}
    for option in (name for name, is_asked in asked.items() if is_asked):
        if not subject.is_stored and not (subject.kind == "run" and option == "--step"):
            raise UserError(f"{option} measures a model, and {subject.path} has no weights: name a run or a folder")
    if request.step is not None and subject.kind != "run":
        raise UserError(f"--step {request.step} is a step of a run, and {subject.path} is a folder: leave it out")
    if request.step is not None and request.step < 1:
        raise UserError(f"--step {request.step} must be at least 1")
    if request.data is not None:
        source_files(request.data)


def measure(subject: Subject, request: Request, architecture: Architecture) -> Measured:
    """What is measured of a run or of a folder; nothing if nothing is asked for.

    Raises:
        UserError: the model cannot be read, or what is measured is of no use.
        ModuleNotFoundError: the wing's libraries are not installed.
    """
    if not request.latency and request.data is None and request.step is None:
        return Measured()
    if subject.kind == "run":
        measured: Measured = import_module("stellarbyte_jax.cli").measured(subject.path, request, architecture)
        return measured
    folder = local(subject.path, "MODEL", "Hugging Face folders are read from this machine: copy it here")
    measured = import_module("stellarbyte_torch.cli").measured(folder, request, architecture)
    return measured
