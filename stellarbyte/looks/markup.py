"""Builds HTML in which every text is escaped unless it is HTML already."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_UNSOUND = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_EMPTY: Final = frozenset({"br", "col", "hr", "img", "input", "link", "meta"})


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Iterable["Content"] | None


def html(*contents: Content) -> Html:
    """Contents one after the other: Html as it is, other text escaped, None as nothing, and all of a list."""
    parts = []
    for content in contents:
        if isinstance(content, Html):
            parts.append(str(content))
        elif isinstance(content, str):
            parts.append(escape(sound(content)))
        elif content is not None:
            parts.append(html(*content))
    return Html("".join(parts))


def tag(name: str, /, *contents: Content, **attributes: str | int | None) -> Html:
    """An element: attributes of the value None are left out, `class_` is class, and other `_` become `-`."""
    words = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    inside = "".join(f' {key}="{escape(sound(str(value)))}"' for key, value in words.items())
    return Html(f"<{name}{inside}>") if name in _EMPTY else Html(f"<{name}{inside}>{html(*contents)}</{name}>")


def table(
    caption: str, head: Sequence[Content], rows: Iterable[Sequence[Content]], foot: Sequence[Content] | None = None
) -> Html:
    """A table that scrolls by itself where it is too wide; each row's first cell is its heading. head: may be empty."""

    def row(cells: Sequence[Content], total: bool = False) -> Html:
        first, *others = cells
        name = tag("th", first, scope="row")
        return tag("tr", name, [tag("td", cell) for cell in others], class_="total" if total else None)

    lines = [row(cells) for cells in rows]
    if foot is not None:
        lines.append(row(foot, total=True))
    inside = (
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head])) if head else None,
        tag("tbody", [(line, Html("\n")) for line in lines]),
    )
    # A box that scrolls must be reachable without a mouse.
    return tag("div", tag("table", *inside), class_="table", role="region", aria_label=caption, tabindex=0)


def sound(text: str) -> str:
    """The text without what HTML cannot hold: control characters and halves of surrogate pairs become U+FFFD."""
    return _UNSOUND.sub("\ufffd", text)
