"""The counted sections: parameters, memory and FLOPs."""

from collections.abc import Iterator, Sequence

from stellarbyte.looks import colours
from stellarbyte.looks.document import swatch
from stellarbyte.looks.markup import Content, Html, html, table, tag
from stellarbyte.report.charts.flops import flops_charts
from stellarbyte.report.charts.memory import TRAINING_PARTS, memory_charts
from stellarbyte.report.charts.parameters import parameter_charts
from stellarbyte.report.flops import PARTS as WORK_PARTS
from stellarbyte.report.parameters import PARTS, LayerParameters
from stellarbyte.report.parts import colour_of, group_of, in_words
from stellarbyte.report.quantities import exact, flops, share, size
from stellarbyte.report.report import Report
from stellarbyte.report.sections.view import Section, View


def parameters(view: View) -> Section | None:
    """Every part's numbers, of all models beside each other, then each model's pie and layers."""
    words, reports = view.words, view.reports
    known = [part for part in PARTS if any(part in report.parameters.parts for report in reports)]
    rows: list[list[Content]] = []
    for part in known:
        name = (swatch(colours.series(colour_of(group_of(part)))), words.of("part", part))
        cells: list[Content] = []
        for report in reports:
            number = report.parameters.parts.get(part)
            cells.append("–" if number is None else exact(number))
            if len(reports) == 1:
                cells.append("–" if number is None else share(number / max(report.parameters.total, 1)))
        rows.append([name, *cells])
    if len(reports) == 1:
        head = [words("part"), words("key.parameters"), words("share")]
        foot = [words("total"), exact(reports[0].parameters.total), share(1)]
    else:
        head = [words("part"), *(report.name for report in reports)]
        foot = [words("total"), *(exact(report.parameters.total) for report in reports)]
    shown = table(words("table.parameters"), head, rows, foot)
    if len(reports) == 1 and (pie := view.pictures(parameter_charts(reports[0], words), reports[0])):
        top = tag("div", shown, pie, class_="beside")
        each = view.of_each(lambda report: _numbers(report, view))
    else:
        top = shown
        each = view.of_each(
            lambda report: html(_numbers(report, view), view.pictures(parameter_charts(report, words), report)) or None
        )
    return Section("parameters", words("section.parameters"), html(top, each))


def _numbers(report: Report, view: View) -> Html | None:
    """What the sum alone does not tell, and the layers' numbers, equal ones in one row."""
    numbers, words = report.parameters, view.words
    told = []
    if numbers.tied:
        told.append(view.note("tied", number=exact(numbers.tied)))
    if numbers.active != numbers.total:
        part = share(numbers.active / max(numbers.total, 1))
        told.append(view.note("active", number=exact(numbers.active), share=part))
    if numbers.trained != numbers.total:
        told.append(view.note("trained", number=exact(numbers.trained)))
    alike = _alike(numbers.layers)
    if not alike:
        return html(told) if told else None
    known = [part for part in PARTS if any(part in layer.parts for layer, _ in alike)]
    head = [words("layers"), *(words.of("part", part) for part in known), words("each"), words("together")]
    rows = [
        [
            in_words(places),
            *(exact(layer.parts[part]) if part in layer.parts else "–" for part in known),
            exact(layer.total),
            exact(layer.total * len(places)),
        ]
        for layer, places in alike
    ]
    return html(told, table(words("table.layers"), head, rows))


def _alike(layers: Sequence[LayerParameters]) -> list[tuple[LayerParameters, list[int]]]:
    """Layers of the same numbers, with their places."""
    found: dict[tuple[tuple[str, int], ...], tuple[LayerParameters, list[int]]] = {}
    for layer in layers:
        found.setdefault(tuple(layer.parts.items()), (layer, []))[1].append(layer.number)
    return list(found.values())


def memory(view: View) -> Section | None:
    """Weights, training, cache and the chips that have room."""

    def of(report: Report) -> Html | None:
        charts = view.pictures(memory_charts(report, view.words), report)
        tables = [_weights(report, view), _cache(report, view), _training(report, view), *_chips(report, view)]
        return html(charts, tag("div", tables, class_="tables")) if any(tables) else charts

    body = view.of_each(of)
    return Section("memory", view.words("section.memory"), body) if body else None


