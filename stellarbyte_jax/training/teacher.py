"""The model that a run learns from: found, checked, and placed on the run's mesh."""

from dataclasses import dataclass, replace
from typing import Self

import jax
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte.places import place
from stellarbyte_jax.checkpoints.array_files import check_finite_weights
from stellarbyte_jax.checkpoints.checkpoint import (
    Base,
    RunMetadata,
    checkpoint_steps,
    fingerprint,
    latest_step,
    load_metadata,
    restore_params,
)
from stellarbyte_jax.checkpoints.needed import note_needed
from stellarbyte_jax.config import ByteConfig, RunConfig
from stellarbyte_jax.config_file import model_config_from_dict
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.run_folder import check_is_run
from stellarbyte_jax.sharding import Layout, param_shardings
from stellarbyte_jax.training.state import Params, abstract_model, init_params, run_execution

_FIELD = "training.distill.teacher"


@dataclass(frozen=True)
class Teacher:
    """A run's teacher before its weights are read.

    checkpoint: the one that teaches. model: its config. shardings: those of its parameters, spread as the run's own.
    """

    checkpoint: Base
    model: ByteConfig
    graphdef: nnx.GraphDef
    shardings: Params

    @classmethod
    def of(
        cls, config: RunConfig, layout: Layout, tokenizer: Tokenizer | None = None, platform: str = "auto"
    ) -> Self | None:
        """The teacher of a run whose arrays lie by this layout; None if it has none.

        A run that goes on keeps the checkpoint that it has learnt from. tokenizer: the run's own; None if it is only
        planned.

        Raises:
            UserError: there is no such checkpoint, it is another than the one that the run has learnt from, it holds
                adapters alone, another vocabulary or tokenizer, its context is too short, or the mesh does not divide
                it.
        """
        found = find_teacher(config, tokenizer)
        if found is None:
            return None
        checkpoint, model = found
        execution = replace(run_execution(config, layout, platform), remat="none", weight_grid=None)
        try:
            graphdef, abstract = abstract_model(model, execution)
            return cls(checkpoint, model, graphdef, param_shardings(abstract, layout))
        except UserError as error:
            raise UserError(f"{_FIELD} {checkpoint.run_dir}: {error}") from error

    def weights(self, student: str, processes: Processes = ALONE) -> Params:
        """The teacher's parameters, each read onto its own devices; the teacher's run is told that `student` needs it.

        Raises:
            UserError: they cannot be read, or are not finite.
        """
        if processes.index == 0:
            note_needed(self.checkpoint.run_dir, self.checkpoint.step, student)
        return self.read(processes)

    def read(self, processes: Processes = ALONE) -> Params:
        """The same parameters, of which nobody is told."""
        run_dir, step = self.checkpoint.run_dir, self.checkpoint.step
        arrays = jax.tree.map(
            lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
            jax.eval_shape(lambda: init_params(self.model, 0)),
            self.shardings,
        )
        params, _ = restore_params(run_dir, arrays, step, processes)
        check_finite_weights(params, f"{_FIELD} {run_dir}/checkpoints/{step}")
        return params


def find_teacher(config: RunConfig, tokenizer: Tokenizer | None = None) -> tuple[Base, ByteConfig] | None:
    """(the checkpoint that teaches a run, its model without dropout); None without one. Raises as Teacher.of."""
    if config.training.distill is None:
        return None
    checkpoint, metadata = _checkpoint(config)
    model = model_config_from_dict(metadata.model, f"{checkpoint.run_dir}/checkpoints/{checkpoint.step}")
    model = replace(model, attention_dropout=0.0, hidden_dropout=0.0, residual_dropout=0.0, drop_path_rate=0.0)
    _check_fits(config, model, checkpoint.run_dir)
    if tokenizer is not None:
        _check_tokenizer(config, metadata, tokenizer, checkpoint.run_dir)
    return checkpoint, model


def _checkpoint(config: RunConfig) -> tuple[Base, RunMetadata]:
    """The checkpoint that teaches, and its metadata."""
    distill = config.training.distill
    assert distill is not None
    run_dir, known = distill.teacher, None
    check_is_run(place(run_dir), _FIELD)
    if latest_step(config.output_dir) is not None:
        known = load_metadata(config.output_dir)[0].teacher
    step = distill.teacher_step if known is None else known.step
    there = checkpoint_steps(run_dir)
    if step is not None and step not in there:
        steps = f"only of {', '.join(map(str, there))}" if there else "and no other"
        wanted = (
            f"training.distill.teacher_step {step}" if known is None else f"step {step}, from which this run learns"
        )
        raise UserError(f"{_FIELD} {run_dir} holds no checkpoint of {wanted}, {steps}: bring it back, or name another")
    metadata, step = load_metadata(run_dir, step)
    found = Base(run_dir, step, fingerprint(run_dir, step))
    if known is not None and found.fingerprint != known.fingerprint:
        raise UserError(
            f"{config.output_dir} learns from step {known.step} of {known.run_dir}, and {_FIELD} {run_dir} has other "
            "weights there: name the run's own teacher, or choose another output_dir"
        )
    if metadata.base is not None:
        raise UserError(
            f"{_FIELD} {run_dir} holds adapters on {metadata.base.run_dir}: make one model of both with `stellarbyte "
            "convert to-hf`, and name that"
        )
    return found, metadata


def _check_fits(config: RunConfig, model: ByteConfig, run_dir: str) -> None:
    if model.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{_FIELD} {run_dir} has a vocabulary of {model.vocab_size}, and model.vocab_size is "
            f"{config.model.vocab_size}: a teacher and its student share one"
        )
    length = config.data.sequence_length + config.training.position_shift
    if model.max_position_embeddings < length:
        raise UserError(
            f"{_FIELD} {run_dir} has {model.max_position_embeddings} positions, fewer than data.sequence_length "
            f"{config.data.sequence_length} and training.position_shift {config.training.position_shift} together are: "
            "lower them"
        )
    try:
        model.check_xpos_range(config.training.dtype)
    except UserError as error:
        raise UserError(f"{_FIELD} {run_dir}: {error}") from error


def _check_tokenizer(config: RunConfig, metadata: RunMetadata, tokenizer: Tokenizer, run_dir: str) -> None:
    if Tokenizer(metadata.tokenizer_files, f"of {run_dir}").sha256 != tokenizer.sha256:
        raise UserError(
            f"{_FIELD} {run_dir} has another tokenizer than data.tokenizer {config.data.tokenizer}: a teacher and its "
            "student share one, so prepare the data with the teacher's"
        )
