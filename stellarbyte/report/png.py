"""Writes every chart of a report as a PNG file, in a font that has every glyph."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stellarbyte.errors import UserError
from stellarbyte.files import written_whole
from stellarbyte.looks import chart, fonts
from stellarbyte.looks.chart import Chart
from stellarbyte.report.charts.curves import runs_of, training_charts
from stellarbyte.report.charts.flops import flops_charts
from stellarbyte.report.charts.heads import attention_charts, head_charts
from stellarbyte.report.charts.latency import latency_charts
from stellarbyte.report.charts.memory import memory_charts
from stellarbyte.report.charts.parameters import parameter_charts
from stellarbyte.report.charts.radar import radar_charts
from stellarbyte.report.charts.step import step_charts
from stellarbyte.report.charts.weights import weight_charts
from stellarbyte.report.quantities import Lang
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words

_OF_ONE = (
    parameter_charts,
    memory_charts,
    flops_charts,
    latency_charts,
    weight_charts,
    head_charts,
    attention_charts,
    step_charts,
)
_NO_NAME = re.compile(r"[^\w.-]+")


def write_pictures(folder: Path, reports: Sequence[Report], lang: Lang) -> tuple[list[Path], str | None]:
    """Writes the charts into a folder, which is made where it is not there.

    Returns:
        The files, and a sentence for the user where fonts are missing: the labels are English then, and characters
        of names that no font has are written as \\u4e2d.

    Raises:
        UserError: a file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    charts = list(all_charts(reports, Words(lang)))
    families, remark = _families(charts), None
    if families is None:
        families = _families(list(all_charts([_escaped(report, ()) for report in reports], Words(lang))))
        remark = f"characters that no font here has are written as \\u4e2d; {fonts.HOW_TO_INSTALL}"
        if families is None:
            lang = "en"
            remark = f"the pictures' labels are English, since no font here has Chinese: {fonts.HOW_TO_INSTALL}"
            families = _families(list(all_charts(reports, Words(lang)))) or fonts.families_for(fonts.PRINTABLE)
        families = families or ["DejaVu Sans"]
        charts = list(all_charts([_escaped(report, families) for report in reports], Words(lang)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--png {folder} cannot be made: {error.strerror or error}") from error
    paths = []
    for each in charts:
        drawn, path = chart.png(each, families), folder / f"{each.name}.png"
        with written_whole(path) as file:
            file.buffer.write(drawn)
        paths.append(path)
    return paths, remark


def all_charts(reports: Sequence[Report], words: Words) -> Iterator[Chart]:
    """Every chart of the page; of several models, the model's number and name begin the name of its charts."""
    yield from radar_charts(reports, words)
    for number, report in enumerate(reports, 1):
        start = f"{number}-{_NO_NAME.sub('-', report.name)[:60]}-" if len(reports) > 1 else ""
        for make in _OF_ONE:
            for each in make(report, words):
                yield replace(each, name=start + each.name)
    yield from training_charts(runs_of(reports), words, named=True)


def _families(charts: Sequence[Chart]) -> list[str] | None:
    return fonts.families_for(fonts.PRINTABLE + "".join(map(chart.texts, charts)))


def _escaped(report: Report, families: Sequence[str]) -> Report:
    """The report with what its user named, and the text's tokens, in characters that the families have."""
    attention = report.measured.attention
    if attention is not None:
        attention = replace(attention, tokens=tuple(fonts.drawable(token, families) for token in attention.tokens))
    name = fonts.drawable(report.name, families)
    return replace(report, name=name, measured=replace(report.measured, attention=attention))
