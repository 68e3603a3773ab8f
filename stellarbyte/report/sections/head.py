"""The head of the page: the key numbers, what the models are, and what a reader must know."""

from collections.abc import Iterator

from stellarbyte.looks.markup import Content, Html, html, table, tag
from stellarbyte.report.charts.radar import radar_charts
from stellarbyte.report.quantities import count, exact, flops, plain, size
from stellarbyte.report.report import Report
from stellarbyte.report.sections.view import Section, View
from stellarbyte.report.words import Words


def header(view: View) -> Html:
    """What stands below the page's heading: of one model its kind and key numbers, of several their names."""
    if len(view.reports) > 1:
        kinds = list(dict.fromkeys(report.kind for report in view.reports))
        named = view.words("list")
        told = [
            (view.words(f"kind.{kind}"), named.join(each.name for each in view.reports if each.kind == kind))
            for kind in kinds
        ]
        return (
            html([tag("p", f"{kind}: {names}", class_="muted path") for kind, names in told])
            if len(told) > 1
            else html()
        )
    report = view.reports[0]
    tiles = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", more) if more else None), class_="tile")
        for name, value, more in key_numbers(report, view.words)
    ]
    kind = tag("p", f"{view.words(f'kind.{report.kind}')} · ", tag("code", report.path), class_="muted path")
    return html(kind, tag("dl", tiles, class_="tiles"))


def key_numbers(report: Report, words: Words, compared: bool = False) -> Iterator[tuple[str, str, str]]:
    """(name, value, what stands below it in small letters) of the numbers that are asked for first.

    compared: whether they stand beside another model's, so that the same numbers are told of all.
    """
    lang, numbers, shape, memory = words.lang, report.parameters, report.architecture, report.memory
    yield words("key.parameters"), count(numbers.total, lang), exact(numbers.total)
    if compared or numbers.active != numbers.total:
        yield words("key.active"), count(numbers.active, lang), words("key.per token")
    wide = words("key.wide", width=exact(shape.hidden_size)) if shape.hidden_size else ""
    yield words("key.layers"), str(shape.num_layers), wide
    if shape.context:
        yield words("key.context"), exact(shape.context), words("key.tokens")
    if memory.stored is not None and not compared:
        yield words("key.stored"), size(memory.stored), words("list").join(memory.stored_dtypes)
    elif "bfloat16" in memory.weights:
        yield words("key.weights"), size(memory.weights["bfloat16"]), ""
    if memory.cache:
        cache = next((each for each in memory.cache if each.dtype == "bfloat16"), memory.cache[0])
        yield words("key.cache"), size(cache.token), words("key.per cached token", dtype=cache.dtype)
    if report.flops is not None:
        work = report.flops.training
        yield words("key.training"), flops(work.total), words("key.at", length=exact(work.length))
        if report.flops.decode:
            work = report.flops.decode[-1]
            yield words("key.decode"), flops(work.total), words("key.cached", length=exact(work.length))
    latency, losses = report.measured.latency, report.measured.token_losses
    if latency is not None and (best := latency.fastest("decode")) is not None:
        rate = words("rate", number=count(best.tokens_per_second, lang))
        yield (
            words("key.speed"),
            rate,
            words("key.batch", batch=best.batch, length=exact(best.length), library=latency.library),
        )
    if losses is not None:
        yield words("key.bits"), plain(losses.bits_per_byte), words("key.of text")


def about(view: View) -> Section | None:
    """What the models are, in a few words each, and the remarks."""
    names = list(dict.fromkeys(name for report in view.reports for name in report.facts))
    words = view.words
    cells: list[list[Content]] = [
        [words.of("fact", name), *(words.sentence(report.facts.get(name, "–")) for report in view.reports)]
        for name in names
    ]
    remarks = [
        (f"{report.name}: " if len(view.reports) > 1 else "") + words.remark(remark)
        for report in view.reports
        for remark in report.remarks
    ]
    told = tag("ul", [tag("li", remark) for remark in remarks], class_="note remarks") if remarks else None
    if not cells and not remarks and view.charts == "all":
        return None
    head = ["", *(report.name for report in view.reports)] if len(view.reports) > 1 else []
    facts = tag("div", table(words("table.facts"), head, cells), class_="facts") if cells else None
    missing = {"all": None, "of several": "fewer charts", "none": "no charts"}[view.charts]
    return Section("about", words("section.about"), html(facts, told, view.note(missing) if missing else None))


def side_by_side(view: View) -> Section | None:
    """The key numbers of several models, and the radar; None for one model."""
    if len(view.reports) < 2:
        return None
    numbers = [
        {
            name: (value, tag("small", more, class_="muted below"))
            for name, value, more in key_numbers(each, view.words, True)
        }
        for each in view.reports
    ]
    names = list(dict.fromkeys(name for each in numbers for name in each))
    rows = [[name, *(each.get(name, "–") for each in numbers)] for name in names]
    shown = table(view.words("table.models"), ["", *(report.name for report in view.reports)], rows)
    radar = view.pictures(radar_charts(view.reports, view.words), wide=True)
    if radar is None:
        return Section("models", view.words("section.models"), shown)
    side = tag("div", radar, view.note("radar note"), class_="radar")
    return Section("models", view.words("section.models"), tag("div", shown, side, class_="tables"))
