"""The result of checking a config: the config with all its defaults, and a report of what a run would find."""

import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stellarbyte.config.plain import yaml_text
from stellarbyte.errors import UserError, one_line
from stellarbyte.records.sources import source_files, status_of

_WIDTH = 100


@dataclass(frozen=True)
class DryRun:
    """A checked config, and a report (section -> name -> fact) of what a run with it would find; nothing was changed.

    A fact is a string, a number, or a list of strings or mappings. The name "warnings" holds sentences about what may
    be wrong, but is not a mistake in the config.
    """

    config: Mapping[str, Any]
    report: Mapping[str, Mapping[str, Any]]

    def text(self) -> str:
        """The config as YAML, then the report in lines of at most 100 columns."""
        sections = [_section_text(name, facts) for name, facts in self.report.items()]
        return yaml_text(self.config) + "\n" + "\n\n".join(sections)

    def to_dict(self) -> dict[str, Any]:
        """The same as one object, for JSON."""
        return {"config": dict(self.config), "report": {name: dict(facts) for name, facts in self.report.items()}}


def source_facts(sources: Sequence[tuple[str, Hashable]]) -> dict[str, Any]:
    """Facts about each source from the names and sizes of its files; a file in two sources is counted once.

    A source is a path and the manner of reading it, as in files_of_sources. A source that is missing gives a warning.
    """
    facts: list[dict[str, Any]] = []
    warnings: list[str] = []
    seen: set[tuple[int, int, Hashable]] = set()
    for path, manner in sources:
        try:
            files, remark = source_files(path)
            found = [(file, status_of(file)) for file in files]
        except UserError as error:
            warnings.append(f"data.sources: {error}")
            facts.append({"path": path, "files": 0, "bytes": 0})
            continue
        new = [status for _, status in found if (status.st_dev, status.st_ino, manner) not in seen]
        seen |= {(status.st_dev, status.st_ino, manner) for status in new}
        facts.append({"path": path, "files": len(new), "bytes": sum(status.st_size for status in new)})
        if len(new) < len(found):
            facts[-1]["named_before"] = len(found) - len(new)
        if remark is not None:
            facts[-1]["left_out"] = remark.partition("left out: ")[2]
    return {"sources": facts} | ({"warnings": warnings} if warnings else {})


@contextmanager
def warned(facts: dict[str, Any]) -> Iterator[None]:
    """Turns what is refused within into a warning among the facts: it is about this machine, not about the config."""
    try:
        yield
    except UserError as error:
        facts.setdefault("warnings", []).append(str(error))


def _section_text(title: str, facts: Mapping[str, Any]) -> str:
    """A section's lines, warnings last; names and facts in two columns."""
    column = max(map(len, facts), default=0) + 4
    lines = [title]
    for name in sorted(facts, key=lambda name: name == "warnings"):
        items = facts[name] if isinstance(facts[name], list) else [facts[name]]
        label = name.replace("_", " ")
        for index, item in enumerate(items or ["none"]):
            lines += textwrap.wrap(
                one_line(_shown(item)),
                _WIDTH,
                initial_indent=f"  {label if index == 0 else '':{column - 2}}",
                subsequent_indent=" " * (column + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """A fact in words. If the first value of a mapping is a string, it comes first and the other values follow it."""
    if isinstance(value, Mapping):
        about, *facts = value.items()
        if isinstance(about[1], str):
            return f"{about[1]}: {', '.join(_counted(*fact) for fact in facts)}"
        return ", ".join(f"{name} {_shown(fact)}" for name, fact in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def _counted(name: str, value: Any) -> str:
    """A name and its value in words, such as "3 files", "1 file", "rank 4" or "state complete"."""
    name = name.replace("_", " ")
    if type(value) is int and name.endswith("s"):
        return f"{value:,} {name[:-1] if value == 1 else name}"
    return f"{name} {_shown(value)}"
