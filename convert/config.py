"""The model's config between JAX's ByteConfig and Hugging Face's config.json, with its generation_config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.config_file import model_config_from_dict, to_dict

MODEL_TYPE = "stellarbyte"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# What transformers adds to any model's config: none of it changes a weight or what is computed.
_FROM_TRANSFORMERS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

# Which class each Auto class takes, from the two files that an export carries: what trust_remote_code needs.
_AUTO_MAP = {
    "AutoConfig": "configuration_stellarbyte.ByteConfig",
    "AutoModel": "modeling_stellarbyte.ByteDecoder",
    "AutoModelForCausalLM": "modeling_stellarbyte.ByteForCausalLM",
}


def to_hf(config: ByteConfig, dtype: str) -> dict[str, Any]:
    """What config.json says of a model whose weights are kept in `dtype`.

    Raises:
        UserError: the model's XPos factors leave the range of `dtype`, in which transformers would then compute.
    """
    config.check_xpos_range(dtype)
    fields = to_dict(config)
    if config.rope_scaling is not None:  # transformers has a mapping here, of what is set
        fields["rope_scaling"] = {name: value for name, value in fields["rope_scaling"].items() if value is not None}
    return {
        "architectures": ["ByteForCausalLM"],
        "auto_map": _AUTO_MAP,
        "dtype": dtype,
        "model_type": MODEL_TYPE,
        **({"output_router_logits": False} if config.num_experts > 0 else {}),
        "use_cache": True,
        **fields,
    }


def generation_to_hf(config: ByteConfig) -> dict[str, Any]:
    """What generation_config.json says: greedy as transformers' default, with the special tokens of the model."""
    return {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def from_hf(mapping: Mapping[str, Any], where: str) -> ByteConfig:
    """The model's config from what config.json holds, as we or transformers' save_pretrained wrote it.

    Raises:
        UserError: another architecture, an unknown or ill-typed field, or values that contradict each other.
    """
    model_type = mapping.get("model_type")
    if model_type != MODEL_TYPE:
        found = f"of type {model_type!r}" if model_type else "that names no model_type"
        raise UserError(f"{where} describes a model {found}, expected {MODEL_TYPE!r}: give a StellarByte export")
    return model_config_from_dict({k: v for k, v in mapping.items() if k not in _FROM_TRANSFORMERS}, where)


def read_hf(folder: Path) -> ByteConfig:
    """The model's config from `folder`/config.json; raises UserError as `from_hf`, and where there is no such file."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that `stellarbyte-convert to-hf` wrote")
    if not path.is_file():
        raise UserError(f"{folder} holds no {CONFIG}: give a folder that `stellarbyte-convert to-hf` wrote")
    return from_hf(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): fetch or save it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: fetch or save it again")
    return value
