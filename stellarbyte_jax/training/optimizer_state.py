"""Where the optimizer's state lies: each of its arrays has axes of a parameter, and lies as that parameter does."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import nnx

from stellarbyte_jax.training.param_traits import full_axes

# No array of a state has an axis of such a length if it does not come from a parameter.
_FIRST_LENGTH = 2**20


@dataclass(frozen=True)
class Axes:
    """An array's logical axes; None for one that is not split."""

    names: tuple[str | None, ...]


def opt_state_axes(optimizer: optax.GradientTransformation, params: dict[str, Any]) -> Any:
    """The Axes of each array of the optimizer's state for these `trained_params`, as a tree like that state.

    An array of the state may lack axes of its parameter, as Adafactor's do. So the state is made, abstractly, for
    parameters whose axes all have different lengths: each length in it then tells the axis that it comes from.
    """
    lengths, axes = itertools.count(_FIRST_LENGTH), dict[int, str]()

    def with_own_lengths(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        names = full_axes(variable)
        shape = tuple(itertools.islice(lengths, len(names)))
        axes.update(zip(shape, names, strict=True))
        return jax.ShapeDtypeStruct(shape, variable.get_value().dtype)

    marked = jax.tree.map(with_own_lengths, params, is_leaf=lambda node: isinstance(node, nnx.Variable))
    state = jax.eval_shape(optimizer.init, marked)
    return jax.tree.map(lambda array: Axes(tuple(axes.get(length) for length in array.shape)), state)
