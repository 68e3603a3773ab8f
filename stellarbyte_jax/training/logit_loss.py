"""The loss of logits and its gradient, where each device has its own part of the vocabulary."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.config import TrainingConfig
from stellarbyte_jax.training.distillation import Distillation, divergence


@dataclass(frozen=True)
class Regularization:
    """What the loss of training has beside the cross-entropy.

    label_smoothing_factor: the share of a label's weight that is spread evenly over the vocabulary (Szegedy et al.
        2016, arXiv:1512.00567); the loss is (1 - factor) · cross-entropy - factor · mean of all log-probabilities.
    z_loss_coef: the weight of logsumexp(logits)² (Chowdhery et al. 2022, arXiv:2204.02311).
    distillation: the teacher's part; the smoothed cross-entropy has the rest of the weight.
    """

    label_smoothing_factor: float = 0.0
    z_loss_coef: float = 0.0
    distillation: Distillation | None = None

    @classmethod
    def of(cls, training: TrainingConfig) -> "Regularization":
        """That of a run."""
        return cls(training.label_smoothing_factor, training.z_loss_coef, Distillation.of(training.distill))

    def __bool__(self) -> bool:
        return bool(self.label_smoothing_factor or self.z_loss_coef or self.distillation)

    @property
    def sums_count(self) -> int:
        """The number of sums that a ChunkLoss has."""
        if self.distillation is not None:
            return 4
        return 3 if self else 2


PLAIN = Regularization()


class ChunkLoss(NamedTuple):
    """Sums over labelled tokens, and what the gradient is made of.

    sums: objective, correct predictions, and with a Regularization the plain loss; with a teacher the divergence.
    log_total_M: the log of the softmax's sum. place_M: each label's index among these logits, or -1.
    from_teacher_MV: probabilities of student minus teacher, if there is one.
    """

    sums: tuple[jax.Array, ...]
    log_total_M: jax.Array
    place_M: jax.Array
    from_teacher_MV: jax.Array | None


def chunk_loss(
    logits_MV: jax.Array,
    teacher_MV: jax.Array | None,
    labels_M: jax.Array,
    regularization: Regularization,
    vocab: tuple[str, ...],
) -> ChunkLoss:
    """The loss of float32 logits against labels; labels of -100 do not count.

    vocab: the mesh axes that share out the vocabulary.
    """
    labelled_M = labels_M != IGNORED_LABEL
    largest_M, place_M, here_M = logits_MV.max(axis=-1), labels_M, labelled_M
    if vocab:
        largest_M = jax.lax.pmax(largest_M, vocab)
        place_M = labels_M - jax.lax.axis_index(vocab) * logits_MV.shape[1]
        here_M = labelled_M & (place_M >= 0) & (place_M < logits_MV.shape[1])
    log_total_M = largest_M + jnp.log(summed(jnp.exp(logits_MV - largest_M[:, None]).sum(axis=-1), vocab))
    label_logits_M = jnp.take_along_axis(logits_MV, jnp.where(here_M, place_M, 0)[:, None], axis=-1)[:, 0]
    if vocab:
        label_logits_M = jax.lax.psum(jnp.where(here_M, label_logits_M, 0.0), vocab)

    def total(each_M: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(labelled_M, each_M, 0.0))

    objective_M = log_total_M - label_logits_M
    loss, from_teacher_MV, more = total(objective_M), None, []
    # As in argmax, the first of equal logits wins: a model that gives all tokens the same logit must not be right.
    before_MV = jnp.arange(logits_MV.shape[1]) < place_M[:, None]
    as_large_before_M = summed(jnp.any((logits_MV == largest_M[:, None]) & before_MV, axis=-1).astype(jnp.int32), vocab)
    right_M = labelled_M & (label_logits_M >= largest_M) & (as_large_before_M == 0)
    if smoothing := regularization.label_smoothing_factor:
        mean_M = summed(logits_MV.sum(axis=-1), vocab) / summed(logits_MV.shape[1], vocab)
        objective_M += smoothing * (label_logits_M - mean_M)
    if (teaching := regularization.distillation) is not None:
        assert teacher_MV is not None
        apart_M, from_teacher_MV = divergence(logits_MV, teacher_MV, teaching.temperature, vocab)
        objective_M = (1 - teaching.weight) * objective_M + teaching.weight * teaching.temperature**2 * apart_M
        more = [total(apart_M)]
    if z := regularization.z_loss_coef:
        objective_M += z * log_total_M**2
    correct = jnp.sum(right_M, dtype=jnp.float32)
    sums = (total(objective_M), correct, loss, *more) if regularization else (loss, correct)
    return ChunkLoss(sums, log_total_M, jnp.where(here_M, place_M, -1), from_teacher_MV)


def logit_gradient(
    logits_MV: jax.Array, labels_M: jax.Array, chunk: ChunkLoss, regularization: Regularization, vocab: tuple[str, ...]
) -> jax.Array:
    """The gradient of the objective by the logits, float32; 0 where there is no label."""
    is_label_MV = chunk.place_M[:, None] == jnp.arange(logits_MV.shape[1])
    probs_MV = jnp.exp(logits_MV - chunk.log_total_M[:, None])
    ignored_M1 = (labels_M == IGNORED_LABEL)[:, None]
    difference_MV = probs_MV - is_label_MV
    if smoothing := regularization.label_smoothing_factor:
        difference_MV += smoothing * (is_label_MV - 1 / summed(logits_MV.shape[1], vocab))
    if (teaching := regularization.distillation) is not None:
        assert chunk.from_teacher_MV is not None
        to_teacher_MV = teaching.temperature * chunk.from_teacher_MV
        difference_MV = (1 - teaching.weight) * difference_MV + teaching.weight * to_teacher_MV
    if z := regularization.z_loss_coef:
        difference_MV += 2 * z * chunk.log_total_M[:, None] * probs_MV
    return jnp.where(ignored_M1, 0.0, difference_MV)


def summed(x: Any, axes: tuple[str, ...]) -> Any:
    """The sum over the devices along mesh axes; x itself without any."""
    return jax.lax.psum(x, axes) if axes else x
