"""HTML that escapes every text, and the frame of a page."""

import re
from html.parser import HTMLParser

import pytest

from stellarbyte.looks import colours
from stellarbyte.looks.document import document, figure, legend
from stellarbyte.looks.markup import Html, html, table, tag

HOSTILE = "</td><script>alert('x')</script>\"&\x00\ud800\x1b[31m"


def test_texts_are_escaped_and_html_is_not() -> None:
    assert html("a<b", None, ["&", Html("<hr>")]) == "a&lt;b&amp;<hr>"
    assert (
        tag("a", "x", href='"', class_="y", aria_label=None, data_n=1) == '<a href="&quot;" class="y" data-n="1">x</a>'
    )
    assert tag("br") == "<br>"


@pytest.mark.parametrize("text", [HOSTILE, "\x9b31m", "]]>", "{x}", "%s"])
def test_a_hostile_text_stays_text(text: str) -> None:
    page = document(text, html(table(text, [text], [[text, text]], [text, text]), figure(text, Html(""), text)))
    page += legend([(text, colours.SERIES[0])])
    page.encode("utf-8")
    assert "<script" not in page and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    tags: list[str] = []

    reader = HTMLParser()
    reader.handle_starttag = lambda tag, _: tags.append(tag)  # type: ignore[method-assign]
    reader.feed(page)
    assert tags.count("td") == 2 and "img" not in tags


def test_each_colour_has_a_variable_in_light_and_in_dark() -> None:
    css = colours.variables()
    light, dark = css.split("@media screen")
    for colour in (*colours.SERIES, colours.INK, colours.GROUND):
        name = colours.variable(colour)[4:-1]
        assert f"{name}:{colour};" in light and f"{name}:#" in dark
    drawn = f'<path style="fill: {colours.INK.upper()}; stroke: {colours.series(12)}"/>'
    assert colours.with_variables(drawn) == '<path style="fill: var(--ink); stroke: var(--series-2)"/>'
    assert len(set(colours.SERIES)) == len(colours.SERIES)
