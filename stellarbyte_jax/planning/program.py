"""The train step as the trainer builds it, for a platform that need not be here."""

from typing import Any

import jax
import jax.numpy as jnp

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.attention_kernels import default_kernel

BATCH_ARRAYS = ("input_ids", "labels", "position_ids", "segment_ids")


def kernel_of(config: RunConfig, platform: str) -> str:
    """The attention kernel that a run uses on a platform."""
    kernel = config.training.attention_kernel
    return default_kernel(platform, config.model.attention_dropout) if kernel == "auto" else kernel


def abstract_batch(rows: int, length: int, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that packed data hands to a step."""
    return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding) for name in BATCH_ARRAYS}
