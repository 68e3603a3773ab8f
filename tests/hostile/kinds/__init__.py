"""The cases, kind by kind."""

from hostile.case import Cases
from hostile.kinds import (
    adapters,
    chats,
    command_lines,
    hf_folders,
    outputs,
    quantised_folders,
    record_files,
    runs,
    settings,
    signals,
    weights,
    yaml_files,
)

KINDS = {
    "yaml": yaml_files.cases,
    "settings": settings.cases,
    "hf": hf_folders.cases,
    "weights": weights.cases,
    "runs": runs.cases,
    "records": record_files.cases,
    "adapters": adapters.cases,
    "chat": chats.cases,
    "command lines": command_lines.cases,
    "outputs": outputs.cases,
    "signals": signals.cases,
    "quantised": quantised_folders.cases,
}


def all_cases() -> Cases:
    """Every case, in the order of the kinds."""
    for cases in KINDS.values():
        yield from cases()
