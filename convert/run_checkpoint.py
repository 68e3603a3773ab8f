"""Loads and saves a run's checkpoint as the converter needs it: parameters, the model's config and the tokenizer."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from convert.weights import Params
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json
from stellarbyte.journal import Journal
from stellarbyte.places import Place
from stellarbyte.reading import read_json_object
from stellarbyte_jax.checkpoints.folders import checkpoints_of
from stellarbyte_jax.checkpoints.imported import save_imported
from stellarbyte_jax.checkpoints.metadata import RunMetadata
from stellarbyte_jax.checkpoints.opened import fingerprint
from stellarbyte_jax.checkpoints.whole_model import open_weights
from stellarbyte_jax.config_file import model_config_from_dict, save_config, to_dict


@dataclass(frozen=True)
class RunCheckpoint:
    """The content of one checkpoint of a run; `tokenizer_files` maps file names to texts.

    source: a hash by which one checkpoint is told from another.
    has_figures: whether the run's validations measured these parameters, and not their average or the reverse.
    """

    params: Params
    config: ByteConfig
    tokenizer_files: Mapping[str, str]
    step: int
    has_figures: bool = True
    source: str = ""


# Stands for the best checkpoint of a run wherever a step is asked for.
BEST: Literal["best"] = "best"
Step = int | Literal["best"]


def step_of(run_dir: Place, step: Step | None) -> int | None:
    """The number of a step. Raises UserError if the best is asked for, and none of the checkpoints was validated."""
    if step != BEST:
        return step
    from stellarbyte_jax.checkpoints.listing import best_step

    return best_step(run_dir)


def load(run_dir: Place, step: Step | None = None, *, ema: bool = False) -> RunCheckpoint:
    """The checkpoint of `step`, or the newest, with adapters merged into their base; no model is built.

    The values of its parameters are read when they are asked for, a layer at a time; if they turn out to be broken, it
    is that which raises UserError.

    ema: whether to load the moving average of the parameters instead of them.

    Raises:
        UserError: there is no such run or step, or the checkpoint is broken.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a folder: give the output_dir of a run")
    params, metadata, found = open_weights(run_dir, step_of(run_dir, step), ema=ema)
    where = f"the checkpoint of step {found} in {run_dir}"
    training = metadata.config.get("training")
    measured_ema = isinstance(training, dict) and training.get("eval_ema") is True
    config = model_config_from_dict(metadata.model, where)
    # The sums in the fingerprint can be equal by chance or intent, and Orbax notes the time.
    saved: dict[str, Any] = {}
    with suppress(UserError):
        saved = read_json_object(checkpoints_of(run_dir) / str(found) / "_CHECKPOINT_METADATA")
    source = sha256_of_json([fingerprint(run_dir, found, ema=ema), dataclasses.asdict(metadata), saved])
    return RunCheckpoint(
        params, config, metadata.tokenizer_files, found, has_figures=ema == measured_ema, source=source
    )


def save(
    run_dir: Place,
    checkpoint: RunCheckpoint,
    progress: Callable[[int, int], None] = lambda *_: None,
    journal: Journal | None = None,
) -> None:
    """Writes a model that was trained elsewhere as the first checkpoint of a new run, as `save_imported` does."""
    save_config(checkpoint.config, run_dir / "model.yaml")  # for `init_from`
    metadata = RunMetadata({"model": to_dict(checkpoint.config)}, dict(checkpoint.tokenizer_files))
    save_imported(run_dir, checkpoint.params, metadata, progress, journal)
