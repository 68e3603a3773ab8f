"""README's Python runs as written, and its tree tells the truth."""

import re
from pathlib import Path

import pytest

from test_torch.exported import export

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", [block for block in PYTHON_BLOCKS if "HF_DIR" not in block])
def test_models_from_a_config(block, capsys):
    exec(block, {})  # the README's own words
    shape = capsys.readouterr().out
    assert "512" in shape
    assert "32000" in shape


def test_an_exported_folder(tmp_path, capsys):
    exported_folder = export(tmp_path / "hf", max_position_embeddings=128)
    (block,) = [block for block in PYTHON_BLOCKS if "HF_DIR" in block]
    exec(block.replace("runs/quickstart/hf", str(exported_folder)), {})
    assert "def main(" in capsys.readouterr().out


def test_commands_exist():
    from convert.cli import _parser as convert_parser
    from stellarbyte_jax.cli import _parser as jax_parser
    from stellarbyte_torch.cli import _parser as torch_parser

    helps = {
        "stellarbyte": jax_parser().format_help(),
        "stellarbyte-convert": convert_parser().format_help(),
        "stellarbyte-torch": torch_parser().format_help(),
    }
    commands = re.findall(r"`(stellarbyte(?:-\w+)?) ([\w-]+) ", README)
    assert len(commands) >= 8
    for program, command in commands:
        assert command in helps[program], (program, command)


def test_the_tree_names_every_module_where_it_is() -> None:
    (tree,) = re.findall(r"## The house\n\n(.*?)\n\n", README, re.DOTALL)
    named: set[str] = set()
    rooms: list[str] = []
    for line in tree.splitlines():
        words = line[4:].lstrip()
        depth = (len(line) - 4 - len(words)) // 2
        if depth > 4:  # a sentence that goes on
            continue
        (names,) = re.findall(r"^\w+/?(?:, \w+)*", words)
        if names.endswith("/"):
            rooms[depth:] = [names[:-1]]
        else:
            named |= {"/".join([*rooms[:depth], name]) + ".py" for name in names.split(", ")}
    packages = ("stellarbyte", "stellarbyte_jax", "stellarbyte_torch", "convert")
    there = {str(path.relative_to(ROOT)) for package in packages for path in (ROOT / package).rglob("*.py")}
    assert named == {path for path in there if not path.endswith("__init__.py")}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert f"\n{target}:" in makefile, target
