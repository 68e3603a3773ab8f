"""Checks that what is installed can be imported; a library that crashes or hangs takes only a child with it."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec

from stellarbyte.environment.children import run
from stellarbyte.environment.finding import Finding, well
from stellarbyte.environment.versions import DEVELOPMENT, installed, requirements

CHECK = "imports"
# The longest that one library may take.
_SECONDS = 120.0

# The modules of distributions whose names differ from theirs.
_MODULES = {
    "pyyaml": "yaml",
    "orbax-checkpoint": "orbax.checkpoint",
    "array-api-compat": "array_api_compat",
    "compressed-tensors": "compressed_tensors",
    "faiss-cpu": "faiss",
    "sentence-transformers": "sentence_transformers",
    "tensorboardx": "tensorboardX",
}
_CHILD = "import sys; from stellarbyte.environment.checks.imports import try_imports; try_imports(sys.argv[1:])"


def check_imports(
    environment: Mapping[str, str], update: Callable[[int, int], None] = lambda *_: None
) -> list[Finding]:
    """Which libraries cannot be imported, each with its own error.

    They share a child, as they do in a command that needs all of them; after one that crashes, another child goes on.
    update: called with the number of libraries that were tried, and of all.
    """
    try:
        wanted = requirements()
    except ModuleNotFoundError:  # check_libraries has told it
        return []
    listed = (each.name for extra, of_extra in wanted.items() if extra != DEVELOPMENT for each in of_extra)
    names = [name for name in dict.fromkeys(listed) if installed(name) is not None]
    errors = tried([module_of(name) for name in names], [sys.executable, "-c", _CHILD], environment, update)
    findings = []
    for name in names:
        error = errors.get(module_of(name))
        if error is not None:
            mend = f"pip install --force-reinstall --no-deps {name}=={installed(name)}"
            findings.append(Finding(CHECK, "wrong", f"{name} cannot be imported: {error}", mend))
    return findings or well(CHECK, f"{len(names)} libraries can be imported")


def module_of(distribution: str) -> str:
    """The name by which Python imports a distribution."""
    return _MODULES.get(distribution.lower(), distribution.replace("-", "_"))


def tried(
    modules: Sequence[str],
    child: Sequence[str],
    environment: Mapping[str, str],
    update: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, str]:
    """Module -> why it cannot be imported, for those that cannot."""
    errors: dict[str, str] = {}
    rest = list(modules)

    def heard(line: str) -> None:
        if line.startswith('{"module":'):
            answer = json.loads(line)
            rest.remove(answer["module"])
            if answer["error"] is not None:
                errors[answer["module"]] = answer["error"]
            update(len(modules) - len(rest), len(modules))

    while rest:
        _, failure = run([*child, *rest], environment, _SECONDS, heard)
        if rest:
            errors[rest.pop(0)] = failure or "it ended Python"
    return errors


def try_imports(modules: Sequence[str]) -> None:
    """Imports the modules in turn, and prints of each whether that went well. It runs in a child."""
    for module in modules:
        error = None
        try:
            if find_spec(module.partition(".")[0]) is None:
                raise ModuleNotFoundError(f"No module named {module!r}")
            import_module(module)
        except Exception as caught:  # noqa: BLE001 - whatever it is, it is told
            first = next(iter(str(caught).strip().splitlines()), "")
            error = f"{type(caught).__name__}: {first[:300]}"
        print(json.dumps({"module": module, "error": error}), flush=True)
