"""The measured sections: speed, weights, heads, attention, a text's losses, curves and a step."""

import math
from collections.abc import Iterator

from stellarbyte.looks import colours
from stellarbyte.looks.document import legend
from stellarbyte.looks.markup import Html, html, table, tag
from stellarbyte.report.charts.curves import runs_of, training_charts
from stellarbyte.report.charts.heads import attention_charts, head_charts
from stellarbyte.report.charts.latency import latency_charts
from stellarbyte.report.charts.step import KINDS, step_charts
from stellarbyte.report.charts.weights import weight_charts
from stellarbyte.report.measurements import TokenLoss
from stellarbyte.report.quantities import count, exact, flops, plain, seconds, share
from stellarbyte.report.report import Report
from stellarbyte.report.sections.view import Section, View

# Of a text, as many tokens as a page has room for; of a step, as many arrays.
_MOST_TOKENS = 3000
_MOST_ARRAYS = 400
# The figures of matrices that the page shows.
_FIGURES = ("small", "outliers", "effective_rank", "rank_share", "init_distance")
# Losses are told apart in steps of this many nats, up to the last of the shades.
_NATS, SHADES = 1.0, 8


def latency(view: View) -> Section | None:
    """Tokens a second over batch and length, and the roofline."""

    def of(report: Report) -> Html | None:
        found = report.measured.latency
        if found is None or not found.points:
            return None
        words = view.words
        compiled = any(point.compile_seconds is not None for point in found.points)
        head = [words(key) for key in ("phase", "batch", "length", "median", "95th percentile", "tokens a second")]
        head += [words("bound"), words("reached"), *([words("compiling")] if compiled else [])]
        rows = [
            [
                words(point.phase),
                str(point.batch),
                exact(point.length),
                seconds(point.median),
                seconds(point.p95),
                count(point.tokens_per_second, words.lang),
                words.of("bound", point.bound),
                share(point.reached),
                *([seconds(point.compile_seconds or 0)] if compiled else []),
            ]
            for point in found.points
        ]
        machine = found.machine
        note = view.note(
            "latency note",
            library=found.library,
            machine=machine.name
            if machine.threads is None
            else words("threads", name=machine.name, number=machine.threads),
            dtype=machine.dtype,
            flops=flops(machine.flops, "FLOP/s"),
            bandwidth=flops(machine.bandwidth, "B/s"),
            repeats=max(point.repeats for point in found.points),
        )
        pictures = view.pictures(latency_charts(report, words), report)
        return html(pictures, note, view.remark(found.remark), table(words("table.latency"), head, rows))

    body = view.of_each(of)
    return Section("latency", view.words("section.latency"), body) if body else None


def weights(view: View) -> Section | None:
    """Heat maps layer by matrix; the matrices outside the layers, and what a reader should look at, as a table."""

    def of(report: Report) -> Html | None:
        found = report.weights
        if found is None:
            return None
        words = view.words
        outside = [each for each in found.matrices if each.layer is None or each.not_finite]
        head = [words(key) for key in ("matrix", "small", "outliers", "effective rank", "distance", "not finite")]
        rows = [
            [
                each.matrix if each.layer is None else words("layer.matrix", layer=each.layer, matrix=each.matrix),
                share(each.small),
                share(each.outliers),
                plain(each.effective_rank),
                plain(each.init_distance),
                exact(each.not_finite),
            ]
            for each in outside
        ]
        some_bad = any(each.not_finite for each in outside)
        caption = words("table.matrices bad" if some_bad else "table.matrices")
        shown = table(caption, head, rows) if rows else None
        pictures = view.pictures(weight_charts(report, words), report)
        return html(pictures, view.note("weights note") if pictures else None, shown, view.remark(found.remark)) or None

    body = view.of_each(of)
    return Section("weights", view.words("section.weights"), html(body, _definitions(view))) if body else None


def _definitions(view: View) -> Html | None:
    """What the figures are; the models that one is of are named where it is not the same of all."""
    of: dict[tuple[str, str], list[str]] = {}
    looked_at = [report for report in view.reports if report.weights is not None]
    for report in looked_at:
        for term in report.weights.definitions.items() if report.weights is not None else ():
            if term[0] in _FIGURES:
                of.setdefault(term, []).append(report.name)
    words = view.words
    terms = [
        (
            tag("dt", words.of("figure", name)),
            tag(
                "dd", words.sentence(told), f" ({words('list').join(models)})" if len(models) < len(looked_at) else None
            ),
        )
        for (name, told), models in of.items()
    ]
    return tag("dl", terms, class_="note terms") if terms else None


