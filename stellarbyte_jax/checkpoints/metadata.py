"""The metadata of a checkpoint: written with a checksum, and read with distrust, as a stranger may have made it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stellarbyte.config.build import build
from stellarbyte.config.nodes import locate
from stellarbyte.errors import UserError, shown
from stellarbyte.files import sha256_of_json
from stellarbyte.places import Place
from stellarbyte.reading import read_json_object
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.tokenizer import TOKENIZER_FILES

METADATA = "metadata"  # the checkpoint's item

# Items of arrays that a checkpoint may hold.
ITEMS = {"params", "opt_state", "ema", "pruned"}

# Fields of a model that change when what is pruned in training is cut out.
CUT_FIELDS = {"intermediate_size", "pruned_heads"}

_MOST_COUNT = 2**48  # of rows

_FIELDS = {"config", "tokenizer_files", "data_position", "base", "data", "guard", "uncut", "teacher", "checksums"}


@dataclass(frozen=True)
class Base:
    """Another run's checkpoint on which a run depends, with a fingerprint that shows whether it has changed."""

    run_dir: str
    step: int
    fingerprint: str


@dataclass(frozen=True)
class GuardState:
    """What a run remembers of steps that were not applied: see training/guard.py.

    rows_left_out: the number of rows that the run has passed over; they come on top of the rows of its steps.
    skipped_in_a_row: the number of batches that were left out since the last applied step.
    rollbacks_in_a_row: the number of rollbacks since the run has last saved a checkpoint that it may go back to.
    recent_losses: the losses of the last applied steps, oldest first, where spikes are told by them.
    """

    rows_left_out: int = 0
    skipped_in_a_row: int = 0
    rollbacks_in_a_row: int = 0
    recent_losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        counts = self.rows_left_out, self.skipped_in_a_row, self.rollbacks_in_a_row
        if not all(0 <= count < _MOST_COUNT for count in counts):
            raise UserError("its metadata has a guard with numbers that no run counts to")


@dataclass(frozen=True)
class RunMetadata:
    """The content of a checkpoint beside its arrays.

    config: `to_dict` of the RunConfig. For an imported model it has only "model", for imported adapters also "lora".
    tokenizer_files: file name -> text, as in `Tokenizer.files`.
    data_position: the place in the data from which the run goes on, such as {"step": 60, "rows": 480}: the steps done,
        and the rows of the data that these took since it began; a run of an earlier version has no rows, which were
        then step times batch size. With {"amendments": 2}, its config has the first two amendments of the run. If the
        sources' weights have changed, "mixture" has [the first row, the weights] of each.
    base: the checkpoint whose weights lie below the adapters, if the parameters are adapters alone.
    data: the identity of the training data; None for an imported model, and for a run of an earlier version.
    guard: what the run remembers of steps that were not applied; it is left out of the file if that is nothing.
    uncut: if what training.prune has pruned is cut out of the arrays, the fields of "model" in which `config` tells of
        it, as the run was given them; None if nothing is, and then it is left out of the file.
    teacher: the checkpoint that the run learns from; None if there is none, and then it is left out of the file.
    """

    config: dict[str, Any]
    tokenizer_files: dict[str, str]
    data_position: dict[str, Any] = field(default_factory=dict)
    base: Base | None = None
    data: DataIdentity | None = None
    guard: GuardState = GuardState()
    uncut: dict[str, Any] | None = None
    teacher: Base | None = None

    @property
    def model(self) -> dict[str, Any]:
        """The model's part of `config`; raises UserError if there is none."""
        model = self.config.get("model")
        if not isinstance(model, dict):
            raise UserError("the checkpoint says nothing of the model that it holds: choose another one")
        return model


class Stored(NamedTuple):
    """The metadata; the checksums of each item's arrays; whether the metadata had a checksum, which was then right."""

    metadata: RunMetadata
    sums: dict[str, dict[str, int]]
    is_checked: bool


