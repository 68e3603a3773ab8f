"""The sizes of a run's batches while they grow: which steps have which, and how many rows they take in all."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from stellarbyte_jax.bounds import check_whole, require


class Growth(NamedTuple):
    """A size that doubles from `initial` to `final` in the first `steps` steps; without `initial` it is final at once.

    Each size before the final one holds for the same number of steps.
    """

    initial: int | None
    final: int
    steps: int

    @property
    def smallest(self) -> int:
        """The first size."""
        return self.final if self.initial is None else self.initial

    def starts(self) -> dict[int, int]:
        """The number of steps done when a size begins to hold -> the size, ascending."""
        if self.initial is None:
            return {0: self.final}
        doublings = (self.final // self.initial).bit_length() - 1
        sizes = {self.steps * n // doublings: self.initial << n for n in range(doublings)}
        return sizes | {self.steps: self.final}

    def check(self, section: str, name: str, of: str, max_steps: int) -> None:
        """Refuses a growth that is none, or that does not fit.

        section, name: `section`.initial_`name` and `section`.`name`_warmup_steps are its fields. of: the field of the
        final size.

        Raises:
            UserError: a field is refused; the error names it and its value.
        """
        initial, steps = f"{section}.initial_{name}", f"{section}.{name}_warmup_steps"
        if self.initial is None:
            require(self.steps == 0, steps, self.steps, f"grows from {initial}: set that, or leave this out")
            return
        check_whole(initial, self.initial, 1, otherwise=" or null")
        ratio, rest = divmod(self.final, self.initial)
        require(
            rest == 0 and ratio > 1 and ratio & (ratio - 1) == 0,
            initial,
            self.initial,
            f"must be a half, a quarter, an eighth … of {of} {self.final}, because it doubles until it is that",
        )
        doublings = ratio.bit_length() - 1
        check_whole(steps, self.steps, doublings)
        require(self.steps <= max_steps, steps, self.steps, f"is more than training.max_steps {max_steps}")


class Stage(NamedTuple):
    """Steps of one size: the number of steps before them, the rows of a batch, and the tokens of a row.

    A row of the data is cut into rows of `sequence_length` tokens, and `batch_size` counts rows of the data. So a step
    has as many tokens whatever its sequence_length is.
    """

    start: int
    batch_size: int
    sequence_length: int


def merged(batch_sizes: Growth, lengths: Growth) -> tuple[Stage, ...]:
    """The stages of a run, in order; the first starts at 0."""
    sizes, cuts = batch_sizes.starts(), lengths.starts()
    return tuple(Stage(start, _at(sizes, start), _at(cuts, start)) for start in sorted({*sizes, *cuts}))


def stage_of(stages: Sequence[Stage], step: int) -> Stage:
    """The stage of the next step when `step` steps are done."""
    return next(stage for stage in reversed(stages) if stage.start <= step)


def rows_between(stages: Sequence[Stage], start: int, stop: int) -> int:
    """The number of rows of the data that the steps after the first `start` take, up to step `stop`."""
    ends = [*(after.start for _, after in pairwise(stages)), max(stop, stages[-1].start)]
    spans = [
        (max(stage.start, start), min(end, stop), stage.batch_size) for stage, end in zip(stages, ends, strict=True)
    ]
    return sum(size * max(0, last - first) for first, last, size in spans)


def _at(starts: dict[int, int], step: int) -> int:
    return next(size for start, size in reversed(starts.items()) if start <= step)
