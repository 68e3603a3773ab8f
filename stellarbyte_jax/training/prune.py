"""Makes a new run from a run's model without its least important attention heads."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import Place, place
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, latest_step, save_imported
from stellarbyte_jax.config_file import save_config, to_dict
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.pruning import least_important, prune_heads
from stellarbyte_jax.training.evaluation import byte_lengths, evaluate, load_trained_run
from stellarbyte_jax.training.head_importance import head_importance
from stellarbyte_jax.training.state import Params, abstract_model
from stellarbyte_jax.training.step import make_eval_step


@dataclass(frozen=True)
class Pruning:
    """The result of pruning.

    heads: layer -> the heads that were removed. importance: each head's importance, [L, N]. before, after: the model's
    figures on the validation batches that were used.
    """

    step: int
    heads: dict[int, list[int]]
    importance: np.ndarray
    before: dict[str, float]
    after: dict[str, float]


def prune_run(
    run_dir: str | Place,
    output_dir: str | Path,
    count: int,
    *,
    whole_groups: bool = False,
    step: int | None = None,
    eval_batches: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    shards: str | None = None,
) -> Pruning:
    """Writes the run's model without its `count` least important heads to `output_dir`, as a run to train further.

    Importance is measured on the validation split (its first `eval_batches` batches, or all) of the run's token shards,
    or of those in `shards`: see head_importance.py. model.yaml in `output_dir` is the smaller model's config. A run
    that names `output_dir` in `init_from` may name model.yaml as its `model` or leave `model` out.

    Raises:
        UserError: there is no such run, it has no validation split or not so many heads, `eval_batches` is below 1, or
            `output_dir` holds a run already or is being written by another process.
    """
    if eval_batches is not None and eval_batches < 1:
        raise UserError(f"eval_batches {eval_batches} must be at least 1: leave it out to take the whole split")
    with folder_lock(output_dir, doing="prune"):
        return _prune(
            place(run_dir), Path(output_dir), count, whole_groups, step, eval_batches, shards, _over_passes(progress, 3)
        )


def _prune(
    run_dir: Place,
    output_dir: Path,
    count: int,
    whole_groups: bool,
    step: int | None,
    eval_batches: int | None,
    shards: str | None,
    passes: Iterator[Callable[[int, int], None]],
) -> Pruning:
    if latest_step(output_dir) is not None:
        raise UserError(f"{output_dir} holds checkpoints already: choose another folder for the pruned model")
    run = load_trained_run(run_dir, step, shards)

    def batches() -> Iterator[Mapping[str, Any]]:
        return run.validation_batches(eval_batches, next(passes))

    graphdef, _ = abstract_model(run.config.model, Execution(run.config.training.dtype))
    params: Params = jax.device_put(run.params)
    scores_LN = head_importance(graphdef, params, batches())
    heads = least_important(scores_LN, count, run.config.model, whole_groups)
    config, pruned = prune_heads(run.config.model, params, heads)

    bytes_a_token_V = byte_lengths(run.tokenizer, config.vocab_size)
    figures = []
    for model_config, model_params in ((run.config.model, params), (config, pruned)):
        eval_step = jax.jit(make_eval_step(abstract_model(model_config, Execution(run.config.training.dtype))[0]))
        figures.append(evaluate(eval_step, model_params, batches(), bytes_a_token_V))

    save_config(config, output_dir / "model.yaml")
    metadata = RunMetadata({"model": to_dict(config)}, run.tokenizer.files)
    try:
        save_imported(output_dir, pruned, metadata)
    except OSError as error:
        raise UserError(f"{output_dir} cannot be written: {error.strerror or error}") from error
    return Pruning(run.step, heads, scores_LN, *figures)


def _over_passes(progress: Callable[[int, int], None] | None, passes: int) -> Iterator[Callable[[int, int], None]]:
    """A progress function for each of several passes over the same batches; `progress` sees them as one pass."""
    for index in range(passes):

        def update(done: int, total: int, index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, passes * total)

        yield update