def to_stored(metadata: RunMetadata, sums: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The metadata and its checksum, ready to be saved as JSON."""
    content = dataclasses.asdict(metadata) | {"checksums": sums}
    if metadata.guard == GuardState():
        del content["guard"]
    for name in ("uncut", "teacher"):
        if content[name] is None:
            del content[name]
    return content | {"sha256": sha256_of_json(content)}


def read_metadata(checkpoint: Place) -> Stored:
    """The metadata in a checkpoint's folder.

    Raises:
        ValueError: it is missing or damaged, or does not have the form in which a run saves it.
    """
    try:
        content = read_json_object(checkpoint / METADATA / METADATA)
        sha256 = content.pop("sha256", None)
        if sha256 is not None and sha256 != sha256_of_json(content):
            raise UserError("its config, tokenizer or checksums are not what was saved")
        return Stored(_metadata(content), _sums(content.get("checksums")), sha256 is not None)
    except UserError as error:
        raise ValueError(str(error)) from None  # not for the user yet: another checkpoint may be whole


def _metadata(content: Mapping[str, Any]) -> RunMetadata:
    config, files, position = (content.get(name) for name in ("config", "tokenizer_files", "data_position"))
    base, data, guard, teacher = (content.get(name) for name in ("base", "data", "guard", "teacher"))
    unknown = content.keys() - _FIELDS
    if unknown:  # it may be a known name that was damaged, such as the checksum's
        raise UserError(f"its metadata has {shown(min(unknown))}, which is none of its fields")
    if not isinstance(config, dict):
        raise UserError("its metadata has no config")
    if not isinstance(position, dict):
        raise UserError("its metadata has no position in the data")
    for name in ("rows", "amendments"):
        if type(count := position.get(name, 0)) is not int or not 0 <= count < _MOST_COUNT:
            raise UserError(f"its metadata has the position in the data {name} {shown(count)}, which counts nothing")
    if "mixture" in position and not _is_mixture(position["mixture"]):
        raise UserError(f"its metadata has the weights of sources {shown(position['mixture'])}, which are none")
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise UserError("its metadata has no tokenizer")
    for name in files:  # an export copies all of them, so an unknown file could become its code or its config
        if name not in TOKENIZER_FILES:
            raise UserError(f"its tokenizer has the file {shown(name)}, which is none of {', '.join(TOKENIZER_FILES)}")
    if base is not None and not isinstance(config.get("lora"), dict):
        raise UserError("its metadata has a base, but no adapters")
    uncut = content.get("uncut")
    if uncut is not None and _object(uncut, "model before a cut").keys() != CUT_FIELDS:
        raise UserError(f"its metadata has other fields of the model before a cut than {', '.join(sorted(CUT_FIELDS))}")
    where = "its metadata"
    return RunMetadata(
        config,
        files,
        position,
        None if base is None else build(Base, locate(_object(base, "base"), where)),
        None if data is None else build(DataIdentity, locate(_object(data, "data"), where)),
        GuardState() if guard is None else build(GuardState, locate(_object(guard, "guard"), where)),
        uncut,
        None if teacher is None else build(Base, locate(_object(teacher, "teacher"), where)),
    )


def _is_mixture(value: Any) -> bool:
    """Whether it is a list of [first row, weights], ascending from row 0."""
    if not isinstance(value, list) or not value:
        return False
    for segment in value:
        if not isinstance(segment, list) or len(segment) != 2 or not isinstance(segment[1], list) or not segment[1]:
            return False
        if type(segment[0]) is not int or not all(
            type(weight) in (int, float) and 0 < weight < math.inf for weight in segment[1]
        ):
            return False
    firsts, counts = [first for first, _ in value], {len(weights) for _, weights in value}
    return firsts[0] == 0 and firsts == sorted(set(firsts)) and firsts[-1] < _MOST_COUNT and len(counts) == 1


def _sums(sums: Any) -> dict[str, dict[str, int]]:
    if not isinstance(sums, dict) or "params" not in sums or not sums.keys() <= ITEMS:
        raise UserError("its metadata has not the checksums of a run's arrays")
    for of_item in sums.values():
        if not isinstance(of_item, dict) or not all(type(value) is int for value in of_item.values()):
            raise UserError("its metadata has checksums that are no numbers")
    return sums


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"its metadata has a {name} without fields")
    return value
