"""StellarByte's workshop: pretraining decoder language models in JAX/Flax NNX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stellarbyte_jax.config import ByteConfig
    from stellarbyte_jax.model.causal_lm import ByteDecoder, ByteForCausalLM, ByteModel
    from stellarbyte_jax.model.execution import Execution

__all__ = ["ByteConfig", "ByteDecoder", "ByteForCausalLM", "ByteModel", "Execution"]


def __getattr__(name: str) -> Any:
    # Names load on first use: `stellarbyte --help` need not wait for JAX.
    if name == "ByteConfig":
        from stellarbyte_jax.config import ByteConfig

        return ByteConfig
    if name == "Execution":
        from stellarbyte_jax.model.execution import Execution

        return Execution
    if name in __all__:
        from stellarbyte_jax.model import causal_lm

        return getattr(causal_lm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
