"""AdamW that decays the parameters which declare it, gradient clipping, and a warm-up and cosine learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike

from stellarbyte_jax.checkpoints.adapter_trees import split_adapters
from stellarbyte_jax.config import OptimizerConfig, RunConfig


def run_optimizer(config: RunConfig, abstract_params: nnx.State) -> optax.GradientTransformation:
    """The optimizer of a run, for the parameters that it trains."""
    decaying = decays(abstract_params)
    if config.lora is not None:
        decaying = split_adapters(decaying)[1]
    return make_optimizer(config.optimizer, config.training.max_steps, decaying)


def make_optimizer(config: OptimizerConfig, max_steps: int, decaying: Any = True) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).

    decaying: whether each trained parameter decays, as a tree like the result of `decays`; by default all do.
    The optimizer counts its updates, which are the global steps, so a restored state has the right learning rate.
    """
    return optax.chain(
        clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate_schedule(config, max_steps),
            b1=config.adam_beta1,
            b2=config.adam_beta2,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            mask=decaying,
        ),
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales all gradients by one factor, min(1, max_norm / norm), where norm is over every element of every array.

    optax's version divides each element, and XLA writes the quotients to an array which is then read twice. A product
    with a scalar fuses into the update of the moments. On two CPU cores the difference is 40 % of the whole update.
    """

    def clip(gradients: optax.Updates, _: optax.Params | None) -> optax.Updates:
        factor = jnp.minimum(1.0, max_norm / optax.global_norm(gradients))
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), gradients)

    return optax.stateless(clip)


def learning_rate_schedule(config: OptimizerConfig, max_steps: int) -> Callable[[ArrayLike], jax.Array]:
    """A function from the number of steps done to the learning rate of the next one, float32.

    With t = steps done + 1, the rate is peak · t / warmup_steps up to t = warmup_steps, so it is not 0 in the first
    step. Then it follows half a cosine, which reaches peak · min_learning_rate_ratio at t = max_steps, the last step,
    and stays there.
    """
    peak, ratio, warmup = config.learning_rate, config.min_learning_rate_ratio, config.warmup_steps

    def learning_rate(steps_done: ArrayLike) -> jax.Array:
        t = jnp.asarray(steps_done, jnp.float32) + 1
        progress = jnp.clip((t - warmup) / max(max_steps - warmup, 1), 0, 1)
        cosine = ratio + (1 - ratio) * (1 + jnp.cos(jnp.pi * progress)) / 2
        return peak * jnp.where(t < warmup, t / max(warmup, 1), cosine)

    return learning_rate


def decays(abstract_params: nnx.State) -> dict[str, Any]:
    """Whether each parameter of an abstract model decays, as a plain nested dict like the parameters.

    Each parameter's declaration says so: matrices decay (projections, embeddings, experts, routers, adapters); norms,
    biases, LayerScale's gains and XPos's zeta do not.
    """
    return nnx.to_pure_dict(abstract_params, extract_fn=lambda variable: variable.get_metadata()["decays"])
