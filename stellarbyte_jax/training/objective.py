"""What a training step makes small: the loss of a micro-batch, as a function of the parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.training.distillation import TeacherOutput
from stellarbyte_jax.training.logit_loss import PLAIN, Regularization
from stellarbyte_jax.training.loss import LossSums, token_loss
from stellarbyte_jax.training.position_shift import shifted
from stellarbyte_jax.training.router_loss import RouterSums, router_loss, router_sums
from stellarbyte_jax.training.state import Params
from stellarbyte_jax.training.zeta_loss import zeta_loss

Batch = dict[str, jax.Array]

# Parameters are drawn from the same seed; this number gives dropout a random stream of its own.
_DROPOUT_STREAM = 0xD207


class Objective(NamedTuple):
    """The objective of make_train_step, of whose arguments these are some."""

    gradient_accumulation_steps: int
    seed: int
    regularization: Regularization
    position_shift: int
    xpos_regularization_coef: float
    teacher: nnx.GraphDef[ByteForCausalLM] | None

    @classmethod
    def of(cls, config: RunConfig, teacher: nnx.GraphDef[ByteForCausalLM] | None) -> "Objective":
        """That of a run."""
        training = config.training
        return cls(
            training.gradient_accumulation_steps,
            config.seed,
            Regularization.of(training),
            training.position_shift,
            training.xpos_regularization_coef,
            teacher,
        )

    def whole_batch(self, batch: Batch, step: jax.Array) -> Batch:
        """The batch of the step after `step` steps, with its positions as they are in that step."""
        return shifted(batch, self.position_shift, self.seed, step) if self.position_shift else batch

    def dropout_keys(self, model: ByteForCausalLM, step: jax.Array) -> jax.Array | None:
        """The key of each micro-batch of the step after `step` steps; None if nothing is dropped."""
        if not model.model.stochastic:
            return None
        stream = jax.random.fold_in(jax.random.key(self.seed), _DROPOUT_STREAM)
        return jax.random.split(jax.random.fold_in(stream, step), self.gradient_accumulation_steps)

    def mean_loss(
        self,
        model: ByteForCausalLM,
        params: Params,
        rows: Batch,
        dropout_key: jax.Array | None,
        batch: Batch,
        taught_by: Params | None,
    ) -> tuple[jax.Array, tuple[LossSums, RouterSums | None]]:
        """A micro-batch's part of the loss, which is a mean over the whole batch's labels.

        Args:
            model: the model with these parameters.
            params: those that are trained.
            rows: the micro-batch.
            dropout_key: its key.
            batch: the whole batch.
            taught_by: the teacher's parameters.
        """
        config, tokens = model.config, jnp.sum(batch["labels"] != IGNORED_LABEL, dtype=jnp.float32)
        teacher = None if self.teacher is None else _teacher_output(self.teacher, taught_by, rows)
        sums, router = forward(
            model, rows, dropout_key, training=True, regularization=self.regularization, teacher=teacher
        )
        loss = sums.objective / jnp.maximum(tokens, 1)
        if router is not None:
            loss += router_loss(config, router, batch)
        if self.xpos_regularization_coef:  # in equal parts, as the losses of micro-batches are added up
            assert config.head_dim is not None
            penalty = zeta_loss(params, config.head_dim)
            loss += self.xpos_regularization_coef / self.gradient_accumulation_steps * penalty
        return loss, (sums, router)


def in_micro_batches(batch: Batch, steps: int) -> Batch:
    """The arrays with an axis of micro-batches in front.

    Micro-batch i takes rows i, i + steps, …, so that each device keeps its own rows of a batch that is on a mesh.
    """
    return jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1), batch)


def forward(
    model: ByteForCausalLM,
    batch: Batch,
    dropout_key: jax.Array | None,
    training: bool,
    regularization: Regularization = PLAIN,
    teacher: TeacherOutput | None = None,
) -> tuple[LossSums, RouterSums | None]:
    """The sums of a batch's losses, and of its routers' if there are experts."""
    output = model.model(
        batch["input_ids"],
        batch.get("position_ids"),
        batch.get("segment_ids"),
        dropout_key=dropout_key,
        training=training,
    )
    head, head_axes = model.head
    layout, platform = model.execution.layout, model.execution.platform
    sums = token_loss(
        output.hidden,
        head,
        batch["labels"],
        head_axes,
        layout=layout,
        platform=platform,
        regularization=regularization,
        teacher=teacher,
    )
    return sums, None if output.router is None else router_sums(output.router, batch)


def _teacher_output(graphdef: nnx.GraphDef[ByteForCausalLM], params: Params | None, batch: Batch) -> TeacherOutput:
    """What the teacher makes of a batch, without dropout."""
    assert params is not None
    model = nnx.merge(graphdef, params)
    output = model.model(batch["input_ids"], batch.get("position_ids"), batch.get("segment_ids"))
    return TeacherOutput(output.hidden, *model.head)
