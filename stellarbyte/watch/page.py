"""The page's HTML and style; what it shows comes later, by watch.js."""

import json
from importlib.resources import files

from stellarbyte.looks.document import STYLE
from stellarbyte.looks.markup import Html, html, tag
from stellarbyte.watch.words import WORDS, Lang

# The files that the page loads: name -> type.
SCRIPTS = {"uPlot.iife.min.js": "text/javascript", "charts.js": "text/javascript", "watch.js": "text/javascript"}


def asset(name: str) -> str:
    """The content of a file of the folder static."""
    return (files("stellarbyte.watch") / "static" / name).read_text(encoding="utf-8")


def style() -> str:
    """The style of all of StellarByte's pages, the charts', and this page's own."""
    return f"{STYLE}\n{asset('uPlot.min.css')}\n{asset('watch.css')}"


def page(lang: Lang) -> str:
    """The page, before it has asked for any run."""
    words = WORDS[lang]
    # A script of another type is data; "<" could end it.
    data = Html(json.dumps(words, ensure_ascii=False).replace("<", "\\u003c"))
    head = html(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", "StellarByte"),
        tag("link", rel="stylesheet", href="watch.css"),
        tag("link", rel="icon", href="data:,"),
        tag("script", data, type="application/json", id="words"),
        *(tag("script", src=name, defer="") for name in SCRIPTS),
    )
    options = [tag("option", words["step"], value="steps"), tag("option", words["tokens"], value="tokens")]
    controls = tag(
        "form",
        tag("label", words["axis"], tag("select", options, id="axis")),
        tag("label", words["smoothing"], tag("input", type="range", id="smoothing", min=0, max=100, value=20)),
        tag("label", tag("input", type="checkbox", id="log-loss"), words["log_loss"]),
        id="controls",
    )
    body = html(
        tag("p", words["lost"], id="lost", role="alert", hidden=""),
        tag("header", tag("h1", "StellarByte", id="title"), tag("p", id="condition", role="status")),
        tag(
            "main",
            tag("noscript", tag("p", words["script"])),
            tag("dl", id="tiles", class_="tiles"),
            tag("div", tag("div", id="bar"), id="track", role="progressbar", aria_label=words["step"], hidden=""),
            tag(
                "section", tag("h2", words["runs"]), tag("div", id="runs", class_="table"), id="runs-section", hidden=""
            ),
            tag(
                "section",
                tag("h2", words["curves"]),
                controls,
                tag("div", id="charts", class_="charts wide"),
                tag("p", words["hint"], class_="note", id="hint", hidden=""),
                tag("p", words["no_figures"], class_="note", id="no-figures"),
            ),
            tag(
                "section",
                tag("h2", words["checkpoints"]),
                tag("div", id="checkpoints", class_="table"),
                tag("p", id="report"),
            ),
            tag("section", tag("h2", words["samples"]), tag("div", id="samples"), id="samples-section", hidden=""),
            tag("section", tag("h2", words["log"]), tag("pre", id="log", tabindex=0)),
        ),
        tag("footer", tag("p", words["footer"])),
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang=lang)}\n"


def message(lang: Lang, words: str, *, again: bool) -> str:
    """A page of one sentence; again: whether it asks anew every few seconds."""
    head = html(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="refresh", content="3") if again else None,
        tag("title", "StellarByte"),
        tag("link", rel="stylesheet", href="/watch.css"),
    )
    body = tag("main", tag("p", words), tag("p", tag("a", WORDS[lang]["back"], href="/")))
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang=lang)}\n"
