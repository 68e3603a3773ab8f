"""README's Python runs as written, its tree tells the truth, and README and docs name only what there is."""

import argparse
import functools
import re
from pathlib import Path

import pytest

from stellarbyte.door import CommandParser, build_parser
from test_torch.exported import export

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Options of the config's own fields, of sbatch and of xpk.
OTHER_OPTIONS = {"--output_dir", "--model", "--init_from", "--seed", "--signal", "--num-slices"}
PARSER = build_parser()
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize("block", [block for block in PYTHON_BLOCKS if "HF_DIR" not in block])
def test_models_from_a_config(block, capsys):
    """The README's own words, for a smaller model."""
    smaller = {"32000": "320", "768": "96", "3072": "384"}
    assert all(number in block for number in smaller)
    exec(functools.reduce(lambda words, number: words.replace(number, smaller[number]), smaller, block), {})
    shape = capsys.readouterr().out
    assert "512, 320" in shape


@pytest.mark.parametrize("shown", ["def main(", "['My dog is called Rex.']"])
def test_an_exported_folder(shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exported_folder = export(tmp_path / "hf", max_position_embeddings=1024, position_embedding="rope")
    (block,) = [block for block in PYTHON_BLOCKS if "HF_DIR" in block and ("MemoryModel" in block) is ("dog" in shown)]
    exec(block.replace("runs/quickstart/hf", str(exported_folder)).replace("max_length=100", "max_length=20"), {})
    assert shown in capsys.readouterr().out


def test_the_readme_names_many_commands():
    assert len(_commands(README)) >= 15


@every_page
def test_commands_exist(page: Path) -> None:
    for program, *words in _commands(PAGES[page]):
        parser = PARSER
        for word in words:
            choices = _choices(parser)
            if not choices:  # an operand
                break
            assert word in choices, f"{program} {' '.join(words)}"
            parser = choices[word]


@every_page
def test_options_exist(page: Path) -> None:
    """A page's `--option` is one of ours, unless it is XLA's."""
    known = _options(PARSER)
    for option in re.findall(r"`(--(?!xla)[\w-]+)[ =`]", PAGES[page]):
        assert option in known | OTHER_OPTIONS, option


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/([\w.-]+)\)", README))
    assert linked == {page.name for page in PAGES if page.parent != ROOT}


@every_page
def test_tables_that_are_printed_exist(page: Path) -> None:
    for module in re.findall(r"python -m (tests\.\w+)", PAGES[page]):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@every_page
def test_files_in_backticks_exist(page: Path) -> None:
    for path in re.findall(r"`((?:configs|tests|convert|stellarbyte\w*)/[\w./]+)`", PAGES[page]):
        assert (ROOT / path).exists(), path


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


@every_page
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^    )make ([a-z-]+)", PAGES[page], re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def _commands(text: str) -> list[list[str]]:
    """Each `stellarbyte COMMAND WORD …` in code, as far as its words are in lower case."""
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^(?:    .*|\S.*)$", "\n".join(_blocks(text)), re.MULTILINE)
    found = (re.search(r"(?<![\w/.-])(?<!from )(stellarbyte)((?: [a-z][a-z-]*)+)", piece) for piece in code)
    return [[match[1], *match[2].split()] for match in found if match]


def _blocks(text: str) -> list[str]:
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return [*fenced, *re.findall(r"^    .*$", text, re.MULTILINE)]


def _choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    if isinstance(parser, CommandParser):
        parser.fill()
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next((action.choices for action in actions), {})


def _options(parser: argparse.ArgumentParser) -> set[str]:
    inner = (_options(choice) for choice in _choices(parser).values())
    return {option for action in parser._actions for option in action.option_strings}.union(*inner)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
