"""The report of `stellarbyte kv` as lines for a terminal."""

from convert.kv_report.measuring import Line, Report


def table(report: Report) -> str:
    """A head, a line for each cache, and what the columns mean."""
    planted = f"{report.found_by_full} of {report.planted} planted lines found by the full cache"
    lines = [
        f"{report.rows} passages of {report.row_tokens} tokens, {report.prompt_tokens} of them the prompt; {planted}",
        f"{'budget':>8}  {'policy':<10}{'perplexity':>11}{'change':>10}{'found':>8}{'cache':>12}{'tokens/s':>10}",
    ]
    slots: int | None = -1
    for line in report.lines:
        lines.append(_line(line, is_first=line.slots != slots))
        slots = line.slots
    lines.append("perplexity: of what follows the prompt, token by token; found: of those that the full cache finds;")
    lines.append("cache: keys and values of one passage; tokens/s: behind the prompt, all passages at once")
    return "\n".join(lines)


def _line(line: Line, is_first: bool) -> str:
    budget = ("all" if line.slots is None else str(line.slots)) if is_first else ""
    change = "" if line.slots is None else f"{line.change:+.2%}"
    found = "-" if line.found is None else f"{line.found:.1%}"
    memory = f"{line.cache_bytes / 2**20:.2f} MiB"
    speed = f"{line.tokens_per_second:.0f}"
    name = line.policy or ""
    return f"{budget:>8}  {name:<10}{line.perplexity:>11.3f}{change:>10}{found:>8}{memory:>12}{speed:>10}"
