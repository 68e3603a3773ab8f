"""HTML as sections: what a reader of the page sees, under its headings."""

import re
from html.parser import HTMLParser

from stellarbyte.memory.ingest.passages import Block, Section

_HEADINGS = {"title": 0, **{f"h{level}": level for level in range(1, 7)}}
_BLOCKS = {
    *("address", "article", "blockquote", "body", "caption", "center", "dd", "details", "div", "dl", "dt", "fieldset"),
    *("figcaption", "figure", "hr", "html", "li", "main", "ol", "p", "pre", "section", "summary", "table", "tbody"),
    *("thead", "tr", "ul", *_HEADINGS),
}
# What no reader reads on a page, or what each page of a site has.
_SKIPPED = {
    *("aside", "button", "canvas", "dialog", "footer", "form", "iframe", "nav", "noscript", "object", "script"),
    *("select", "style", "svg", "template"),
}
_VOID = {
    *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"),
}
_HIDING = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0(?![.\d]))", re.I)
_MOST_DEPTH = 500  # what is nested deeper is read as if it were not


def html_sections(text: str) -> list[Section]:
    """A section for each heading that text follows; elements that a browser would not show are left out."""
    page = _Page()
    # Python's parser would try each tag that never ends again from each sign behind it.
    end = text.rfind(">") + 1
    page.feed(text[:end] + text[end:].replace("<", " "))
    page.close()
    page.end_section()
    return page.sections


class _Page(HTMLParser):
    """Collects blocks of text.

    `open` has the elements around the place that is read, each with whether it hides what is in it.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[Section] = []
        self._open: list[tuple[str, bool]] = []
        self._hidden = 0
        self._preformatted = 0
        self._above: list[tuple[int, str]] = []
        self._heading: int | None = None
        self._blocks: list[Block] = []
        self._text: list[str] = []
        self._first = self._last = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS or tag in ("td", "th", "br"):
            self._gap(tag)
        if tag in _VOID or len(self._open) >= _MOST_DEPTH:
            return
        given = dict(attrs)
        hides = tag in _SKIPPED or "hidden" in given or given.get("aria-hidden") == "true"
        hides = hides or _HIDING.search(given.get("style") or "") is not None
        self._open.append((tag, hides))
        self._hidden += hides
        self._preformatted += tag == "pre"
        if tag in _HEADINGS and not self._hidden:
            if self._heading is not None:  # which was never closed
                self._begin_section()
            self._heading = _HEADINGS[tag]

    def handle_endtag(self, tag: str) -> None:
        if not any(name == tag for name, _ in self._open):
            return
        if tag in _HEADINGS and self._heading is not None and not self._hidden:
            self._begin_section()
        elif tag in _BLOCKS:
            self._gap(tag)
        while self._open:
            name, hid = self._open.pop()
            self._hidden -= hid
            self._preformatted -= name == "pre"
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if self._hidden or not data:
            return
        if data.strip():
            line = self.getpos()[0]
            if not self._text:
                self._first = line + data[: len(data) - len(data.lstrip())].count("\n")
            self._last = line + data.rstrip().count("\n")
        if not self._preformatted:
            data = re.sub(r"\s+", " ", data)
        if self._text or data.strip():
            self._text.append(data)

    def end_section(self) -> None:
        """Ends the block and the section that are being read."""
        self._end_block()
        if self._blocks:
            heading = " › ".join(title for _, title in self._above if title)
            self.sections.append(Section(tuple(self._blocks), heading))
        self._blocks = []

    def _begin_section(self) -> None:
        level, self._heading = self._heading, None
        assert level is not None
        title = " ".join("".join(self._text).split())
        self._text = []
        self.end_section()
        self._above = [*(one for one in self._above if one[0] < level), (level, title)]

    def _gap(self, tag: str) -> None:
        """Ends a block, or in a table's row and at a line's end only puts the texts apart."""
        if self._hidden:
            return
        if self._heading is not None:
            self._text.append(" ")
            return
        if tag in ("td", "th"):
            self._text += [" | "] if self._text else []
        elif tag == "br":
            self._text += ["\n"] if self._text else []
        elif tag in ("li", "tr", "dt", "dd") and self._text:
            self._text.append("\n")
        elif tag not in ("li", "tr", "dt", "dd", "thead", "tbody"):
            self._end_block()

    def _end_block(self) -> None:
        lines = "".join(self._text).split("\n")
        if not self._preformatted:
            lines = [line.strip().removeprefix("| ") for line in lines]
        text = "\n".join(line.rstrip() for line in lines if line.strip())
        if text:
            self._blocks.append(Block(text, self._first, self._last))
        self._text = []
