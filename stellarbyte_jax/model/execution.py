"""How a model is computed: its dtype and platform, its kernels, its placement, and what layers keep."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.attention.cudnn import check_xpos
from stellarbyte_jax.model.attention.kernels import default_kernel
from stellarbyte_jax.model.weight_grid import WeightGrid
from stellarbyte_jax.sharding import ONE_DEVICE, Layout


@dataclass(frozen=True)
class Execution:
    """The choices that change a model's speed and memory, but its results by no more than rounding, or weight_grid's.

    Attributes:
        dtype: the type of activations and of weights where they are used; parameters are float32.
        platform: the platform to compile for: cpu, gpu, cuda or tpu; "auto" is the platform that JAX runs on.
        attention_kernel: one of the kernels of attention/kernels.py; "auto" is the one that suits the platform.
        attention_block_size: the most tokens that splash works on at a time.
        remat: the policy of remat.py for what a layer keeps for its backward pass; "none" keeps everything.
        layout: the placement of activations and kernels on a mesh.
        weight_grid: the grid that the weights of layers are rounded to where they are used; None rounds none.
    """

    dtype: DTypeLike = jnp.float32
    platform: str = "auto"
    attention_kernel: str = "auto"
    attention_block_size: int = 512
    remat: str = "none"
    layout: Layout = ONE_DEVICE
    weight_grid: WeightGrid | None = None

    def resolved(self, config: ByteConfig) -> "Execution":
        """The same choices with dtype, platform and kernel decided; the modules of a model take it in this form.

        Raises:
            UserError: the kernel cannot compute this model's positions.
        """
        platform, kernel = self.platform, self.attention_kernel
        if platform == "auto":
            platform = jax.default_backend()
        if kernel == "auto":
            kernel = default_kernel(platform, config.attention_dropout)
        if kernel == "cudnn":
            check_xpos(config)
        return replace(self, dtype=jnp.dtype(self.dtype), platform=platform, attention_kernel=kernel)
