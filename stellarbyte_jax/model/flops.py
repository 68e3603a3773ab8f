"""Counts the floating-point operations of a training step, matmul by matmul."""

from dataclasses import dataclass

from stellarbyte.architecture import ByteConfig
from stellarbyte.pruning.measure import flops
from stellarbyte.token_flops import (
    FORWARD_AND_BACKWARD,
    FORWARD_AND_BACKWARD_FROZEN,
    matmul_flops,
    score_flops,
    visible_pairs,
)

# Splash's backward pass computes the scores twice more, once for the gradient of queries and once for that of keys and
# values, and each time what flows into them: 2 matmuls forward and 3 + 4 backward, where 2 + 4 would be enough. cuDNN's
# computes them once more.
_SPLASH_MATMULS = 9
_CUDNN_MATMULS = 7
_ATTENTION_MATMULS = 2 * FORWARD_AND_BACKWARD


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over all chips.

    model: the FLOPs that the model's mathematics needs, counting only visible pairs of attention; MFU's numerator.
    executed: the FLOPs that the program's kernels execute, hidden pairs and repeated work included.
    attention: the part of model that is attention. kernels: the part of executed that is attention.
    """

    model: int
    executed: int
    attention: int
    kernels: int


def step_flops(
    config: ByteConfig, rows: int, length: int, kernel: str = "splash", block: int = 512, frozen: bool = False
) -> StepFlops:
    """The FLOPs of a step over `rows` rows of `length` tokens, forward and backward; a multiply-add counts two.

    A row counts as one document, because kernels skip pairs of different documents only by whole blocks. Elementwise
    work, norms, the optimizer and the adapters beside `frozen` weights are left out: together 1 % or less.
    """
    L = config.num_hidden_layers
    passes = rows * length * (FORWARD_AND_BACKWARD_FROZEN if frozen else FORWARD_AND_BACKWARD)
    layers = sum(layer_matmul_flops(config, width) for width in config.intermediate_sizes)
    needed = passes * (layers + head_flops(config))
    matmuls = passes * (L * layer_matmul_flops(config) + head_flops(config))
    a_pair = score_flops(config.num_attention_heads, config.head_dim or 0, 0) * L * rows
    attention = _ATTENTION_MATMULS * a_pair * visible_pairs(length, config.sliding_window)
    kernels = {
        "splash": _SPLASH_MATMULS * a_pair * visible_pairs(length, config.sliding_window, block),
        "cudnn": _CUDNN_MATMULS * a_pair * visible_pairs(length, config.sliding_window, 128),
    }.get(kernel, _ATTENTION_MATMULS * a_pair * length * length)
    return StepFlops(needed + attention, matmuls + kernels, attention, kernels)


def forward_flops(config: ByteConfig, rows: int, length: int) -> int:
    """The FLOPs that a forward pass over `rows` rows of `length` tokens needs; what is pruned counts for nothing."""
    return round(rows * length * flops(vars(config), length).left(vars(config)))


def kernel_flops(config: ByteConfig, rows: int, length: int, block: int = 512) -> int:
    """FLOPs that the attention kernel executes in the forward pass of one layer."""
    H = config.head_dim or 0
    a_pair = score_flops(config.num_attention_heads, H, H)
    return rows * a_pair * visible_pairs(length, config.sliding_window, block)


def layer_matmul_flops(config: ByteConfig, width: int | None = None) -> int:
    """Forward FLOPs of one token in one layer, without attention's scores; only the experts that serve it count.

    width: that of the layer's feed-forward network; by default the widest layer's, which programs compute in each.
    """
    D, N, H = config.hidden_size, config.num_attention_heads, config.head_dim or 0
    attention = 2 * D * H * (N + (config.num_key_value_heads or N))
    if not config.num_experts:
        return matmul_flops(attention + 3 * D * (width or max(config.intermediate_sizes)))
    experts_at_work = config.num_experts_per_tok + config.num_shared_experts
    experts = D * config.num_experts + experts_at_work * 3 * D * (config.moe_intermediate_size or 0)
    return matmul_flops(attention + experts)


def head_flops(config: ByteConfig) -> int:
    """Forward FLOPs of the logits of one token."""
    return matmul_flops(config.hidden_size * config.vocab_size)
