"""Low-rank adapters beside a model's linear layers (Hu et al. 2021, arXiv:2106.09685)."""

import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte_jax.lora_config import ALL_LINEAR, LoRAConfig, ends_with
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.dropout import dropout
from stellarbyte_jax.model.feed_forward import keep_widths
from stellarbyte_jax.model.linear import Linear


class LoRALinear(Linear):
    """y = x W (+ b) + dropout(x) A B · scaling, all layers stacked: kernel [L, in, out], A [L, in, R], B [L, R, out].

    It starts as in PEFT: A is uniform within 1 / sqrt(in) and B is zero, so that y is the base's. In a layer that is
    not adapted, and behind a layer's width, A is zero as well; with A and B zero, neither has a gradient, so both stay
    zero. In training the
    decoder sets `dropout_key` for each layer; nothing is dropped without it.
    """

    def __init__(self, base: Linear, config: LoRAConfig, name: str, key: jax.Array) -> None:
        self.kernel, self.bias, self.dtype = base.kernel, base.bias, base.dtype
        self.axes, self.layout, self.weight_grid = base.axes, base.layout, base.weight_grid
        (L, D, F), R = base.kernel.get_value().shape, config.rank(name)
        # Each module of a layer draws its own first values and its own dropout.
        self.stream = zlib.crc32(name.encode())
        A_LDR = jax.random.uniform(jax.random.fold_in(key, self.stream), (L, D, R), jnp.float32, -1, 1) * D**-0.5
        adapted_L = np.isin(np.arange(L), config.layer_numbers(L))
        in_axis, out_axis = base.kernel.get_metadata()["axes"]
        A_LDR = jnp.where(adapted_L[:, None, None], A_LDR, 0.0)
        self.lora_A = nnx.Param(A_LDR, axes=(in_axis, "rank"), decays=True)
        self.lora_B = nnx.Param(jnp.zeros((L, R, F), jnp.float32), axes=("rank", out_axis), decays=True)
        self.scaling, self.dropout_rate = config.scaling(name), config.lora_dropout
        self.dropout_key: jax.Array | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out] in the compute dtype."""
        y = super().__call__(x)
        key = None if self.dropout_key is None else jax.random.fold_in(self.dropout_key, self.stream)
        h = dropout(self.rows(x), self.dropout_rate, key) @ self.lora_A[...].astype(self.dtype)
        adapted = (h @ self.lora_B[...].astype(self.dtype)) * self.scaling
        return y + adapted.reshape(y.shape)


def add_adapters(model: ByteForCausalLM, config: LoRAConfig, key: jax.Array) -> None:
    """Puts an adapter beside each linear layer that `config` names, in place.

    Raises:
        UserError: a name matches no module, or no adapted one; or the model does not have a layer.
    """
    linears = dict(_linears(model))
    _check_names(config, list(linears))
    for name, (parent, attribute, linear) in linears.items():
        if config.adapts(name):
            setattr(parent, attribute, LoRALinear(linear, config, name, key))
    if not isinstance(model.config.intermediate_size, int):
        keep_widths(model.model.layers, model.config.intermediate_sizes)
    model.model.stochastic = model.model.stochastic or config.lora_dropout > 0


def _linears(model: ByteForCausalLM) -> Iterator[tuple[str, tuple[nnx.Module, str, Linear]]]:
    """(dotted name, (the module that holds it, the attribute's name, the linear module)) for each linear module."""
    for path, parent in nnx.iter_modules(model.model.layers):
        for attribute, child in list(nnx.iter_children(parent)):
            if isinstance(child, Linear):
                yield ".".join(map(str, (*path, attribute))), (parent, str(attribute), child)


def _check_names(config: LoRAConfig, modules: list[str]) -> None:
    there = ", ".join(sorted(modules))
    if config.target_modules != ALL_LINEAR:
        for target in config.target_modules:
            if not any(ends_with(module, target) for module in modules):
                raise UserError(f"lora.target_modules {target} fits no module: a layer of this model has {there}")
    adapted = [module for module in modules if config.adapts(module)]
    for field in ("rank_pattern", "alpha_pattern"):
        for name in getattr(config, field):
            if not any(ends_with(module, name) for module in adapted):
                raise UserError(f"lora.{field}.{name} fits no adapted module: these are {', '.join(sorted(adapted))}")
