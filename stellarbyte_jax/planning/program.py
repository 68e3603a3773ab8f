"""The train step as the trainer builds it, for a platform that need not be here."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte_jax.config import ByteConfig, RunConfig
from stellarbyte_jax.model.attention_kernels import default_kernel
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.sharding import ONE_DEVICE, Layout
from stellarbyte_jax.training.state import abstract_model

BATCH_ARRAYS = ("input_ids", "labels", "position_ids", "segment_ids")


def kernel_of(config: RunConfig, platform: str) -> str:
    """The attention kernel that a run uses on a platform."""
    kernel = config.training.attention_kernel
    return default_kernel(platform, config.model.attention_dropout) if kernel == "auto" else kernel


def abstract_model_on(
    config: ByteConfig,
    dtype: str,
    kernel: str,
    platform: str,
    remat: str = "none",
    layout: Layout = ONE_DEVICE,
) -> tuple[nnx.GraphDef[ByteForCausalLM], nnx.State]:
    """The model's structure and abstract parameters, its layers in a loop where the platform's are."""
    return abstract_model(config, dtype, kernel, platform=platform, remat=remat, layout=layout)


def abstract_batch(rows: int, length: int, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that packed data hands to a step."""
    return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding) for name in BATCH_ARRAYS}
