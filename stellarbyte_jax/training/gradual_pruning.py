"""Decides in the step which channels and heads training has no more use for, and keeps them at zero."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stellarbyte_jax.config import ByteConfig, RunConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.prune_config import PruneConfig
from stellarbyte_jax.training.axis_masks import zeroed
from stellarbyte_jax.training.optimizer_state import Axes, opt_state_axes
from stellarbyte_jax.training.param_traits import full_axes, trained_params
from stellarbyte_jax.training.prune_state import PruneState, kept_at_first
from stellarbyte_jax.training.state import Params, TrainState, abstract_model

# The running mean of importances reaches over some fifty steps: single batches are noise, and old ones were of other
# weights.
_DECAY = 0.98


@dataclass(frozen=True)
class GradualPruning:
    """The rule by which a run prunes, and the logical axes of what it keeps at zero.

    The importance of a channel or a head is the running mean over steps of |Σ gradient · weight| over its row of the
    output projection (Molchanov et al. 2019, arXiv:1906.10771): to first order, the change of the batch's loss if it
    gave 0. As the output is linear in that row, this is |Σ gradient · activation| over the batch as well.
    """

    config: PruneConfig
    model: ByteConfig
    params_axes: Any
    opt_state_axes: Any

    @classmethod
    def of(cls, config: RunConfig, optimizer: optax.GradientTransformation) -> Self | None:
        """The rule of a run; None if it prunes nothing while it trains."""
        if config.training.prune is None:
            return None
        # Logical axes are the same on every mesh and for every kernel.
        execution = Execution(platform="cpu", attention_kernel="reference")
        params = trained_params(abstract_model(config.model, execution)[1], None)
        axes = jax.tree.map(
            lambda variable: Axes(full_axes(variable)), params, is_leaf=lambda node: isinstance(node, nnx.Variable)
        )
        return cls(config.training.prune, config.model, axes, opt_state_axes(optimizer, params))

    def after(self, state: PruneState, gradients: Params, params: Params, step: jax.Array) -> PruneState:
        """The state after the step of this number, counted from 1, by its gradients."""
        importance = {
            kind: _DECAY * state.importance[kind] + (1 - _DECAY) * score
            for kind, score in self._scores(gradients, params).items()
        }
        steps = step - self.config.from_step
        is_due = (steps > 0) & ((steps % self.config.every_steps == 0) | (step == self.config.to_step))
        is_due &= step <= self.config.to_step
        kept = jax.lax.cond(is_due, lambda: self._kept(importance, state.kept, steps), lambda: state.kept)
        return PruneState(importance, kept)

    def without(self, gradients: Params, pruned: PruneState) -> Params:
        """Gradients that reach nothing that is pruned."""
        return zeroed(gradients, self.params_axes, self._kept_axes(pruned))

    def applied(self, state: TrainState, pruned: PruneState) -> TrainState:
        """The state with what is pruned at zero: parameters, their average and the optimizer's state."""
        kept = self._kept_axes(pruned)
        return dataclasses.replace(
            state,
            params=zeroed(state.params, self.params_axes, kept),
            opt_state=zeroed(state.opt_state, self.opt_state_axes, kept),
            ema=None if state.ema is None else zeroed(state.ema, self.params_axes, kept),
            pruned=pruned,
        )

    def metrics(self, pruned: PruneState) -> dict[str, jax.Array]:
        """The shares that are kept, such as kept_channels, of what there was when the run began."""
        first = kept_at_first(self.config, self.model)
        return {f"kept_{kind}": kept.sum() / first[kind].sum() for kind, kept in pruned.kept.items()}

    def _scores(self, gradients: Params, params: Params) -> dict[str, jax.Array]:
        """Kind -> |Σ gradient · weight| of each of its units, float32 [L, units]."""
        layers, of_layers = (tree["model"]["layers"] for tree in (params, gradients))
        scores = {}
        if self.config.keep_channels is not None:
            weights, of_weights = (each["mlp"]["down_proj"]["kernel"] for each in (layers, of_layers))
            scores["channels"] = jnp.abs(jnp.sum(weights * of_weights, axis=2))
        if self.config.keep_heads is not None:
            weights, of_weights = (each["self_attn"]["o_proj"]["kernel"] for each in (layers, of_layers))
            shape = (self.model.num_hidden_layers, self.model.num_attention_heads, -1)
            scores["heads"] = jnp.abs(jnp.sum((weights * of_weights).reshape(shape), axis=2))
        return scores

    def _kept(
        self, importance: dict[str, jax.Array], kept: dict[str, jax.Array], steps: jax.Array
    ) -> dict[str, jax.Array]:
        """What is kept after so many steps of the schedule; it is a part of what was kept before."""
        left = 1 - jnp.minimum(steps / (self.config.to_step - self.config.from_step), 1.0)
        found = {}
        for kind, unit in self._units().items():
            # As many of equal size as a whole; only heads that go together are more than one.
            shape = (self.model.num_hidden_layers, -1, unit.size)
            score_LU = jnp.where(kept[kind], importance[kind], 0).reshape(shape).sum(axis=2)
            is_there_LU = kept[kind].reshape(shape).any(axis=2)
            excess = jnp.round((unit.first - unit.last) * left**3).astype(jnp.int32)
            kept_LU = _most_important(score_LU, is_there_LU, unit.last + excess, unit.multiple, even=self.config.even)
            found[kind] = kept[kind] & jnp.repeat(kept_LU, unit.size, axis=1)
        return found

    def _units(self) -> "dict[str, _Units]":
        heads, kv_heads = self.model.num_attention_heads, self.model.num_key_value_heads
        assert kv_heads is not None
        first = kept_at_first(self.config, self.model)
        sizes = {"channels": (1, self.config.multiple), "heads": (heads // kv_heads if self.config.even else 1, 1)}
        shares = {"channels": self.config.keep_channels, "heads": self.config.keep_heads}
        found = {}
        for kind, kept in first.items():
            (size, multiple), share = sizes[kind], shares[kind]
            assert share is not None
            count = int(kept.reshape(len(kept), -1, size).any(axis=2).sum())
            found[kind] = _Units(size, count, round(share * count), multiple)
        return found

    def _kept_axes(self, pruned: PruneState) -> dict[str, jax.Array]:
        """Logical axis -> bool [L, length]: which of its channels a layer keeps."""
        kept = {}
        if "channels" in pruned.kept:
            kept["feed_forward"] = pruned.kept["channels"]
        if "heads" in pruned.kept:
            H, K = self.model.head_dim, self.model.num_key_value_heads
            assert H is not None and K is not None
            query_LN = pruned.kept["heads"]
            key_value_LK = query_LN.reshape(len(query_LN), K, -1).any(axis=2)
            kept |= {"heads": jnp.repeat(query_LN, H, axis=1), "kv_heads": jnp.repeat(key_value_LK, H, axis=1)}
        return kept


class _Units(NamedTuple):
    """What goes as one.

    size: the number of channels or heads in it. first, last: how many units there are at first and in the end, in all
    layers. multiple: what the number that a layer keeps is a multiple of.
    """

    size: int
    first: int
    last: int
    multiple: int


def _most_important(
    score_LU: jax.Array, is_there_LU: jax.Array, count: jax.Array, multiple: int, *, even: bool
) -> jax.Array:
    """Which units are kept, bool [L, U]: the `count` most important ones, or with `even` as many in each layer.

    The number of each layer is rounded to a multiple; units that are gone come last.
    """
    L = len(score_LU)
    ranked_LU = jnp.where(is_there_LU, score_LU, -1)
    if even:
        number_L = jnp.full((L,), jnp.round(count / L).astype(jnp.int32))
    else:
        number_L = jnp.sum((_ranks(ranked_LU.reshape(1, -1)) < count).reshape(score_LU.shape), axis=1)
    number_L = jnp.maximum((number_L + multiple // 2) // multiple, 1) * multiple
    return is_there_LU & (_ranks(ranked_LU) < number_L[:, None])


def _ranks(values_LU: jax.Array) -> jax.Array:
    """The place of each value in its row, the greatest first; of equal ones the first."""
    return jnp.argsort(jnp.argsort(values_LU, axis=1, descending=True, stable=True), axis=1)
