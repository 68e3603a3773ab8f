"""Tells which Python runs, and where StellarByte itself comes from."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stellarbyte
from stellarbyte.environment.children import run
from stellarbyte.environment.versions import PACKAGE, installed

_SECONDS_OF_GIT = 10.0


def python() -> dict[str, Any]:
    """Version, implementation and path of Python, and whether text is UTF-8."""
    return {
        "version": sys.version.split()[0],
        "implementation": sys.implementation.name,
        "executable": sys.executable,
        "file_system_encoding": sys.getfilesystemencoding(),
        "stdout_encoding": getattr(sys.stdout, "encoding", None),
    }


def virtual_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Kind and path of the environment that this Python is of; None for the system's own Python."""
    if sys.prefix != sys.base_prefix:
        return {"kind": "venv", "path": sys.prefix}
    conda = environment.get("CONDA_PREFIX")
    if conda and Path(sys.prefix) == Path(conda):
        return {"kind": "conda", "path": sys.prefix}
    return None


def source(environment: Mapping[str, str]) -> dict[str, Any]:
    """StellarByte's version, its folder, and where that is a git checkout, the commit and whether files differ."""
    folder = package_folder()
    found: dict[str, Any] = {"version": installed(PACKAGE), "path": str(folder)}
    if not (folder.parent / ".git").exists() or shutil.which("git", path=environment.get("PATH")) is None:
        return found
    git = ["git", "-C", str(folder.parent)]
    commit, error = run([*git, "rev-parse", "--short=12", "HEAD"], environment, _SECONDS_OF_GIT)
    if error is not None:
        return found
    changed, _ = run([*git, "status", "--porcelain", "--untracked-files=no"], environment, _SECONDS_OF_GIT)
    return found | {"commit": commit.strip(), "changed": bool(changed.strip())}


def package_folder() -> Path:
    """The folder of the package that runs."""
    return Path(stellarbyte.__file__).resolve().parent


def programs(environment: Mapping[str, str]) -> list[Path]:
    """Each program of this name on PATH, in its order; what two folders link to is there once."""
    found: dict[Path, Path] = {}
    for folder in (environment.get("PATH") or os.defpath).split(os.pathsep):
        program = shutil.which(PACKAGE, path=folder) if folder else None
        if program is not None:
            found.setdefault(Path(program).resolve(), Path(program))
    return list(found.values())
