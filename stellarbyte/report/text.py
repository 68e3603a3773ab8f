"""Tells a report in the lines of a terminal."""

from collections.abc import Mapping, Sequence

from stellarbyte.layer_ranges import layer_ranges
from stellarbyte.report.architecture import Architecture, LayerGroup
from stellarbyte.report.flops import Flops, Work
from stellarbyte.report.measured_text import measured_lines, weights_lines
from stellarbyte.report.memory import Memory
from stellarbyte.report.parameters import Parameters
from stellarbyte.report.report import Report

_UNITS = ("", "k", "M", "G", "T", "P")
_KINDS = {"run": "a run of pretraining", "model": "a Hugging Face folder", "config": "a config; nothing is trained yet"}


def report_text(report: Report) -> str:
    """The report for a terminal: what is counted, and in short what is measured."""
    lines = [f"{report.name}: {_KINDS[report.kind]}"]
    lines += _columns([(name, text) for name, text in report.facts.items()])
    lines += ["", *_architecture(report.architecture), "", *_parameters(report.parameters), "", *_memory(report.memory)]
    if report.flops is not None:
        lines += ["", *_flops(report.flops)]
    weights = [] if report.weights is None else weights_lines(report.weights)
    for part in filter(None, (weights, *measured_lines(report.measured))):
        lines += ["", *part]
    return "\n".join([*lines, *([""] if report.remarks else []), *report.remarks])


def amount(number: float) -> str:
    """A large number in at most four digits, such as 6.738 G."""
    value, unit = float(number), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.4g} {_UNITS[unit]}".rstrip()


def size(nbytes: float) -> str:
    """Bytes in the binary unit that suits them."""
    value, units = float(nbytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:,.0f} bytes" if units[0] == "bytes" else f"{value:.2f} {units[0]}"


def _architecture(architecture: Architecture) -> list[str]:
    lines = [f"architecture: {architecture.model_type}, {architecture.num_layers} layers"]
    rows = [("layers " + layer_ranges(group.layers).replace(",", ", "), _layer(group)) for group in architecture.groups]
    outside = [f"{part} {_shape(shape)}" for part, shape in _outside(architecture)]
    rows.append(("outside", ", ".join(outside) + ("; the head is the embedding" if architecture.tied else "")))
    if architecture.switches:
        rows.append(("switches", ", ".join(f"{name} {value}" for name, value in architecture.switches.items())))
    return lines + _columns(rows)


def _outside(architecture: Architecture) -> list[tuple[str, tuple[int, ...]]]:
    return [(weight.part, weight.shape) for weight in architecture.outside if len(weight.shape) > 1][:6]


def _layer(group: LayerGroup) -> str:
    words, attention, network = [], group.attention, group.feed_forward
    if attention is not None:
        kv = "" if attention.key_value_heads == attention.query_heads else f" ({attention.key_value_heads} for keys)"
        window = "" if attention.window is None else f", window {attention.window}"
        words.append(f"{attention.query_heads} heads{kv} of {attention.head_dim}, {attention.positions}{window}")
    if network is not None and network.experts:
        shared = f" and {network.shared_experts} shared" if network.shared_experts else ""
        words.append(f"{network.experts_per_token} of {network.experts} experts of {network.width}{shared}")
    elif network is not None:
        words.append(f"feed-forward {network.width}")
    return "; ".join([*words, f"{group.parameters:,} parameters each"])


def _parameters(parameters: Parameters) -> list[str]:
    total, active = parameters.total, parameters.active
    lines = [f"parameters: {total:,}" + (f", of which {active:,} work on a token" if active != total else "")]
    if parameters.trained != total:
        lines[0] += f"; {parameters.trained:,} are trained"
    rows = [(part.replace("_", " "), f"{count:>16,}  {count / total:6.1%}") for part, count in parameters.parts.items()]
    return lines + _columns(rows)


def _memory(memory: Memory) -> list[str]:
    lines = ["memory"]
    shown = []
    if memory.stored is not None:
        dtypes = ", ".join(f"{dtype} {size(nbytes)}" for dtype, nbytes in memory.stored_dtypes.items())
        shown.append(("stored", f"{size(memory.stored)} ({dtypes})"))
    shown.append(("weights", _list(memory.weights)))
    shown.append((f"training by {memory.optimizer}", _list(memory.state)))
    for training in memory.training:
        batch = f"{training.rows} x {training.length} tokens in {training.dtype}"
        shown.append(
            (f"  remat {training.remat}", f"{size(training.total)}, activations {size(training.activations)}, {batch}")
        )
    for cache in memory.cache:
        tokens, nbytes = cache.lengths[-1]
        budget = "" if cache.budget is None else f", {cache.budget} slots a head"
        text = f"{size(cache.token)} a token, {size(nbytes)} at {tokens:,}{budget}"
        shown.append((f"keys and values, {cache.dtype}", text))
    for chip in memory.chips:
        words = []
        if chip.training_rows:
            remat, rows = max(chip.training_rows.items(), key=lambda item: item[1])
            words.append(f"trains {_rows(rows)} at once with remat {remat}" if rows else "does not train it alone")
        best = {dtype: rows for dtype, rows in chip.inference_rows.items() if rows}
        if best:
            words.append(
                f"answers with weights in {', '.join(f'{dtype} {_rows(rows)}' for dtype, rows in best.items())}"
            )
        elif chip.inference_rows:
            words.append("does not hold it with a full context")
        if words:
            shown.append((f"{chip.chip}, {size(chip.bytes)}", "; ".join(words)))
    return lines + _columns(shown)


def _flops(flops: Flops) -> list[str]:
    lines = ["FLOPs a token"]
    rows = [(f"training at {flops.training.length:,}", _work(flops.training))]
    if flops.recomputed:
        rows.append(("  and again by remat", ", ".join(f"{n} {amount(f)}" for n, f in flops.recomputed.items() if f)))
    rows += [(f"prefill of {work.length:,}", _work(work)) for work in flops.prefill]
    rows += [(f"decode behind {work.length:,}", _work(work)) for work in flops.decode]
    return lines + _columns(rows)


def _work(work: Work) -> str:
    parts = ", ".join(f"{part.replace('_', ' ')} {amount(flops)}" for part, flops in work.parts.items())
    return f"{amount(work.total)} ({parts})"


def _list(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(nbytes)}" for name, nbytes in amounts.items())


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0) + 2
    return [f"  {name:{width}}{text}" for name, text in rows]
