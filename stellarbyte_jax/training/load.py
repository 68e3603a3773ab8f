"""Loads a model and its tokenizer from a run's folder."""

import jax
from flax import nnx

from stellarbyte.architecture import ByteConfig
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.array_files import check_finite_weights, check_fits
from stellarbyte_jax.checkpoints.lora_base import load_weights
from stellarbyte_jax.config_file import model_config_from_dict
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.training.state import Params, abstract_model, init_params


def load_model(
    run_dir: str | Place, step: int | None = None, dtype: str = "float32"
) -> tuple[ByteForCausalLM, Tokenizer, int]:
    """(model, tokenizer, step) of a run's checkpoint, by default the newest; adapters are merged into their base.

    Raises:
        UserError: there is no checkpoint, none can be read, or its weights do not fit the model or are not finite.
    """
    params, metadata, step = load_weights(run_dir, step)
    where = f"{run_dir}/checkpoints/{step}"
    config = model_config_from_dict(metadata.model, where)
    check_weights(params, config, where)
    graphdef, _ = abstract_model(config, Execution(dtype))
    return nnx.merge(graphdef, jax.device_put(params)), Tokenizer(metadata.tokenizer_files, str(run_dir)), step


def check_weights(params: Params, config: ByteConfig, where: str) -> None:
    """Raises a UserError if the names, shapes or dtypes of weights are not the model's, or if one is not finite."""
    check_fits(params, jax.eval_shape(lambda: init_params(config, 0)), where)
    check_finite_weights(params, where)
