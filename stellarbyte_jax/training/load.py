"""From a run directory to a model and its tokenizer."""

from pathlib import Path

import jax
from flax import nnx

from stellarbyte_jax.config_file import model_config_from_dict
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.training.lora_base import load_weights
from stellarbyte_jax.training.state import abstract_model


def load_model(
    run_dir: str | Path, step: int | None = None, dtype: str = "float32"
) -> tuple[ByteForCausalLM, Tokenizer, int]:
    """(model, tokenizer, step) of a run's checkpoint, by default the newest; adapters are merged into their base.

    Raises:
        UserError: there is no checkpoint, or none that can be read.
    """
    params, metadata, step = load_weights(run_dir, step)
    config = model_config_from_dict(metadata.config["model"], f"{run_dir}/checkpoints/{step}")
    graphdef, _ = abstract_model(config, dtype)
    return nnx.merge(graphdef, jax.device_put(params)), Tokenizer(metadata.tokenizer_files, str(run_dir)), step
