"""What the optimizer must know of each parameter, by the parameter's own declaration and by its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.adapter_trees import split_adapters


def trained_params(abstract_params: nnx.State, lora: object | None) -> dict[str, Any]:
    """The abstract parameters that a run trains, as a plain nested dict of nnx variables: with `lora`, the adapters."""
    base, adapters = split_adapters(nnx.to_pure_dict(abstract_params, extract_fn=lambda variable: variable))
    return base if lora is None else adapters


def full_axes(variable: nnx.Variable) -> tuple[str, ...]:
    """The logical axes of a parameter, with that of stacked layers, which its declaration does not name."""
    declared: tuple[str, ...] = variable.get_metadata()["axes"]
    return ("layers",) * (len(variable.get_value().shape) - len(declared)) + declared


@dataclass(frozen=True)
class Trait:
    """How the optimizer treats one parameter.

    decays: whether weight decay acts on it. axes: its logical axes. stack: how many of these, from the first on, only
    count arrays of the same kind: one for layers, two for the experts of layers. matrix: whether Muon orthogonalises
    the arrays in the stack, which then are matrices [in, out]. rate: a factor on its learning rate.
    """

    decays: bool = True
    axes: tuple[str, ...] = ()
    stack: int = 0
    matrix: bool = False
    rate: float = 1.0


def param_traits(params: dict[str, Any], rates: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The trait of each parameter, as a tree like these `trained_params`.

    rates: as optimizer.learning_rate_pattern.

    Each parameter's declaration says whether it decays: matrices do (projections, embeddings, experts, routers,
    adapters); norms, biases, LayerScale's gains and XPos's zeta do not. Muon's matrices are those of the layers but for
    routers: embeddings and head look tokens up, and a router scores experts (https://kellerjordan.github.io/posts/muon).

    Raises:
        UserError: an entry of `rates` fits no parameter; the sentence names the parameters.
    """

    def trait(path: Any, variable: nnx.Variable) -> Trait:
        metadata = variable.get_metadata()
        axes = full_axes(variable)
        stack = sum(name in ("layers", "expert") for name in axes)
        return Trait(
            decays=metadata["decays"],
            axes=axes,
            stack=stack,
            matrix=len(axes) == stack + 2 and not {"vocab", "router"} & set(axes),
            rate=next((rate for words, rate in (rates or {}).items() if _fits(words, _name(path))), 1.0),
        )

    traits = jax.tree_util.tree_map_with_path(trait, params, is_leaf=lambda node: isinstance(node, nnx.Variable))
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(traits)]
    for words in rates or {}:
        if not any(_fits(words, name) for name in names):
            raise UserError(
                f"optimizer.learning_rate_pattern.{words} fits no parameter that is trained: these are "
                f"{', '.join(sorted(names))}"
            )
    return traits


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _fits(words: str, name: str) -> bool:
    """Whether the dotted `words` stand in the dotted name, one behind the other."""
    return f".{words}." in f".{name}."
