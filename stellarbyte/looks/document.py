"""A page that holds everything it shows: its head, its style and its frame."""

from collections.abc import Sequence

from stellarbyte.looks import colours
from stellarbyte.looks.markup import Html, html, tag

# What a page may load: nothing. Its own style, and pictures within the page, are allowed.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE = (
    colours.variables()
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth;scroll-padding-top:3.5rem}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","Helvetica Neue",Arial,"PingFang SC","Hiragino Sans GB","Noto Sans CJK SC","Noto Sans SC",
"Microsoft YaHei",sans-serif}
main,header,footer,nav>div{max-width:70rem;margin:0 auto;padding:0 clamp(1rem,4vw,2.5rem)}
header{padding-top:2.25rem}
h1{font-size:clamp(1.5rem,4.5vw,2.1rem);line-height:1.2;letter-spacing:-.01em;margin:0 0 .35rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .75rem;letter-spacing:-.005em}
h3{font-size:1rem;margin:1.75rem 0 .5rem}
p{max-width:44rem;margin:.5rem 0 1rem}
a{color:var(--accent)}
code,.mono{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono","Noto Sans Mono CJK SC",monospace;
font-size:.9em}
.muted,.note{color:var(--muted)}
.note{font-size:.9rem}
section{padding-top:2.75rem}
nav{position:sticky;top:0;z-index:2;background:var(--ground);border-bottom:1px solid var(--line);margin-top:1.5rem}
nav>div{display:flex;gap:1.15rem;overflow-x:auto;scrollbar-width:none}
nav a{flex:none;padding:.65rem 0;color:var(--muted);text-decoration:none;font-size:.92rem;white-space:nowrap}
nav a:hover,nav a:focus-visible{color:var(--accent)}
.tiles{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fit,minmax(clamp(9.4rem,17vw,12rem),1fr));
margin:1.4rem 0 0}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem;min-width:0}
.tile dt{color:var(--muted);font-size:.82rem;line-height:1.35}
.tile dd{margin:.15rem 0 0;font-size:1.18rem;font-weight:600;line-height:1.25;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
.tile small{display:block;font-size:.8rem;font-weight:400;color:var(--muted)}
.table{overflow-x:auto;margin:1rem 0 1.25rem;-webkit-overflow-scrolling:touch}
table{border-collapse:separate;border-spacing:0;font-size:.92rem;font-variant-numeric:tabular-nums;min-width:min(100%,22rem)}
caption{text-align:left;font-weight:600;padding:0 0 .45rem}
caption span{display:inline-block;position:sticky;left:0;max-width:min(44rem,calc(100vw - 2.2rem));white-space:normal}
.tables{display:flex;flex-wrap:wrap;gap:0 3.5rem;align-items:flex-start}.tables>*{min-width:0;max-width:100%}
th,td{padding:.36rem 0 .36rem 1.4rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line);
font-weight:400}
tr>:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--ground)}
thead th{color:var(--muted);font-size:.85rem;vertical-align:bottom;border-bottom-color:var(--muted)}
tr.total>*{font-weight:600;border-bottom:0}
td.best{font-weight:700}
.good{color:var(--good)}.bad{color:var(--bad)}
.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));margin:1rem 0}
.charts.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,28rem),1fr))}
figure{margin:0;min-width:0;background:var(--panel);border:1px solid var(--line);border-radius:.6rem;
padding:.8rem .9rem .6rem}
figure svg{display:block;width:100%;height:auto;overflow:visible}
figcaption{font-weight:600;font-size:.95rem;line-height:1.35;margin:0 0 .5rem}
figcaption small{display:block;font-weight:400;color:var(--muted);font-size:.83rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.5rem 0 0;padding:0;list-style:none;font-size:.88rem}
.legend li{overflow-wrap:anywhere;min-width:0}
.swatch{display:inline-block;width:.75em;height:.75em;border-radius:.18em;margin-right:.45em;vertical-align:-.02em;
background:currentColor;print-color-adjust:exact;-webkit-print-color-adjust:exact}
footer{color:var(--muted);font-size:.85rem;padding-top:3rem;padding-bottom:3rem}
@media (max-width:34rem){body{font-size:15.5px}section{padding-top:2.25rem}th,td{padding-left:1rem}
figure{padding:.7rem .65rem .5rem}}
@media print{@page{margin:14mm}nav{display:none}body{font-size:10.5pt}header{padding-top:0}section{padding-top:1.2rem}
h2,h3,caption{break-after:avoid}figure,.tile,tr,.block{break-inside:avoid}.table{overflow:visible}
.charts{grid-template-columns:repeat(2,1fr)}a{color:inherit;text-decoration:none}}
"""
)


def document(
    title: str,
    body: Html,
    lang: str = "en",
    sections: Sequence[tuple[str, str]] = (),
    header: Html | None = None,
    style: str = "",
) -> str:
    """The page's HTML.

    Args:
        title: the page's heading, and its name in a browser.
        body: what stands below the heading.
        lang: the language of the text, as HTML says it.
        sections: (id, name) of the sections that the bar at the top leads to.
        header: what stands between the heading and the bar.
        style: CSS of this page alone.
    """
    links = [tag("a", name, href=f"#{place}") for place, name in sections]
    bar = tag("nav", tag("div", links), aria_label=title) if links else None
    head = html(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"\n<style>\n{STYLE}{style}</style>\n"),
    )
    top = tag("header", tag("h1", title), header)
    page = tag("html", tag("head", head), Html("\n"), tag("body", top, bar, tag("main", body)), lang=lang)
    return f"<!DOCTYPE html>\n{page}\n"


def swatch(colour: str) -> Html:
    """A little square in a colour of light, which a legend or a table's row begins with."""
    return tag("span", class_="swatch", style=f"color:{colours.variable(colour)}")


def legend(names: Sequence[tuple[str, str]]) -> Html:
    """A list of (name, colour of light)."""
    return tag("ul", [tag("li", swatch(colour), name) for name, colour in names], class_="legend")


def figure(title: str, drawing: Html, note: str | None = None, below: Html | None = None) -> Html:
    """A picture with its title above it, and a note in small letters."""
    return tag("figure", tag("figcaption", title, tag("small", note) if note else None), drawing, below)
