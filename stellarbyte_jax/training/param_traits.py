"""What the optimizer must know of each parameter, by the parameter's own declaration and by its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from stellarbyte.errors import UserError


@dataclass(frozen=True)
class Trait:
    """How the optimizer treats one parameter.

    decays: whether weight decay acts on it. stack: how many of its leading axes only count arrays of the same kind:
    one for layers, two for the experts of layers. matrix: whether Muon orthogonalises the arrays in the stack, which
    then are matrices [in, out]. rate: a factor on its learning rate.
    """

    decays: bool = True
    stack: int = 0
    matrix: bool = False
    rate: float = 1.0


def param_traits(abstract_params: nnx.State, rates: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The trait of each parameter of an abstract model, as a plain nested dict like the parameters.

    rates: as optimizer.learning_rate_pattern.

    Each parameter's declaration says whether it decays: matrices do (projections, embeddings, experts, routers,
    adapters); norms, biases, LayerScale's gains and XPos's zeta do not. Muon's matrices are those of the layers but for
    routers: embeddings and the head look tokens up, and a router scores experts (https://kellerjordan.github.io/posts/muon).
    """

    def trait(path: Any, variable: nnx.Variable) -> Trait:
        metadata = variable.get_metadata()
        axes = metadata["axes"]
        # The layers' axis is not declared.
        stack = len(variable.get_value().shape) - len(axes) + (axes[0] == "expert")
        own = axes[1:] if axes[0] == "expert" else axes
        return Trait(
            decays=metadata["decays"],
            stack=stack,
            matrix=len(own) == 2 and not {"vocab", "router"} & set(own),
            rate=next((rate for words, rate in (rates or {}).items() if _fits(words, _name(path))), 1.0),
        )

    variables = nnx.to_pure_dict(abstract_params, extract_fn=lambda variable: variable)
    return jax.tree_util.tree_map_with_path(trait, variables, is_leaf=lambda node: isinstance(node, nnx.Variable))


def check_pattern(rates: Mapping[str, float], traits: dict[str, Any]) -> None:
    """Refuses an optimizer.learning_rate_pattern with an entry that fits none of the parameters which are trained.

    Raises:
        UserError: there is such an entry; the sentence names the parameters.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(traits)]
    for words in rates:
        if not any(_fits(words, name) for name in names):
            raise UserError(
                f"optimizer.learning_rate_pattern.{words} fits no parameter that is trained: these are "
                f"{', '.join(sorted(names))}"
            )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _fits(words: str, name: str) -> bool:
    """Whether the dotted `words` stand in the dotted name, one behind the other."""
    return f".{words}." in f".{name}."
