"""Gathers everything that a report of a bug should say of an installation and its machine."""

import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from stellarbyte.environment import accelerators, caches
from stellarbyte.environment.installation import programs, python, source, virtual_environment
from stellarbyte.environment.machine import disks, machine
from stellarbyte.environment.variables import relevant
from stellarbyte.environment.versions import versions


def describe(environment: Mapping[str, str]) -> dict[str, Any]:
    """The environment, ready for JSON. Paths below the user's home begin with ~, and secrets are not in it."""
    here = caches.caches(environment)
    found = {
        "stellarbyte": source(environment),
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": python(),
        "virtual_environment": virtual_environment(environment),
        "programs": list(map(str, programs(environment))),
        "libraries": versions(),
        "machine": machine(),
        "disks": disks(folders_of_interest(here)),
        "caches": caches.told(here),
        "accelerators": accelerators.told(accelerators.accelerators(environment)),
        "variables": relevant(environment),
    }
    return _without_home(found)


def folders_of_interest(found: list[caches.Cache]) -> list[tuple[str, Path]]:
    """The folders whose disks matter: here, the caches', the one for temporary files, and shared memory."""
    folders = [("working folder", Path.cwd()), *((f"cache of {each.name}", each.path) for each in found[:2])]
    folders.append(("temporary files", Path(tempfile.gettempdir())))
    return folders + ([("shared memory", Path("/dev/shm"))] if Path("/dev/shm").is_dir() else [])


def _without_home(value: Any) -> Any:
    """The value with the user's home, which often has their name, as ~ in every text."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return value
    if home in ("/", "."):
        return value

    def shortened(each: Any) -> Any:
        if isinstance(each, str):
            return "~" if each == home else each.replace(f"{home}/", "~/")
        if isinstance(each, dict):
            return {name: shortened(inner) for name, inner in each.items()}
        return [shortened(inner) for inner in each] if isinstance(each, list) else each

    return shortened(value)
