"""Loads and saves a run's checkpoint as the converter needs it: parameters, the model's config and the tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass

from convert.weights import Params
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte.places import Place
from stellarbyte_jax.config_file import model_config_from_dict, save_config, to_dict


@dataclass(frozen=True)
class RunCheckpoint:
    """The content of one checkpoint of a run; `tokenizer_files` maps file names to texts.

    has_figures: whether the run's validations measured these parameters, and not their average or the reverse.
    """

    params: Params
    config: ByteConfig
    tokenizer_files: Mapping[str, str]
    step: int
    has_figures: bool = True


def load(run_dir: Place, step: int | None = None, *, ema: bool = False) -> RunCheckpoint:
    """The checkpoint of `step`, or the newest, with adapters merged into their base; no model is built.

    ema: whether to load the moving average of the parameters instead of them.

    Raises:
        UserError: there is no such run or step, or the checkpoint is broken.
    """
    # Orbax takes seconds to import; a mistake in the command line should not wait for it.
    from stellarbyte_jax.checkpoints.lora_base import load_weights

    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a folder: give the output_dir of a run")
    params, metadata, found = load_weights(run_dir, step, ema=ema)
    where = f"the checkpoint of step {found} in {run_dir}"
    training = metadata.config.get("training")
    measured_ema = isinstance(training, dict) and training.get("eval_ema") is True
    config = model_config_from_dict(metadata.model, where)
    return RunCheckpoint(params, config, metadata.tokenizer_files, found, has_figures=ema == measured_ema)


def save(run_dir: Place, checkpoint: RunCheckpoint) -> None:
    """Writes a model that was trained elsewhere as the first checkpoint of a new run."""
    from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, save_imported

    save_config(checkpoint.config, run_dir / "model.yaml")  # for `init_from`
    metadata = RunMetadata({"model": to_dict(checkpoint.config)}, dict(checkpoint.tokenizer_files))
    save_imported(run_dir, checkpoint.params, metadata)
