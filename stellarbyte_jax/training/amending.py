"""Amends a run that goes on differently: records the change, and tells what follows from it."""

import dataclasses
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte_jax.amendments import AMENDMENTS, Amendment, append_amendment
from stellarbyte_jax.checkpoints.checkpoint import GuardState, RunMetadata
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import run_config_from_dict, to_dict
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.mixture import Segment
from stellarbyte_jax.training.same_run import GoingOn, pending_amendments
from stellarbyte_jax.training.schedules import learning_rate_schedule


class Resumed(NamedTuple):
    """What a run goes on with.

    rows: the rows of its data that its steps have taken; from 0 again where it goes on with other data.
    guard: what it remembers of steps that were not applied; on other data no rows were left out.
    amendments: the number of its last amendment, 0 if there is none.
    remarks: what the user is told, line by line.
    segments: the weights that the sources of its data have had from which of its rows on; none if they have no weights.
    part: the number of the amendment by which its data began anew, 0 if they never did.
    """

    rows: int
    guard: GuardState
    amendments: int
    remarks: list[str]
    segments: tuple[Segment, ...] = ()
    part: int = 0

    def position(self, step: int, rows: int) -> dict[str, Any]:
        """A checkpoint's position in the data, after so many steps and rows; with the weights if they have changed."""
        position: dict[str, Any] = {"step": step, "rows": rows}
        if self.amendments:
            position["amendments"] = self.amendments
        if len(self.segments) > 1:
            position["mixture"] = [[segment.first, list(segment.weights)] for segment in self.segments]
        return position


def resume(
    config: RunConfig,
    data: DataIdentity,
    metadata: RunMetadata | None,
    step: int,
    going_on: GoingOn,
    *,
    amend: bool,
    writes: bool,
) -> Resumed:
    """What the run goes on with after `step` steps; a change of its config is recorded before it has any effect.

    metadata: that of the checkpoint of `step`; None for a new run. amend: whether the user asked for changes. writes:
    whether this process writes the record.

    Raises:
        UserError: the record cannot be written, or the checkpoint contradicts itself.
    """
    made = 0 if metadata is None else metadata.data_position.get("amendments", 0)
    made = max([made, *(amendment.number for amendment in going_on.amendments)])
    rows, guard = (0, GuardState()) if metadata is None else _place(metadata, step, going_on.amendments)
    segments = _segments(config, metadata, going_on.amendments)
    part = max((each.number for each in going_on.amendments if each.data is not None), default=0)
    if not going_on.changes:
        remarks = ["--amend: nothing has changed, so nothing is recorded"] if amend else []
        return Resumed(rows, guard, made, remarks, segments, part)
    assert going_on.before is not None
    amendment = Amendment(
        number=made + 1,
        step=step,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        changes={name: (was, now) for name, was, now in going_on.changes},
        rows=rows + guard.rows_left_out,
        before=to_dict(going_on.before),
        config=to_dict(config),
        data=dataclasses.asdict(data) if going_on.restarts_data else None,
    )
    if writes:
        append_amendment(config.output_dir, amendment)
    remarks = [
        f"amended {amendment} (recorded in {config.output_dir}/{AMENDMENTS})",
        rate_told(step, config, going_on.before),
    ]
    if going_on.restarts_data:
        remarks.append(f"data: {amendment.rows} rows of the old were taken; the new begin with their first epoch")
        rows, guard, part = 0, dataclasses.replace(guard, rows_left_out=0), amendment.number
    return Resumed(rows, guard, amendment.number, remarks, remixed(segments, amendment, config.data.weights), part)


def rate_told(step: int, config: RunConfig, before: RunConfig) -> str:
    """What the learning rate does from here on, in words."""
    optimizer, last = config.optimizer, config.training.max_steps
    rates = learning_rate_schedule(optimizer, last, np)
    was = learning_rate_schedule(before.optimizer, before.training.max_steps, np)
    text = f"rate: was {was(step - 1):.1e} at step {step}" if step else "rate:"
    if step >= last:
        return f"{text}; there are no steps after it"
    then = f"{optimizer.lr_scheduler_type} to {rates(last - 1):.1e} at step {last}"
    return f"{text}, is {rates(step):.1e} from step {step + 1} on, {then}"


def remixed(
    segments: tuple[Segment, ...], amendment: Amendment, weights: tuple[float, ...] | None
) -> tuple[Segment, ...]:
    """The segments of the data's mixture once the sources have these weights, by an amendment.

    It may be one that an interrupted run has made at a later row than those of an older checkpoint, from which the run
    goes on; up to that row, the weights are then those from before.
    """
    if weights is None:
        return ()
    if amendment.data is not None:
        return (Segment(0, weights),)
    if segments[-1].weights == weights:
        return segments
    kept = tuple(segment for segment in segments if segment.first < amendment.rows)
    if kept and kept[-1].weights == weights:
        return kept
    return (*kept, Segment(amendment.rows, weights))


def _segments(
    config: RunConfig, metadata: RunMetadata | None, amendments: tuple[Amendment, ...]
) -> tuple[Segment, ...]:
    """The segments that the checkpoint knows, and those of amendments since."""
    if metadata is None or "data" not in metadata.config:
        return () if config.data.weights is None else (Segment(0, config.data.weights),)
    weights = run_config_from_dict(metadata.config, "the checkpoint").data.weights
    segments: tuple[Segment, ...] = () if weights is None else (Segment(0, weights),)
    if "mixture" in metadata.data_position:
        segments = tuple(Segment(first, tuple(each)) for first, each in metadata.data_position["mixture"])
        if segments[-1].weights != weights:
            raise UserError(
                f"the checkpoint of {config.output_dir} says that its sources have the weights {segments[-1].weights}, "
                f"but its config gives them {weights}: no run wrote it, so move it away"
            )
    for amendment in pending_amendments(metadata, amendments):
        weights = run_config_from_dict(amendment.config, f"{config.output_dir}/{AMENDMENTS}").data.weights
        segments = remixed(segments, amendment, weights)
    return segments


def _place(metadata: RunMetadata, step: int, amendments: tuple[Amendment, ...]) -> tuple[int, GuardState]:
    if any(amendment.data is not None for amendment in pending_amendments(metadata, amendments)):
        return 0, dataclasses.replace(metadata.guard, rows_left_out=0)
    rows = metadata.data_position.get("rows")
    if rows is None and step > 0:  # a run of an earlier version, whose batches had one size
        rows = step * run_config_from_dict(metadata.config, "the checkpoint").training.batch_size
    return int(rows or 0), metadata.guard
