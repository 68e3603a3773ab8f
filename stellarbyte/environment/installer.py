"""Words a command of pip so that it works for the Python that runs, whatever installs into it."""

import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stellarbyte.environment.finding import Finding
from stellarbyte.environment.installation import package_folder
from stellarbyte.environment.versions import PACKAGE, installed

_EXTRA = re.compile(rf"'{PACKAGE}\[(\w+)\]'")


def for_this_python(finding: Finding, environment: Mapping[str, str]) -> Finding:
    """The finding, with a `pip …` that mends it worded for this Python.

    That is pip itself where the shell's is this Python's, and otherwise this Python's pip, or uv where there is no
    pip. Where the package runs from a checkout, an extra is installed from there.
    """
    program, _, words = finding.mend.partition(" ")
    if program != "pip":
        return finding
    checkout = package_folder().parent
    if (checkout / "pyproject.toml").is_file():
        words = _EXTRA.sub(lambda found: f"-e {shlex.quote(f'{checkout}[{found[1]}]')}", words)
    return replace(finding, mend=_installer(environment, words))


def _installer(environment: Mapping[str, str], words: str) -> str:
    python, path = shlex.quote(sys.executable), environment.get("PATH")
    if installed("pip") is not None:
        there = shutil.which("pip", path=path)
        ours = there is not None and Path(there).parent.resolve() == Path(sysconfig.get_path("scripts")).resolve()
        return f"{'pip' if ours else f'{python} -m pip'} {words}"
    if shutil.which("uv", path=path) is not None:
        command, _, rest = words.partition(" ")
        return f"uv pip {command} --python {python} {rest}"
    return f"{python} -m ensurepip && {python} -m pip {words}"
