"""Markdown as sections: what stands under a heading, with code and lists kept whole."""

import re

from stellarbyte.memory.ingest.passages import Block, Section, lines_of, paragraphs

_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def markdown_sections(text: str) -> list[Section]:
    """A section for each heading that text follows; its heading names those above it, too."""
    sections: list[Section] = []
    above: list[tuple[int, str]] = []
    lines: list[tuple[int, str]] = []
    blocks: list[Block] = []
    fence, fenced = "", list[tuple[int, str]]()

    def end_text() -> None:
        blocks.extend(paragraphs(lines))
        lines.clear()

    def end_section() -> None:
        end_text()
        if blocks:
            sections.append(Section(tuple(blocks), " › ".join(title for _, title in above if title)))
        blocks.clear()

    def begin(level: int, title: str) -> None:
        end_section()
        above[:] = [*(one for one in above if one[0] < level), (level, title.strip())]

    def end_fence() -> None:
        blocks.append(Block("\n".join(line for _, line in fenced), fenced[0][0], fenced[-1][0]))
        fenced.clear()

    numbered = list(enumerate(lines_of(text), 1))
    about = _front_matter(text)
    if about:
        blocks.append(about)
    for number, line in numbered[about.last + 1 if about else 0 :]:
        opened = _FENCE.match(line)
        if fence:
            fenced.append((number, line.rstrip()))
            if opened and opened[1].startswith(fence) and not line.strip().strip(fence[0]):
                end_fence()
                fence = ""
        elif opened:
            end_text()
            fence = opened[1]
            fenced.append((number, line.rstrip()))
        elif heading := _HEADING.match(line):
            begin(len(heading[1]), _title(line[heading.end() :].strip()))
        elif (underline := _UNDERLINE.fullmatch(line)) and len(lines) == 1 and lines[0][1].strip():
            title = lines.pop()[1]
            begin(1 if underline[1][0] == "=" else 2, title)
        else:
            if line.strip() and not _RULE.fullmatch(line):  # a rule says nothing
                lines.append((number, line))
            else:
                end_text()
    while fenced and not fenced[-1][1]:
        fenced.pop()
    if fenced:  # never closed: it goes to the end
        end_fence()
    end_section()
    return sections


def _title(text: str) -> str:
    """A heading's text without the signs that may end it."""
    shorter = text.rstrip("#")
    return shorter.rstrip() if not shorter or shorter[-1] in " \t" else text


def _front_matter(text: str) -> Block | None:
    """The fields of a document that stand between two lines of --- at its beginning."""
    lines = lines_of(text)
    if not lines or lines[0].rstrip() != "---" or "---" not in (line.rstrip() for line in lines[1:]):
        return None
    end = next(number for number, line in enumerate(lines[1:], 2) if line.rstrip() == "---")
    return Block("\n".join(lines[1 : end - 1]), 2, end - 1) if end > 2 else None
