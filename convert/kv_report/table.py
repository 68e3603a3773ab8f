"""The report of `stellarbyte kv` as lines for a terminal."""

from convert.kv_report.measuring import Line, Report
from convert.kv_report.rows import ANSWER


def table(report: Report) -> str:
    """A head, a line for each cache, and what the columns mean."""
    planted = f"{report.planted} planted lines: the full cache finds {report.found_by_full}"
    planted += f", and {report.recalled_by_full} of {report.planted * ANSWER} of their tokens"
    lines = [
        f"{report.rows} passages of {report.row_tokens} tokens, {report.prompt_tokens} of them the prompt",
        planted,
        _columns("budget", "policy", "perplexity", "change", "found", "recalled", "cache", "tokens/s"),
    ]
    slots: int | None = -1
    for line in report.lines:
        lines.append(_line(line, is_first=line.slots != slots))
        slots = line.slots
    lines.append("perplexity: of what follows the prompt, token by token; found, recalled: planted lines, and tokens")
    lines.append("of them, of those that the full cache finds; cache: of one passage; tokens/s: of all passages")
    return "\n".join(lines)


def _line(line: Line, is_first: bool) -> str:
    budget = ("all" if line.slots is None else str(line.slots)) if is_first else ""
    change = "" if line.slots is None else f"{line.change:+.2%}"
    found, recalled = ("-" if share is None else f"{share:.1%}" for share in (line.found, line.recalled))
    memory = f"{line.cache_bytes / 2**20:.2f} MiB"
    speed = f"{line.tokens_per_second:.0f}"
    perplexity = f"{line.perplexity:.3f}"
    return _columns(budget, line.policy or "", perplexity, change, found, recalled, memory, speed)


def _columns(budget: str, policy: str, *figures: str) -> str:
    return f"{budget:>8}  {policy:<10}" + "".join(f"{figure:>11}" for figure in figures)
