"""Makes a report's page: one HTML file that holds everything it shows."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from stellarbyte.files import write_text
from stellarbyte.looks.document import document
from stellarbyte.looks.markup import Html, html, tag
from stellarbyte.report.quantities import Lang
from stellarbyte.report.report import Report
from stellarbyte.report.sections import counted, drawing, head, measured
from stellarbyte.report.sections.view import Charts, Section, View
from stellarbyte.report.words import Words

# In the order of the page. A section that has nothing to tell is left out.
_SECTIONS: tuple[Callable[[View], Section | None], ...] = (
    head.side_by_side,
    head.about,
    drawing.architecture,
    counted.parameters,
    counted.memory,
    counted.work,
    measured.latency,
    measured.weights,
    measured.heads,
    measured.losses,
    measured.curves,
    measured.step,
)

# What a mail takes, and a phone opens at once.
_MOST_BYTES = 1_000_000

_STYLE = """
.path{overflow-wrap:anywhere;margin:0}.remarks{padding-left:1.1rem}
.facts th{text-align:left}.facts td{white-space:normal;text-align:left;vertical-align:top;min-width:10rem;
overflow-wrap:anywhere}
.below{display:block;line-height:1.2;font-size:.78rem}.below:empty{display:none}
.noted{max-width:26rem}
.radar{flex:1 1 24rem}
.beside{display:grid;gap:1rem 2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,23rem),1fr));align-items:start}
.beside>*{min-width:0}
.terms{display:grid;grid-template-columns:minmax(7rem,auto) 1fr;gap:.15rem 1rem;max-width:44rem}.terms dd{margin:0}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--accent)}
.losses{white-space:pre-wrap;overflow-wrap:anywhere;max-width:none;background:var(--panel);
border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem;line-height:1.75;font-size:.95rem}
.losses i,.scale i{font-style:normal;border-radius:.2em;padding:.08em 0;
background:color-mix(in srgb,var(--series-1) calc(var(--l)*11%),transparent);
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.scale{display:flex;flex-wrap:wrap;gap:.3rem}.scale i{padding:.08em .5em}
""" + "".join(f".l{shade}{{--l:{shade}}}" for shade in range(measured.SHADES))


def write_page(path: Path, reports: Sequence[Report], lang: Lang) -> None:
    """Writes the page of the reports into a file; one that is there is replaced.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, page(reports, lang))


def page(reports: Sequence[Report], lang: Lang) -> str:
    """The page's HTML. Without matplotlib it has tables and drawings, and says what brings the charts.

    Of so many models that it would be too large, only the charts that compare them are drawn.
    """
    charts: Charts = "all" if find_spec("matplotlib") is not None else "none"
    text = _page(reports, Words(lang), charts)
    if charts == "all" and len(reports) > 1 and len(text.encode()) > _MOST_BYTES:
        text = _page(reports, Words(lang), "of several")
    return text


def _page(reports: Sequence[Report], words: Words, charts: Charts) -> str:
    view = View(tuple(reports), words, charts)
    sections = [section for make in _SECTIONS if (section := make(view)) is not None]
    body = [_section(section) for section in sections]
    links = [(section.name, section.title) for section in sections]
    title = words("title", models=words("list").join(report.name for report in reports))
    language = {"en": "en", "zh": "zh-CN"}[words.lang]
    return document(title, html(body), language, links, header=head.header(view), style=drawing.STYLE + _STYLE)


def _section(section: Section) -> Html:
    return html(tag("section", tag("h2", section.title), section.body, id=section.name), Html("\n"))
