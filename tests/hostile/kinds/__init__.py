"""The cases, kind by kind."""

from hostile.case import Cases
from hostile.kinds import hf_folders, record_files, runs, settings, weights, yaml_files

KINDS = {
    "yaml": yaml_files.cases,
    "settings": settings.cases,
    "hf": hf_folders.cases,
    "weights": weights.cases,
    "runs": runs.cases,
    "records": record_files.cases,
}


def all_cases() -> Cases:
    """Every case, in the order of the kinds."""
    for cases in KINDS.values():
        yield from cases()
