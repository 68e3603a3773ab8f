"""The command that mends an installation works for the Python that runs."""

import sys
from pathlib import Path

import pytest

from stellarbyte.environment import installer
from stellarbyte.environment.finding import Finding
from stellarbyte.environment.installer import for_this_python

MEND = "pip install 'numpy>=2'"


@pytest.mark.parametrize(
    ("has_pip", "programs", "mend"),
    [
        (True, ["own/pip"], "pip install 'numpy>=2'"),
        (True, ["other/pip", "own/pip"], "PYTHON -m pip install 'numpy>=2'"),
        (True, ["other/uv"], "PYTHON -m pip install 'numpy>=2'"),
        (False, ["other/pip", "other/uv"], "uv pip install --python PYTHON 'numpy>=2'"),
        (False, ["other/pip"], "PYTHON -m ensurepip && PYTHON -m pip install 'numpy>=2'"),
    ],
)
def test_who_installs(
    has_pip: bool, programs: list[str], mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in programs:
        (tmp_path / program).parent.mkdir(exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "own"))
    monkeypatch.setattr(installer, "installed", lambda _: "25" if has_pip else None)
    environment = {"PATH": ":".join(dict.fromkeys(str((tmp_path / program).parent) for program in programs))}
    found = for_this_python(Finding("x", "wrong", "words", MEND), environment)
    assert found == Finding("x", "wrong", "words", mend.replace("PYTHON", sys.executable))


def test_an_extra_is_installed_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer, "package_folder", lambda: tmp_path / "stellarbyte")
    monkeypatch.setattr(installer, "_installer", lambda _, words: f"pip {words}")
    finding = Finding("devices", "wrong", "words", "pip install 'stellarbyte[cuda]'")
    assert for_this_python(finding, {}).mend == "pip install 'stellarbyte[cuda]'"
    (tmp_path / "pyproject.toml").touch()
    assert for_this_python(finding, {}).mend == f"pip install -e '{tmp_path}[cuda]'"


def test_other_commands_stay() -> None:
    finding = Finding("disk", "wrong", "words", "du -xh . | sort -h")
    assert for_this_python(finding, {}) is finding
