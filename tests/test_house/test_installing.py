"""make takes the newest Python that runs, and constraints.txt has one tested set of releases for each."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def pins(python: str) -> dict[str, str]:
    """Package to the version that pip installs on this Python."""
    here = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    names = [canonicalize_name(pin.name) for pin in here]
    assert len(set(names)) == len(names), "a package has two pins"
    return {name: str(pin.specifier).removeprefix("==") for name, pin in zip(names, here, strict=True)}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_python_has_one_set(python: str) -> None:
    chosen = pins(python)
    assert {canonicalize_name(pin.name) for pin in PINS} == set(chosen), "a package is pinned for other Pythons alone"
    assert chosen["jax"] == chosen["jaxlib"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    extras = ("jax", "torch", "quantization", "cloud", "deepspeed", "dev")
    wanted = [*project["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]
    for requirement in map(Requirement, wanted):
        if requirement.name != "stellarbyte":
            assert chosen[canonicalize_name(requirement.name)] in requirement.specifier, requirement


@pytest.mark.parametrize(
    ("there", "told", "chosen"),
    [
        ({"python3.13": 0, "python3.12": 0, "python3.11": 0}, "", "python3.13"),
        (
            {"python3.13": 127, "python3.12": 0, "python3.11": 0},
            "",
            "python3.12",
        ),  # as a shim of pyenv's that is not active
        ({"python3.13": 127, "python3.12": 127, "python3.11": 127}, "", "python3"),
        ({"python3.13": 0}, "python3.11", "python3.11"),
    ],
)
def test_the_newest_python_that_runs(there: dict[str, int], told: str, chosen: str, tmp_path: Path) -> None:
    for name, code in there.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("sh", "make"):
        (tmp_path / name).symlink_to(
            next(path for path in (Path("/bin") / name, Path("/usr/bin") / name) if path.exists())
        )
    make = [str(tmp_path / "make"), "--silent", f"--file={ROOT / 'Makefile'}"]
    command = [*make, "--eval", "show: ; $(info $(PYTHON))", "show"]
    environment = {"PATH": str(tmp_path)} | ({"PYTHON": told} if told else {})
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == chosen, done.stderr
