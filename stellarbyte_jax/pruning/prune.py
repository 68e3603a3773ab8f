"""Makes a new run from a run's model without what matters least."""

import gc
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend.backend import clear_backends

from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import Place
from stellarbyte.progress import Update
from stellarbyte.pruning.choice import check_wanted, choose
from stellarbyte.pruning.recover import Recovery
from stellarbyte.pruning.report import Figures, Report, report
from stellarbyte.pruning.request import Request
from stellarbyte.pruning.scores import scores
from stellarbyte.pruning.times import PROMPT, times
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, latest_step, save_imported
from stellarbyte_jax.config_file import load_run_config, save_config, to_dict
from stellarbyte_jax.data.loader import Take, TrainLoader
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.pruning import cut
from stellarbyte_jax.run_folder import MODEL
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training.evaluation import TrainedRun, byte_lengths, evaluate, load_trained_run
from stellarbyte_jax.training.given import Given
from stellarbyte_jax.training.importance import measure_importance
from stellarbyte_jax.training.state import Params, abstract_model
from stellarbyte_jax.training.step import make_eval_step
from stellarbyte_jax.training.teacher import find_teacher


def prune_run(
    run_dir: str | Place,
    output_dir: Path,
    request: Request,
    *,
    step: int | None = None,
    shards: str | None = None,
    progress: Update = lambda _done, _whole: None,
) -> list[Report]:
    """Writes the run's model, pruned to the last of the request's shares, to `output_dir`; returns a report a share.

    Scores are measured on rows of the training split of the run's token shards, or of those in `shards`, and losses on
    the validation split. Adapters are merged into their base before. model.yaml in `output_dir` is the smaller model's
    config. A run that names `output_dir` in `init_from` may leave `model` out. With `request.recovery` the pruned model
    is trained on in `output_dir` itself.

    Raises:
        UserError: there is no such run, the request does not fit its model, `output_dir` holds a run already or is
            being written by another process, or the training fails.
        Interrupted: a signal has ended the training.
    """
    with folder_lock(output_dir, doing="prune"):
        if latest_step(output_dir) is not None:
            raise UserError(f"{output_dir} holds checkpoints already: choose another folder for the pruned model")
        run = load_trained_run(run_dir, step, shards)
        if request.recovery is not None:  # before the work that takes minutes
            _check_recovery(request.recovery, run, _overrides(request.recovery, run_dir, output_dir, step))
        for wanted in request.each():
            check_wanted(vars(run.config.model), wanted)
        reports, (config, params) = _pruned(run, request, _over_passes(progress, 1 + len(request.keeps)))
        save_config(config, output_dir / MODEL)
        try:
            save_imported(output_dir, params, RunMetadata({"model": to_dict(config)}, run.tokenizer.files))
        except OSError as error:
            raise UserError(f"{output_dir} cannot be written: {error.strerror or error}") from error
    if request.recovery is not None:
        words = _overrides(request.recovery, run_dir, output_dir, step)
        # The training is another process, and an accelerator belongs to one at a time, or its memory does.
        del params
        run = replace(run, params={})
        gc.collect()
        clear_backends()
        request.recovery.train("pretrain", ["--model", str(output_dir / MODEL), *words], output_dir, reports)
        params = load_trained_run(output_dir, None, shards).params
        after = _figures(config, jax.device_put(params), run, request, progress)
        reports.append(reports[-1].recovered(after, f"it is in {output_dir}"))
    return reports


def _overrides(recovery: Recovery, run_dir: str | Place, output_dir: Path, step: int | None) -> list[str]:
    """What is put over a config for recovery; its model as well."""
    words = ["--output_dir", str(output_dir), "--init_from", "null"]
    if recovery.distill:
        words += ["--training.distill.teacher", str(run_dir)]
        words += [] if step is None else ["--training.distill.teacher_step", str(step)]
    return words


def _check_recovery(recovery: Recovery, run: TrainedRun, overrides: list[str]) -> None:
    """Refuses a config by which the pruned model could not be trained; raises UserError."""
    model = json.dumps(to_dict(run.config.model))
    config = load_run_config(recovery.config, [f"--model={model}", *overrides])
    if config.lora is not None or config.training.prune is not None:
        name = "training.prune" if config.lora is None else "lora"
        raise UserError(
            f"--recover {recovery.config} has {name}, and what is pruned is trained whole: leave that section out"
        )
    make_mesh(config.mesh)
    given = Given.of(config)
    if given.tokenizer.sha256 != run.tokenizer.sha256:
        raise UserError(
            f"--recover {recovery.config} has another tokenizer than the run, data.tokenizer {config.data.tokenizer}: "
            "name a config with data of the run's own"
        )
    find_teacher(config, given.tokenizer)


def _over_passes(progress: Update, passes: int) -> Iterator[Update]:
    """A progress function for each of several passes over the same batches; `progress` sees them as one pass."""
    for index in range(passes):

        def update(done: int, whole: int | None, index: int = index) -> None:
            if whole is not None:
                progress(index * whole + done, passes * whole)

        yield update


def _pruned(
    run: TrainedRun, request: Request, passes: Iterator[Update]
) -> tuple[list[Report], tuple[ByteConfig, Params]]:
    """(a report a share, the model of the last one)."""
    model, params = run.config.model, jax.device_put(run.params)
    fields = vars(model)
    graphdef, _ = abstract_model(model, Execution(run.config.training.dtype))
    found = scores(measure_importance(graphdef, params, _calibration(run, request.samples)), request.importance)
    before = _figures(model, params, run, request, next(passes))
    reports, smaller = [], (model, params)
    for wanted in request.each():
        choice = choose(fields, found, wanted)
        smaller = cut(model, run.params, choice.cuts)
        after = _figures(smaller[0], jax.device_put(smaller[1]), run, request, next(passes))
        reports.append(report(fields, choice, wanted.keep, wanted.by, before, after))
    return reports, smaller


def _calibration(run: TrainedRun, samples: int) -> Iterator[Mapping[str, Any]]:
    """Batches of the first rows that training reads."""
    size = min(run.config.training.batch_size, samples)
    loader = TrainLoader(run.config.data, run.manifest, run.config.seed)
    for first in range(0, samples, size):
        yield loader.batch(Take(first, range(min(size, samples - first))))


def _figures(config: ByteConfig, params: Params, run: TrainedRun, request: Request, progress: Update) -> Figures:
    graphdef, _ = abstract_model(config, Execution(run.config.training.dtype))
    batches = run.validation_batches(request.eval_batches, progress)
    lengths_V = byte_lengths(run.tokenizer, config.vocab_size)
    losses = evaluate(jax.jit(make_eval_step(graphdef)), params, batches, lengths_V)
    prefill, decode = _times(nnx.merge(graphdef, params))
    nbytes = sum(array.nbytes for array in jax.tree.leaves(params))
    return Figures.of(
        vars(config),
        nbytes=nbytes,
        loss=losses["loss"],
        perplexity=losses["perplexity"],
        prefill_seconds=prefill,
        decode_seconds=decode,
    )


def _times(model: Any) -> tuple[float, float]:
    """See stellarbyte.pruning.times."""
    generator, config = Generator(model), model.config
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, min(PROMPT, config.context_length // 2)).tolist()
    return times(lambda new: len(generator.generate([prompt], new)[0]), config.context_length - len(prompt))
