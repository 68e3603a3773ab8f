"""What every section is made from: the reports, the words, and whether charts can be drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from stellarbyte.looks import chart
from stellarbyte.looks.document import figure
from stellarbyte.looks.markup import Html, html, tag
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words


class Section(NamedTuple):
    """A part of the page: its id, which links lead to, its title, and what it holds."""

    name: str
    title: str
    body: Html


Charts = Literal["all", "of several", "none"]


@dataclass(frozen=True)
class View:
    """The reports of a page, and how it is written.

    Attributes:
        reports: the models, in the order in which the user named them.
        words: the page's language.
        charts: which charts are drawn: all, only those of several models together, or none without matplotlib.
    """

    reports: tuple[Report, ...]
    words: Words
    charts: Charts

    def pictures(self, charts: Sequence[chart.Chart], of: Report | None = None, wide: bool = False) -> Html | None:
        """The charts beside each other; None where there are none, or they cannot be drawn."""
        if not charts or self.charts == "none" or (of is not None and self.charts != "all"):
            return None
        # Ids within an SVG come from the chart's name, and no two of a page may be the same.
        place = "" if of is None else f"-{self.reports.index(of)}"
        drawn = [figure(each.title, Html(chart.svg(replace(each, name=each.name + place)))) for each in charts]
        return tag("div", drawn, class_="charts wide" if wide else "charts")

    def of_each(self, make: Callable[[Report], Html | None]) -> Html | None:
        """What `make` makes of each report, under the model's name where there are several; None if nothing."""
        made = [(report.name, found) for report in self.reports if (found := make(report))]
        if len(self.reports) == 1:
            return made[0][1] if made else None
        return html([(tag("h3", name), found) for name, found in made]) if made else None

    def note(self, key: str, **values: str | int) -> Html:
        """A sentence in small letters."""
        return tag("p", self.words(key, **values), class_="note")

    def remark(self, sentence: str | None) -> Html | None:
        """A sentence of the report in small letters."""
        return tag("p", self.words.remark(sentence), class_="note") if sentence else None
