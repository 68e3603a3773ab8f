"""Adafactor: the gradients of a matrix divided by a root mean square that two vectors describe."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# As in Transformers' Adafactor: what is added to squared gradients, and the exponent of their decay.
_SMALLEST_SQUARE = 1e-30
_EXPONENT = 0.8


class AdafactorState(NamedTuple):
    """The number of updates done, and running means of squared gradients.

    rows: of a matrix [in, out] the means over out, of a vector the squares. columns: of a matrix the means over in, of
    a vector nothing.
    """

    done: jax.Array
    rows: optax.Updates
    columns: optax.Updates

    def without_zeros(self, axes: Any, name: str, share: float) -> "AdafactorState":
        """The state once a logical axis has `share` of its length, where the gradients that are gone were zero.

        Columns that are means over that axis are then means of fewer numbers. Rows need not change, since they count by
        their share of each other. axes: the Axes of each parameter.
        """

        def one(columns: Any, axes: Any) -> Any:
            return columns / share if isinstance(columns, jax.Array) and axes.names[-2] == name else columns

        return self._replace(
            columns=jax.tree.map(one, self.columns, axes, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
        )


def scale_by_adafactor(traits: Any) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) without momentum and without a learning rate of its own.

    It does to each array in a stack (traits: a tree of Trait) what transformers.Adafactor does to a parameter with
    scale_parameter and relative_step off: what `optax.adafactor` would take for the rows and columns of a stack, and
    for its root mean square, are those of all layers together.
    """

    def is_factored(array: jax.Array, trait: Any) -> bool:
        return array.ndim - trait.stack > 1

    def init(params: optax.Params) -> AdafactorState:
        def columns(param: jax.Array, trait: Any) -> Any:
            if is_factored(param, trait):
                return jnp.zeros(param.shape[:-2] + param.shape[-1:], param.dtype)
            return optax.MaskedNode()

        def rows(param: jax.Array, trait: Any) -> jax.Array:
            return jnp.zeros(param.shape[:-1] if is_factored(param, trait) else param.shape, param.dtype)

        rows_columns = (jax.tree.map(function, params, traits) for function in (rows, columns))
        return AdafactorState(jnp.zeros((), jnp.int32), *rows_columns)

    def update(
        gradients: optax.Updates, state: AdafactorState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdafactorState]:
        del params
        done = optax.safe_increment(state.done)
        decay = 1 - done.astype(jnp.float32) ** -_EXPONENT

        def one(gradient: jax.Array, rows: jax.Array, columns: Any, trait: Any) -> tuple[Any, ...]:
            square = gradient * gradient + _SMALLEST_SQUARE
            if is_factored(gradient, trait):
                rows = decay * rows + (1 - decay) * square.mean(axis=-1)
                columns = decay * columns + (1 - decay) * square.mean(axis=-2)
                of_rows = jax.lax.rsqrt(rows / rows.mean(axis=-1, keepdims=True))
                updated = gradient * of_rows[..., :, None] * jax.lax.rsqrt(columns)[..., None, :]
            else:
                rows = decay * rows + (1 - decay) * square
                updated = gradient * jax.lax.rsqrt(rows)
            own_axes = tuple(range(trait.stack, gradient.ndim))
            rms = jnp.sqrt(jnp.mean(updated * updated, axis=own_axes, keepdims=True))
            return updated / jnp.maximum(rms, 1), rows, columns

        results = jax.tree.map(one, gradients, state.rows, state.columns, traits)
        updates, *means = (jax.tree.map(lambda _, each, i=i: each[i], gradients, results) for i in range(3))
        return updates, AdafactorState(done, *means)

    return optax.GradientTransformation(init, update)
