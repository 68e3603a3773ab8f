"""Proves from a run's ledger that every sample came once an epoch, and that sources came by their weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.errors import first_of
from stellarbyte_jax.data.ledger_reading import Beginning, Consumed, consumed
from stellarbyte_jax.data.mixture import Segment

_MOST_FAULTS, _MOST_NAMED = 10, 5

# How far a source may be from its share, in rows: see Mixture.
_TOLERANCE = 2


@dataclass
class SourceAudit:
    """What is known of one source of the data: its epochs that are whole, and the samples that were taken from it."""

    name: str
    rows: int
    whole_epochs: int = 0
    samples: int = 0
    skipped: int = 0
    epoch: int = 0
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, bool), repr=False)  # of the rows, in this epoch

    def __post_init__(self) -> None:
        self.seen = np.zeros(self.rows, bool)


@dataclass
class Audit:
    """The result: the steps and samples that the ledger holds, its sources, and the first faults, in words."""

    first_step: int | None = None
    last_step: int | None = None
    samples: int = 0
    uncounted_steps: int = 0
    process_counts: list[int] = field(default_factory=list)
    starts: int = 0
    sources: list[SourceAudit] = field(default_factory=list)
    shares: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0

    def fault(self, sentence: str) -> None:
        """Counts a fault, and keeps it if it is one of the first."""
        self.fault_count += 1
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(sentence)


def audit(run_dir: Path, saved_step: int | None) -> Audit:
    """Reads the whole ledger of a run. Memory is a byte for each row of the data.

    Steps after the checkpoint of `saved_step` do not count: a run that goes on does them again, and drops these lines.

    Raises:
        UserError: there is no ledger, or it cannot be read.
    """
    found = Audit()
    walk = _Walk(found)
    for of_step in consumed(run_dir, found.fault):
        if saved_step is None or of_step[0].step > saved_step:
            found.uncounted_steps += 1
        else:
            walk.step(of_step)
    walk.end(saved_step or 0)
    return found


class _Walk:
    """Goes over the steps in their order."""

    def __init__(self, found: Audit) -> None:
        self._found = found
        self._beginning: Beginning | None = None
        self._sources: list[SourceAudit] = []  # of the data of this part of the run
        self._next = 0  # the number of the next sample
        self._counts: dict[int, np.ndarray] = {}  # first row of a segment -> samples of each source in it

    def step(self, of_step: list[Consumed]) -> None:
        found, step, beginning = self._found, of_step[0].step, of_step[0].beginning
        if beginning != self._beginning:
            self._begin(beginning)
        if not of_step[0].skipped:
            expected = (found.last_step or 0) + 1
            if step != expected:
                missing = f"step {expected}" if step == expected + 1 else f"steps {expected} to {step - 1}"
                found.fault(f"{of_step[0].where}: no ledger has {missing}")
            found.first_step, found.last_step = found.first_step or step, step
        ids = np.unique(np.concatenate([record.ids for record in of_step]), axis=0)  # by their numbers
        numbers = ids[:, 0]
        if (np.diff(numbers) == 0).any():
            number = numbers[:-1][np.diff(numbers) == 0][0]
            found.fault(f"step {step}: two processes have read different rows as sample {number}")
        first = self._next
        if found.samples == 0 and step > 1:  # told already: what came before is unknown
            first = int(numbers[0])
        whole = np.arange(first, first + len(ids))
        if len(ids) != numbers[-1] + 1 - first or (numbers != whole).any():
            at = next(iter(sorted(set(whole.tolist()) ^ set(numbers.tolist()))), first)
            found.fault(f"step {step}: sample {at} is {'missing' if at not in numbers else 'not the next one'}")
        self._next = int(numbers[-1]) + 1
        found.samples += len(ids)
        for source, audited in enumerate(self._sources):
            self._rows(audited, ids[ids[:, 1] == source], step, skipped=of_step[0].skipped)
        self._count(beginning, ids)

    def _begin(self, beginning: Beginning) -> None:
        found, before = self._found, self._beginning
        found.starts += 1
        if beginning.processes not in found.process_counts:
            found.process_counts.append(beginning.processes)
        if before is not None and before.part != beginning.part:  # the run was amended: its samples are counted anew
            self._shares()
            self._next, self._counts = 0, {}
        if before is None or any(
            getattr(before, name) != getattr(beginning, name) for name in ("data", "rows", "part")
        ):  # other data, or other rows of it: their epochs are counted anew
            self._sources = [SourceAudit(*both) for both in zip(beginning.sources, beginning.rows, strict=True)]
            found.sources += self._sources
        self._beginning = beginning

    def _rows(self, source: SourceAudit, ids: np.ndarray, step: int, *, skipped: bool) -> None:
        found = self._found
        for epoch in np.unique(ids[:, 2]):
            rows = ids[ids[:, 2] == epoch, 3]
            if source.samples == 0 and step > 1 and found.first_step == step:
                source.epoch = int(epoch)  # where the ledger begins late
            if epoch != source.epoch:
                self._end_epoch(source, int(epoch), step)
            if rows.max() >= source.rows:
                found.fault(f"step {step}: {source.name} has no row {rows.max()}, but {source.rows} rows")
                rows = rows[rows < source.rows]
            again = rows[source.seen[rows]]
            if len(again) or len(np.unique(rows)) != len(rows):
                row = again[0] if len(again) else rows[0]
                found.fault(f"step {step}: row {row} of {source.name} comes again in epoch {epoch + 1}")
            source.seen[rows] = True
            source.samples += len(rows)
            source.skipped += len(rows) * skipped
            if source.seen.all():
                source.whole_epochs = max(source.whole_epochs, int(epoch) + 1)

    def _end_epoch(self, source: SourceAudit, epoch: int, step: int) -> None:
        missing = np.flatnonzero(~source.seen)
        if epoch != source.epoch + 1:
            self._found.fault(f"step {step}: {source.name} goes from epoch {source.epoch + 1} to {epoch + 1}")
        elif len(missing):
            named = first_of(missing.tolist(), _MOST_NAMED)
            self._found.fault(
                f"step {step}: epoch {source.epoch + 1} of {source.name} ended without {len(missing)} of its "
                f"{source.rows} rows ({named})"
            )
        source.epoch = epoch
        source.seen[:] = False

    def _count(self, beginning: Beginning, ids: np.ndarray) -> None:
        for segment, end in _with_ends(beginning.segments):
            inside = ids[(ids[:, 0] >= segment.first) & (ids[:, 0] < end), 1]
            if len(inside):
                counts = np.bincount(inside, minlength=len(beginning.rows))
                self._counts[segment.first] = self._counts.get(segment.first, 0) + counts

    def end(self, saved_step: int) -> None:
        """Looks at what can be told only when all is read."""
        found = self._found
        last = found.last_step or 0
        if last < saved_step:
            missing = f"step {saved_step}" if last + 1 == saved_step else f"steps {last + 1} to {saved_step}"
            found.fault(f"no ledger has {missing}, but the newest checkpoint is of step {saved_step}")
        self._shares()

    def _shares(self) -> None:
        """Compares the sources' samples with their weights, in this part of the run."""
        found = self._found
        for segment, _ in _with_ends(() if self._beginning is None else self._beginning.segments):
            counts = self._counts.get(segment.first)
            if counts is None:
                continue
            total = int(counts.sum())
            for source, (count, share) in enumerate(zip(counts.tolist(), segment.shares, strict=True)):
                name = self._sources[source].name
                told = {"from_sample": segment.first, "source": name, "samples": count}
                found.shares.append(told | {"share": count / total, "weight": share})
                if abs(count - share * total) >= _TOLERANCE:
                    found.fault(
                        f"from sample {segment.first} on, {name} has {count} of {total} samples, but its weight asks "
                        f"for {share * total:.0f}"
                    )


