"""Measures what a user asks for of a model, by the wing that it belongs to."""

from stellarbyte.errors import UserError
from stellarbyte.model_kind import Kind, wing_of
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
    if request.dtype == "float16" and subject.kind == "run":
        raise UserError(f"--dtype float16 is for Hugging Face folders, and {subject.path} is a run: take bfloat16")
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
    kind: Kind = "run" if subject.kind == "run" else "model"
    path = subject.path
    if kind == "model":
        path = local(path, "MODEL", "Hugging Face folders are read from this machine: copy it here")
    measured: Measured = wing_of(kind).measured(path, request, architecture)
    return measured
