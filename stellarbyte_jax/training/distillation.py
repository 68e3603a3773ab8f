"""How far a student's probabilities are from its teacher's."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stellarbyte_jax.distill_config import DistillConfig


@dataclass(frozen=True)
class Distillation:
    """The teacher's part in the loss: weight · temperature² · KL(teacher ‖ student), with 1 - weight for the rest.

    The factor temperature² keeps the teacher's part of the gradient as large at any temperature (Hinton et al. 2015,
    arXiv:1503.02531).
    """

    weight: float
    temperature: float

    @classmethod
    def of(cls, config: DistillConfig | None) -> "Distillation | None":
        """The teacher's part in a run's loss; None for a run that has no teacher."""
        return None if config is None else cls(config.weight, config.temperature)


class TeacherOutput(NamedTuple):
    """What the teacher's logits are made of: hidden states [B, T, D], and the head's matrix with its axes, DV or VD."""

    hidden_BTD: jax.Array
    head: jax.Array
    head_axes: str


def divergence(
    student_MV: jax.Array, teacher_MV: jax.Array, temperature: float, vocab: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """(KL(teacher ‖ student) in nats [M], the student's probabilities minus the teacher's [M, V]) of float32 logits.

    The second is the gradient of the first by the student's logits, times the temperature. vocab: the mesh axes that
    share out the vocabulary.
    """
    ours_MV, theirs_MV = (_log_softmax(logits / temperature, vocab) for logits in (student_MV, teacher_MV))
    probs_MV = jnp.exp(theirs_MV)
    divergence_M = (probs_MV * (theirs_MV - ours_MV)).sum(axis=-1)
    if vocab:
        divergence_M = jax.lax.psum(divergence_M, vocab)
    return divergence_M, jnp.exp(ours_MV) - probs_MV


def _log_softmax(logits_MV: jax.Array, vocab: tuple[str, ...]) -> jax.Array:
    if not vocab:
        return jax.nn.log_softmax(logits_MV, axis=-1)
    shifted_MV = logits_MV - jax.lax.pmax(logits_MV.max(axis=-1), vocab)[:, None]
    total_M = jax.lax.psum(jnp.exp(shifted_MV).sum(axis=-1), vocab)
    return shifted_MV - jnp.log(total_M)[:, None]
