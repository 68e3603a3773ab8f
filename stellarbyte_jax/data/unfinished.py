"""What a folder of token shards notes while it is unfinished: what it is to hold and how far it is."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stellarbyte.config.build import build
from stellarbyte.config.nodes import locate
from stellarbyte.errors import UserError
from stellarbyte.files import write_json
from stellarbyte.reading import read_json_object
from stellarbyte_jax.data.encoding_ahead import Position
from stellarbyte_jax.data.manifest import SPLITS
from stellarbyte_jax.data.recipe import Recipe
from stellarbyte_jax.data.shard_writer import ShardWriter, SplitState

RECIPE_NAME, POSITION_NAME = "recipe.json", "position.json"


@dataclass(frozen=True)
class _Reached:
    """What an unfinished folder notes of how far it is."""

    position: Position
    splits: Mapping[str, SplitState]


def save_position(
    folder: Path, position: Position, states: dict[str, SplitState], writers: dict[str, ShardWriter]
) -> None:
    """Note how far the folder is, once what is written so far is on the disk."""
    for writer in writers.values():
        writer.flush()
    write_json(folder / POSITION_NAME, asdict(_Reached(position, states)))


def load_position(
    folder: Path, recipe: Recipe, report: Callable[[str], None]
) -> tuple[Position, dict[str, SplitState]] | None:
    """Where an interrupted run stopped; None if it wrote nothing, or if what it wrote is not all there."""
    path = folder / POSITION_NAME
    if not path.exists():
        return None
    try:
        reached = build(_Reached, locate(read_json_object(path), str(path)))
        position, states = reached.position, {split: reached.splits[split] for split in SPLITS}
    except (UserError, KeyError) as error:
        report(f"{error}: preparing from the start.")
        return None
    for split, state in states.items():
        if not ShardWriter.is_intact(folder, split, recipe.item_dtype, recipe.tokens_per_shard, state):
            report(f"The interrupted {split} shards in {folder} are not all there: preparing from the start.")
            return None
    return position, states


def load_recipe(folder: Path, report: Callable[[str], None]) -> Recipe | None:
    """What an unfinished folder is to hold; None if that is not to be read there."""
    path = folder / RECIPE_NAME
    if not path.exists():
        return None
    try:
        return Recipe.from_dict(read_json_object(path), str(path))
    except UserError as error:
        report(f"{error}: preparing from the start.")
        return None
