"""One decoder layer: attention and feed-forward, joined to the residual stream by the config's scheme."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.attention.layer import Attention
from stellarbyte_jax.model.caches import LayerCache
from stellarbyte_jax.model.call_context import CallContext, LayerContext
from stellarbyte_jax.model.dropout import drop_path, dropout
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.experts.moe import RouterStats, SparseFeedForward
from stellarbyte_jax.model.feed_forward import FeedForward
from stellarbyte_jax.model.norm import RMSNorm
from stellarbyte_jax.model.taps import tapped_channels, tapped_layer

# The axes of [B, T, D] on a mesh: in the residual stream and its norms, and inside a branch.
RESIDUAL = ("batch", "residual_length", None)
WHOLE_ROWS = ("batch", "length", None)


class BlockOutput(NamedTuple):
    """Hidden states [B, T, D], the layer's cache if it has one, and its router's statistics if it has experts."""

    x_BTD: jax.Array
    cache: LayerCache | None
    router: RouterStats | None


class LayerScale(nnx.Module):
    """A gain for each channel of a branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, size: int, initial: float) -> None:
        self.scale = nnx.Param(jnp.full((size,), initial, jnp.float32), axes=("norm",), decays=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D] in x's dtype."""
        return x * self.scale[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm, x + f(norm(x)), or DeepNorm, norm(alpha · x + f(x)) (Wang et al. 2022, arXiv:2203.00555).

    f is attention, then the feed-forward. With `parallel_residual` there is one norm, and both are added at once:
    x + attention(h) + mlp(h).
    """

    def __init__(self, config: ByteConfig, *, execution: Execution, rngs: nnx.Rngs) -> None:
        D, L, stddev = config.hidden_size, config.num_hidden_layers, config.initializer_range
        self.deepnorm, self.parallel = config.residual == "deepnorm", config.parallel_residual
        self.alpha = (2 * L) ** 0.25
        if self.deepnorm:
            inner_stddev = output_stddev = stddev * (8 * L) ** -0.25
        else:
            # 2L branches add up in the residual stream, so each starts smaller by sqrt(2L) (Radford et al. 2019).
            inner_stddev, output_stddev = stddev, stddev / (2 * L) ** 0.5

        if not self.deepnorm:
            self.input_layernorm = RMSNorm(D, config.rms_norm_eps)
        self.self_attn = Attention(
            config,
            value_stddev=inner_stddev,
            output_stddev=output_stddev,
            execution=execution,
            rngs=rngs,
        )
        if not self.parallel:
            self.post_attention_layernorm = RMSNorm(D, config.rms_norm_eps)
        feed_forward = SparseFeedForward if config.num_experts else FeedForward
        self.mlp = feed_forward(
            config, stddev=inner_stddev, output_stddev=output_stddev, execution=execution, rngs=rngs
        )
        if self.deepnorm:
            self.post_feedforward_layernorm = RMSNorm(D, config.rms_norm_eps)
        initial = config.layer_scale_init
        self.self_attn_layer_scale = LayerScale(D, initial) if initial is not None else None
        self.mlp_layer_scale = LayerScale(D, initial) if initial is not None else None
        self.residual_dropout, self.layout = config.residual_dropout, execution.layout

    def __call__(self, x_BTD: jax.Array, context: CallContext, layer: LayerContext) -> BlockOutput:
        """[B, T, D] -> [B, T, D]."""
        attention_key, first_key, second_key = _split(layer.dropout_key, 3)
        in_BTD = x_BTD

        def attend(h_BTD: jax.Array) -> tuple[jax.Array, LayerCache | None]:
            h_BTD = self.layout.constrain(h_BTD, *WHOLE_ROWS)
            branch_BTD, cache = self.self_attn(h_BTD, context, layer, attention_key)
            return self._branch(branch_BTD, self.self_attn_layer_scale, layer, first_key), cache

        def feed_forward(h_BTD: jax.Array) -> tuple[jax.Array, RouterStats | None]:
            h_BTD = self.layout.constrain(h_BTD, *WHOLE_ROWS)
            if isinstance(self.mlp, SparseFeedForward):
                branch_BTD, router = self.mlp(h_BTD, context.segment_ids_BT, context.training, layer.taps)
            elif layer.taps is not None:
                tap = functools.partial(tapped_channels, real_BT=context.real(h_BTD), taps=layer.taps)
                branch_BTD, router = self.mlp(h_BTD, tap), None
            else:
                branch_BTD, router = self.mlp(h_BTD), None
            return self._branch(branch_BTD, self.mlp_layer_scale, layer, second_key), router

        if self.parallel:
            h_BTD = x_BTD if self.deepnorm else self.input_layernorm(x_BTD)
            attended_BTD, cache = attend(h_BTD)
            fed_BTD, router = feed_forward(h_BTD)
            if self.deepnorm:
                x_BTD = self.post_feedforward_layernorm(self.alpha * x_BTD + attended_BTD + fed_BTD)
            else:
                x_BTD = x_BTD + attended_BTD + fed_BTD
        elif self.deepnorm:
            attended_BTD, cache = attend(x_BTD)
            x_BTD = self.post_attention_layernorm(self.alpha * x_BTD + attended_BTD)
            fed_BTD, router = feed_forward(x_BTD)
            x_BTD = self.post_feedforward_layernorm(self.alpha * x_BTD + fed_BTD)
        else:
            attended_BTD, cache = attend(self.input_layernorm(x_BTD))
            x_BTD = x_BTD + attended_BTD
            fed_BTD, router = feed_forward(self.post_attention_layernorm(x_BTD))
            x_BTD = x_BTD + fed_BTD
        if layer.taps is not None:
            x_BTD = tapped_layer(x_BTD, in_BTD, context.real(x_BTD), layer.taps)
        return BlockOutput(x_BTD, cache, router)

    def _branch(
        self, branch_BTD: jax.Array, layer_scale: LayerScale | None, layer: LayerContext, key: jax.Array | None
    ) -> jax.Array:
        """The value that a branch adds to the residual stream, after dropout, LayerScale and DropPath."""
        dropout_key, path_key = _split(key, 2)
        branch_BTD = self.layout.constrain(branch_BTD, *RESIDUAL)
        branch_BTD = dropout(branch_BTD, self.residual_dropout, dropout_key)
        if layer_scale is not None:
            branch_BTD = layer_scale(branch_BTD)
        if layer.drop_path_rate is not None and path_key is not None:
            branch_BTD = drop_path(branch_BTD, layer.drop_path_rate, path_key)
        return branch_BTD


def _split(key: jax.Array | None, count: int) -> tuple[jax.Array | None, ...]:
    return (None,) * count if key is None else tuple(jax.random.split(key, count))
