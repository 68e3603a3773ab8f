"""Checks versions: StellarByte's own bounds, those of its libraries among each other, and Python's."""

import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stellarbyte.environment.finding import Finding, well
from stellarbyte.environment.installation import package_folder
from stellarbyte.environment.versions import DEVELOPMENT, PACKAGE, by_extra, installed, requirements

if TYPE_CHECKING:
    from packaging.requirements import Requirement

CHECK = "libraries"

# The extras that nothing of works unless all of their libraries are there; of others each library is of its own use.
_WHOLE = ("", "jax", "torch")


def check_libraries() -> list[Finding]:
    """What is missing, too old or too new, and which extras are there."""
    try:
        wanted = requirements()
    except ModuleNotFoundError as error:
        return [Finding(CHECK, "wrong", f"{error.name} is not installed", f"pip install {error.name}")]
    if not wanted:
        words = f"{PACKAGE} is not installed: it runs from its sources, and its libraries cannot be checked"
        return [Finding(CHECK, "wrong", words, f"pip install -e {shlex.quote(str(package_folder().parent))}")]
    present = [extra for extra, listed in wanted.items() if _is_there(extra, listed)]
    found = [*_stale(wanted), *_direct(wanted, present), *_among_each_other(wanted)]
    there = ", ".join(extra for extra in present if extra) or "none"
    return found or well(CHECK, f"every version is within its bounds; extras: {there}")


def _is_there(extra: str, listed: Sequence["Requirement"]) -> bool:
    """Whether a user has installed an extra, as far as its first library tells; one with another's extra has none."""
    if not extra:
        return True
    if extra == DEVELOPMENT or not listed or listed[0].extras:
        return False
    return installed(listed[0].name) is not None


def _direct(wanted: Mapping[str, Sequence["Requirement"]], present: Sequence[str]) -> Iterator[Finding]:
    told = set()
    for extra, listed in wanted.items():
        for requirement in listed:
            version = installed(requirement.name)
            if extra == DEVELOPMENT or str(requirement) in told:
                continue
            told.add(str(requirement))
            named = f"{PACKAGE}[{extra}]" if extra else "StellarByte"
            if version is None and extra in present and extra in _WHOLE:
                words = f"{requirement.name} is missing, which {named} needs"
                yield Finding(CHECK, "wrong", words, f"pip install {shlex.quote(str(_bare(requirement)))}")
            elif version is not None and not _fits(requirement, version):
                words = f"{requirement.name} {version} is installed, but {named} needs {requirement.specifier}"
                yield Finding(CHECK, "wrong", words, f"pip install {shlex.quote(str(_bare(requirement)))}")


def _among_each_other(wanted: Mapping[str, Sequence["Requirement"]]) -> Iterator[Finding]:
    """As `pip check`, for what StellarByte's libraries need of others, such as jax of jaxlib."""
    todo = [each.name for extra, listed in wanted.items() if extra != DEVELOPMENT for each in listed]
    seen = set()
    while todo:
        name = todo.pop()
        key = name.lower().replace("_", "-")
        if key in seen or installed(name) is None:
            continue
        seen.add(key)
        for requirement in by_extra(metadata.requires(name) or []).get("", ()):
            version = installed(requirement.name)
            todo.append(requirement.name)
            owner = f"{name} {installed(name)}"
            if version is None:
                words = f"{requirement.name} is missing, which {owner} needs"
            elif not _fits(requirement, version):
                words = f"{requirement.name} {version} is installed, but {owner} needs {requirement.specifier}"
            else:
                continue
            yield Finding(CHECK, "wrong", words, f"pip install {shlex.quote(str(_bare(requirement)))}")


def _stale(wanted: Mapping[str, Sequence["Requirement"]]) -> Iterator[Finding]:
    """Whether the sources that run ask for other libraries than their installation did."""
    file = package_folder().parent / "pyproject.toml"
    project = _project(file)
    if project.get("name") != PACKAGE:
        return
    optional = project.get("optional-dependencies", {})
    now = {"": project.get("dependencies", []), **optional}
    if any({str(each) for each in wanted.get(extra, ())} != _ours(extra, lines) for extra, lines in now.items()):
        words = f"{file} has other bounds than the installation knows, so that these checks go by the old ones"
        yield Finding(CHECK, "note", words, f"pip install -e {shlex.quote(str(file.parent))}")


def _ours(extra: str, lines: Sequence[str]) -> set[str]:
    marker = f' ; extra == "{extra}"' if extra else ""
    return {str(each) for each in by_extra(f"{line}{marker}" for line in lines).get(extra, ())}


def _project(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fits(requirement: "Requirement", version: str) -> bool:
    from packaging.version import InvalidVersion

    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:  # a build of one's own
        return True


def _bare(requirement: "Requirement") -> "Requirement":
    from packaging.requirements import Requirement

    bare = Requirement(str(requirement))
    bare.marker = None
    return bare
