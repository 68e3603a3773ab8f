"""Saves and loads how far an unfinished folder of token shards is, and the recipe of its content."""

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
    """How far an unfinished folder is, as it is saved there."""

    position: Position
    splits: Mapping[str, SplitState]


def save_position(
    folder: Path, position: Position, states: dict[str, SplitState], writers: dict[str, ShardWriter]
) -> None:
    """Saves how far the folder is, after everything written so far is on the disk."""
    for writer in writers.values():
        writer.flush()
    write_json(folder / POSITION_NAME, asdict(_Reached(position, states)))


def load_position(
    folder: Path, recipe: Recipe, report: Callable[[str], None]
) -> tuple[Position, dict[str, SplitState]] | None:
    """Where an interrupted `prepare` stopped; None if it wrote nothing, or if its files are not all there."""
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
    """The recipe of an unfinished folder; None if it has none that can be read."""
    path = folder / RECIPE_NAME
    if not path.exists():
        return None
    try:
        return Recipe.from_dict(read_json_object(path), str(path))
    except UserError as error:
        report(f"{error}: preparing from the start.")
        return None
