"""A file is a page or two, says in one sentence what it is for, and the ways out of the style are shut."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("stellarbyte", "stellarbyte_jax", "stellarbyte_torch", "convert")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # Exports carry these two files and no third.
    limit = {"modeling_stellarbyte.py": 800, "configuration_stellarbyte.py": 485}.get(path.name, 300)
    assert len(text.splitlines()) <= limit, f"longer than {limit} lines: split it by what its parts are for"

    tree = ast.parse(text)
    docstring = ast.get_docstring(tree)
    assert docstring or not tree.body, "has no docstring that says what the file is for"
    assert path.name != "utils.py", "name it after what it does"

    if path.name != "cli.py":
        reads = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_environment(node)]
        assert not reads, f"reads the environment on lines {reads}: only a cli may"


def is_environment(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "os" and node.attr in ("environ", "getenv")