def _weights(report: Report, view: View) -> Html | None:
    """The weights at rest, and what training holds from step to step."""
    words, found = view.words, report.memory
    rows = [[dtype, size(number)] for dtype, number in found.weights.items()]
    if found.stored is not None:
        rows.append([words("as stored", dtypes=words("list").join(found.stored_dtypes)), size(found.stored)])
    if found.state:
        rows.append([words("in training", optimizer=found.optimizer), size(sum(found.state.values()))])
    shown = table(words("table.weights"), [words("dtype"), words("memory")], rows)
    return (
        html(tag("div", shown, view.note("int note") if "int8" in found.weights else None, class_="noted"))
        if rows
        else None
    )


def _training(report: Report, view: View) -> Html | None:
    words, steps = view.words, report.memory.training
    if not steps:
        return None
    head = [words("remat"), *(words(f"memory.{part}") for part in TRAINING_PARTS), words("together")]
    head.append(words("fullest moment"))
    rows = [
        [
            step.remat,
            *(size(getattr(step, part)) for part in TRAINING_PARTS),
            size(step.total),
            words.of("moment", step.moment),
        ]
        for step in steps
    ]
    first = steps[0]
    caption = words(
        "table.training",
        rows=first.rows,
        length=exact(first.length),
        dtype=first.dtype,
        optimizer=report.memory.optimizer,
    )
    return tag("div", table(caption, head, rows), view.note("training note"))


def _cache(report: Report, view: View) -> Html | None:
    words, caches = view.words, report.memory.cache
    if not caches:
        return None
    lengths = [length for length, _ in caches[0].lengths]
    head = [words("dtype"), words("a token"), *(words("tokens", number=exact(length)) for length in lengths)]
    rows = [[each.dtype, size(each.token), *(size(number) for _, number in each.lengths)] for each in caches]
    budget = caches[0].budget
    note = view.note("budget", slots=exact(budget)) if budget is not None else None
    return html(table(words("table.cache"), head, rows), note)


def _chips(report: Report, view: View) -> Iterator[Html]:
    """The most rows that fit on each chip: in training by remat policy, in inference by dtype."""
    words, chips = view.words, report.memory.chips

    def fits(rows: int) -> Html:
        return tag("span", exact(rows) if rows else words("does not fit"), class_=None if rows else "bad")

    for caption, of in (("table.trains", "training_rows"), ("table.answers", "inference_rows")):
        columns = list(dict.fromkeys(name for chip in chips for name in getattr(chip, of)))
        if columns:
            rows = [
                [f"{chip.chip}, {size(chip.bytes)}", *(fits(getattr(chip, of).get(name, 0)) for name in columns)]
                for chip in chips
            ]
            yield table(words(caption), [words("chip"), *columns], rows)


def work(view: View) -> Section | None:
    """The FLOPs of a token."""

    def of(report: Report) -> Html | None:
        counted = report.flops
        if counted is None:
            return None
        words = view.words
        training = words("phase.training", length=exact(counted.training.length))
        works = [
            (training, counted.training),
            *((words("phase.prefill", length=exact(each.length)), each) for each in counted.prefill),
            *((words("phase.decode", length=exact(each.length)), each) for each in counted.decode),
        ]
        known = [part for part in WORK_PARTS if any(part in each.parts for _, each in works)]
        head = [words("phase"), words("together"), *(words.of("work", part) for part in known)]
        rows = [
            [name, flops(each.total), *(flops(each.parts[part]) if part in each.parts else "–" for part in known)]
            for name, each in works
        ]
        again = [
            [remat, flops(more), share(more / counted.training.total)] for remat, more in counted.recomputed.items()
        ]
        more = table(words("table.again"), [words("remat"), words("flops a token"), words("share")], again)
        notes = [view.note("flops note", rotation=flops(counted.rotation))]
        notes += [] if counted.complete else [view.note("flops incomplete")]
        tables = tag("div", table(words("table.flops"), head, rows), more if again else None, class_="tables")
        return html(view.pictures(flops_charts(report, words), report), tables, notes)

    body = view.of_each(of)
    return Section("flops", view.words("section.flops"), body) if body else None
