"""Python source as sections: functions and classes kept whole, the methods of a large class each for itself."""

import ast
import warnings

from stellarbyte.memory.ingest.passages import MOST_WIDTH, Block, Section, lines_of, paragraphs, width

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def python_sections(text: str) -> list[Section]:
    """The module's sections; of text that is no Python of this version, its paragraphs."""
    lines = lines_of(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [Section(paragraphs(enumerate(lines, 1)))]
    return _sections(tree.body, lines, 1, len(lines), "")


def _sections(body: list[ast.stmt], lines: list[str], first: int, last: int, heading: str) -> list[Section]:
    """The sections of lines `first` to `last`, which hold these statements."""
    sections: list[Section] = []
    blocks: list[Block] = []

    def end() -> None:
        if blocks:
            sections.append(Section(tuple(blocks), heading))
        blocks.clear()

    at = first
    for node in body:
        if not isinstance(node, _Definition):
            continue
        begin, stop = _extent(node, lines, at)
        blocks += paragraphs((number, lines[number - 1]) for number in range(at, begin))
        whole = Block("\n".join(line.rstrip() for line in lines[begin - 1 : stop]), begin, stop)
        if isinstance(node, ast.ClassDef) and width(whole.text) > MOST_WIDTH:
            end()
            sections += _sections(node.body, lines, begin, stop, f"{heading} › {node.name}" if heading else node.name)
        elif width(whole.text) > MOST_WIDTH:
            end()
            sections.append(Section((whole,), f"{heading} › {node.name}" if heading else node.name))
        else:
            blocks.append(whole)
        at = stop + 1
    blocks += paragraphs((number, lines[number - 1]) for number in range(at, last + 1))
    end()
    return sections


def _extent(node: _Definition, lines: list[str], least: int) -> tuple[int, int]:
    """The first and the last line of a definition, with its decorators and the comments right above it."""
    begin = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    while begin > least and lines[begin - 2].lstrip().startswith("#"):
        begin -= 1
    assert node.end_lineno is not None
    # Two definitions on a line, as after a semicolon, belong to the first one.
    return max(begin, least), max(node.end_lineno, least)