def _with_ends(segments: tuple[Segment, ...]) -> list[tuple[Segment, float]]:
    ends = [*(float(segment.first) for segment in segments[1:]), np.inf]
    return list(zip(segments, ends[: len(segments)], strict=True))


def audit_json(found: Audit) -> Mapping[str, Any]:
    """The result for a script."""
    sources = [
        {name: getattr(source, name) for name in ("name", "rows", "whole_epochs", "samples", "skipped")}
        for source in found.sources
    ]
    names = ("first_step", "last_step", "samples", "uncounted_steps", "process_counts", "starts", "shares")
    facts = {name: getattr(found, name) for name in names}
    return {"clean": found.fault_count == 0, **facts, "sources": sources} | {
        "fault_count": found.fault_count,
        "faults": found.faults,
    }


def audit_text(found: Audit) -> str:
    """The result for people: what was read, a line for each source and weight, and the faults."""
    steps = "no steps" if found.first_step is None else f"steps {found.first_step} to {found.last_step}"
    counts = " and ".join(map(str, sorted(found.process_counts))) or "0"
    lines = [f"{steps}, {found.samples:,} samples, {found.starts} starts, on {counts} process(es)"]
    if found.uncounted_steps:
        lines.append(f"{found.uncounted_steps} steps after the newest checkpoint do not count: they will be done again")
    for source in found.sources:
        left = f", {source.skipped:,} of them skipped" if source.skipped else ""
        epochs = f"{source.whole_epochs} whole epochs, {source.samples / source.rows:.2f} in all"
        lines.append(f"{source.name}: {source.rows:,} rows, {source.samples:,} samples{left}, {epochs}")
    for told in found.shares:
        lines.append(
            f"from sample {told['from_sample']:,}: {told['source']} {told['share']:.2%}, weight {told['weight']:.2%}"
        )
    if found.fault_count:
        lines += [f"FAULT {sentence}" for sentence in found.faults]
        more = found.fault_count - len(found.faults)
        lines.append(f"{found.fault_count} faults" + (f", of which {more} are not shown" if more > 0 else ""))
    else:
        lines.append("no repeat and no gap: every sample came once an epoch")
    return "\n".join(lines)
