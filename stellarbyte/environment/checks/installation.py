"""Checks which Python runs, and whether it is the one whose StellarByte the user means."""

import shlex
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from stellarbyte.environment.finding import Finding, well
from stellarbyte.environment.installation import package_folder, programs, virtual_environment
from stellarbyte.environment.versions import PACKAGE


def check_python() -> list[Finding]:
    """Whether Python's version is one that StellarByte is made for."""
    check, version = "python", sys.version.split()[0]
    try:
        from packaging.specifiers import SpecifierSet

        needed = metadata.distribution(PACKAGE).metadata.json.get("requires_python")
    except (metadata.PackageNotFoundError, ModuleNotFoundError):
        return well(check, f"Python {version}")
    if needed is not None and not SpecifierSet(str(needed)).contains(version.rstrip("+"), prereleases=True):
        words = f"Python {version} runs, but StellarByte needs {needed}"
        return [Finding(check, "wrong", words, "make PYTHON=python3.12 .venv/.installed")]
    if sys.flags.optimize:
        words = "Python runs with -O or PYTHONOPTIMIZE, which leaves out the checks of our own assumptions"
        return [Finding(check, "note", words, "unset PYTHONOPTIMIZE")]
    return well(check, f"Python {version}")


def check_environment(environment: Mapping[str, str]) -> list[Finding]:
    """Whether Python is of a virtual environment, and the one that the shell has activated."""
    check, found = "environment", virtual_environment(environment)
    active = environment.get("VIRTUAL_ENV")
    if active and Path(active).resolve() != Path(sys.prefix).resolve():
        words = f"{active} is activated, but {sys.executable} runs, whose libraries are others"
        return [Finding(check, "wrong", words, f"{shlex.quote(active)}/bin/python -m stellarbyte doctor")]
    if found is None:
        words = "the system's Python runs: what is installed into it may harm other programs, and pip may refuse to"
        return [Finding(check, "note", words, "python3 -m venv .venv && . .venv/bin/activate")]
    return well(check, f"{found['kind']} {found['path']}")


def check_programs(environment: Mapping[str, str]) -> list[Finding]:
    """Whether the shell's `stellarbyte` is that of this Python."""
    check, found = "program", programs(environment)
    own = Path(sysconfig.get_path("scripts"))
    if not found:
        words = f"no program {PACKAGE} is on PATH; `python -m {PACKAGE}` is the same"
        return [Finding(check, "note", words, f"export PATH={shlex.quote(str(own))}:$PATH")]
    if found[0].parent.resolve() != own.resolve():
        words = f"`{PACKAGE}` is {found[0]} in this shell, which is of another Python than the one that runs"
        return [Finding(check, "wrong", words, f"export PATH={shlex.quote(str(own))}:$PATH")]
    if len(found) > 1:
        others = ", ".join(map(str, found[1:]))
        return [Finding(check, "note", f"`{PACKAGE}` is {found[0]}; others are on PATH behind it: {others}")]
    return well(check, str(found[0]))


def check_source() -> list[Finding]:
    """Whether the package that Python imports is the one that is installed."""
    check, folder = "package", package_folder()
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return []  # check_libraries tells it
    files = distribution.files or []
    listed = next((file for file in files if str(file) == f"{PACKAGE}/__init__.py"), None)
    there = None if listed is None else Path(str(distribution.locate_file(listed)))
    if there is not None and there.exists() and there.resolve().parent != folder:
        words = f"Python imports {folder}, but what is installed is {there.parent}: the folder it starts in wins"
        return [Finding(check, "wrong", words, "cd to another folder, or pip install -e . in that one")]
    return well(check, str(folder))