def heads(view: View) -> Section | None:
    """What each head is worth, and how it attends on the user's text."""

    def of(report: Report) -> Html | None:
        found, attention, words = report.measured.heads, report.measured.attention, view.words
        if found is None and attention is None:
            return None
        told = []
        if found is not None:
            told.append(view.remark(found.method))
            told.append(view.note("over tokens", number=exact(found.tokens)))
        if attention is not None:
            told.append(view.note("attention note", number=exact(attention.read)))
        worth = _most_worth(found.importance, view) if found is not None and view.charts != "all" else None
        charts = [*head_charts(report, words), *attention_charts(report, words)]
        return html(view.pictures(charts, report), worth, told)

    body = view.of_each(of)
    return Section("heads", view.words("section.heads"), body) if body else None


def _most_worth(importance: tuple[tuple[float | None, ...], ...], view: View) -> Html:
    """Of a page without charts: the ten heads that are worth most."""
    words = view.words
    all_heads = [
        (value, layer, head)
        for layer, row in enumerate(importance)
        for head, value in enumerate(row)
        if value is not None and math.isfinite(value)
    ]
    rows = [[f"{layer}", f"{head}", plain(value)] for value, layer, head in sorted(all_heads, reverse=True)[:10]]
    return table(words("table.heads"), [words("layer"), words("head"), words("importance")], rows)


def losses(view: View) -> Section | None:
    """The user's text, each token coloured by its loss."""

    def of(report: Report) -> Html | None:
        found, words = report.measured.token_losses, view.words
        if found is None:
            return None
        told = words("losses", mean=plain(found.mean), bits=plain(found.bits_per_byte), number=len(found.tokens))
        scale = [tag("i", words("nats", number=f"{shade * _NATS:g}"), class_=f"l{shade}") for shade in range(SHADES)]
        text = tag("p", list(_coloured(found.tokens[:_MOST_TOKENS])), class_="losses")
        cut = view.note("cut", number=exact(_MOST_TOKENS)) if len(found.tokens) > _MOST_TOKENS else None
        return html(tag("p", told), tag("p", scale, class_="scale note"), text, cut, view.remark(found.remark))

    body = view.of_each(of)
    return Section("losses", view.words("section.losses"), body) if body else None


def _coloured(tokens: tuple[TokenLoss, ...]) -> Iterator[Html]:
    """A token in the middle of a character has no text of its own: the one that has tells the sum of their losses."""
    waiting = 0.0
    for token in tokens:
        if token.loss is None:
            yield html(token.text)
            continue
        waiting += token.loss if math.isfinite(token.loss) else 0.0
        if token.text:
            shade = min(int(waiting / _NATS), SHADES - 1) if waiting > 0 else 0
            yield tag("i", token.text, class_=f"l{shade}", title=f"{waiting:.2f}")
            waiting = 0.0


def curves(view: View) -> Section | None:
    """The curves of those models that are runs."""
    runs = runs_of(view.reports)
    if not runs:
        return None
    words = view.words
    names = [(run.name, colours.series(number)) for number, run in enumerate(runs)]
    pictures = view.pictures(training_charts(runs, words))
    rows = []
    for run in runs:
        curve, validation = run.curves.get("loss"), run.curves.get("validation_loss")
        rows.append(
            [
                run.name,
                exact(run.steps),
                "–" if curve is None else count(int(curve.tokens[-1]), words.lang),
                "–" if curve is None else plain(float(curve.values[-1])),
                "–" if validation is None else plain(float(validation.values.min())),
            ]
        )
    head = [words(key) for key in ("run", "steps", "trained tokens", "last loss", "best validation loss")]
    shown = table(words("table.runs"), head, rows)
    return Section("curves", words("section.curves"), html(shown, legend(names) if len(runs) > 1 else None, pictures))


def step(view: View) -> Section | None:
    """The arrays of one step, and the first number that is not finite."""

    def of(report: Report) -> Html | None:
        found, words = report.measured.step_statistics, view.words
        if found is None:
            return None
        told = words(
            "step told",
            step=exact(found.step),
            checkpoint=exact(found.checkpoint),
            tokens=exact(found.batch_tokens),
            loss=plain(found.loss),
            norm=plain(found.grad_norm),
        )
        bad = words("first bad", name=found.first_not_finite) if found.first_not_finite else words("all finite")
        tables = []
        for kind in KINDS:
            rows = [
                [each.name, plain(each.rms), plain(each.largest), share(each.zeros), exact(each.not_finite)]
                for each in found.tensors
                if each.kind == kind
            ]
            if rows:
                head = [words(key) for key in ("array", "step.rms", "step.largest", "zeros", "not finite")]
                shown = table(words(f"chart.step.{kind}"), head, rows[:_MOST_ARRAYS])
                tables.append(tag("details", tag("summary", words(f"chart.step.{kind}")), shown))
        pictures = view.pictures(step_charts(report, words), report)
        verdict = tag("p", bad, class_="bad" if found.first_not_finite else "good")
        named = view.note("arrays note") if pictures and tables else None
        return html(tag("p", told), verdict, view.remark(found.remark), pictures, named, tables)

    body = view.of_each(of)
    return Section("step", view.words("section.step"), body) if body else None
