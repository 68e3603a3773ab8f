"""Carries the model's config between JAX's ByteConfig and Hugging Face's config.json and generation_config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.families import config_json
from convert.families.family import Family
from convert.families.registry import FAMILIES
from convert.foreign_fields import architecture
from stellarbyte import reading
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte_jax.config_file import model_config_from_dict, to_dict
from stellarbyte_jax.data.tokenizer import Tokenizer

MODEL_TYPE = "stellarbyte"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# The ids that are meant where a config.json leaves them out.
_ID_DEFAULTS = {name: getattr(ByteConfig, name) for name in config_json.IDS}

# The class that each Auto class takes from the two files in an export; trust_remote_code needs this.
_AUTO_MAP = {
    "AutoConfig": "configuration_stellarbyte.ByteConfig",
    "AutoModel": "modeling_stellarbyte.ByteDecoder",
    "AutoModelForCausalLM": "modeling_stellarbyte.ByteForCausalLM",
}


# The value that a field has in a Llama.
_IN_LLAMA = {
    **{"position_embedding": "rope", "sliding_window": None, "qk_norm": False, "residual": "pre_norm"},
    **{"parallel_residual": False, "layer_scale_init": None, "num_experts": 0, "pruned_heads": None},
}


def marks_for_stock_models(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json that make a stock model raise if it is given these weights, instead of computing nonsense.

    The shapes of tensors cannot show it, because XPos and windows change none. All rotary models of Transformers raise
    at a rope_type that it does not know. Llama raises at a sentence in pretraining_tp, which LlamaConfig checks to be a
    number although nothing reads it any more. convert/config.py and stellarbyte_torch/configuration_stellarbyte.py hold
    this function in the same words, and a test keeps them equal.
    """
    position = fields["position_embedding"]
    marks: dict[str, Any] = {}
    if position != "rope":
        marks["rope_parameters"] = {"rope_type": position, "rope_theta": fields["rope_theta"]}
    if unlike := [name for name, value in _IN_LLAMA.items() if fields[name] != value]:
        marks["pretraining_tp"] = f"no Llama, because of {', '.join(unlike)}: load it as model_type stellarbyte"
    return marks


def _without_marks(mapping: Mapping[str, Any]) -> dict[str, Any]:
    fields, position = dict(mapping), mapping.get("position_embedding")
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_type") == position != "rope":
        del fields["rope_parameters"]
    if isinstance(fields.get("pretraining_tp"), str):
        del fields["pretraining_tp"]
    return fields


def to_hf(config: ByteConfig, dtype: str) -> dict[str, Any]:
    """The fields of config.json for a model whose weights are saved in `dtype`.

    Raises:
        UserError: the model's XPos factors leave the range of `dtype`, in which transformers would then compute.
    """
    config.check_xpos_range(dtype)
    fields = to_dict(config)
    if config.rope_scaling is not None:  # transformers has a mapping here, with the fields that are set
        fields["rope_scaling"] = {name: value for name, value in fields["rope_scaling"].items() if value is not None}
    return {
        "architectures": ["ByteForCausalLM"],
        "auto_map": _AUTO_MAP,
        "dtype": dtype,
        "model_type": MODEL_TYPE,
        **({"output_router_logits": False} if config.num_experts > 0 else {}),
        "use_cache": True,
        **fields,
        **marks_for_stock_models(fields),
    }


def generation_to_hf(config: ByteConfig) -> dict[str, Any]:
    """The fields of generation_config.json: the model's special tokens; transformers' default is greedy."""
    return {name: getattr(config, name) for name in config_json.IDS}


def from_hf(mapping: Mapping[str, Any], where: str) -> ByteConfig:
    """The model's config from the content of config.json, written by us or by transformers' save_pretrained.

    Raises:
        UserError: another architecture, an unknown or ill-typed field, or values that contradict each other.
    """
    model_type = mapping.get("model_type")
    if model_type != MODEL_TYPE:
        found = f"of type {model_type!r}" if model_type else "that names no model_type"
        raise UserError(
            f"{where} describes a model {found}, expected {MODEL_TYPE!r} or one of {', '.join(FAMILIES)}: give a "
            "StellarByte export, or a model of one of these"
        )
    return model_config_from_dict(architecture(_without_marks(mapping), where), where)


def read_hf(folder: Path) -> ByteConfig:
    """The model's config from `folder`/config.json, of our own architecture or of a family that has a place here.

    Raises:
        UserError: as `from_hf` does, and if the file is missing; or a stock model has a field that has no place here.
    """
    mapping, where = read_fields(folder), str(folder / CONFIG)
    family = FAMILIES.get(str(mapping.get("model_type")))
    if family is not None:
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder} holds no tokenizer.json: write it with AutoTokenizer.from_pretrained({str(folder)!r})"
                f".save_pretrained({str(folder)!r})"
            )
        tokenizer = Tokenizer.load(folder)
        return config_json.from_hf(family, mapping, {name: getattr(tokenizer, name) for name in _ID_DEFAULTS}, where)
    if mapping.get("model_type") == MODEL_TYPE and not _has_three_ids(mapping):
        mapping = _with_three_ids(mapping, Tokenizer.load(folder), where)
    return from_hf(mapping, where)


def family_of(folder: Path) -> Family | None:
    """The family of the stock model in `folder`; None if it is no stock model that has a place here."""
    return FAMILIES.get(str(read_fields(folder).get("model_type")))


def read_fields(folder: Path) -> dict[str, Any]:
    """The content of `folder`/config.json, of any model. Raises UserError if it is missing, or no JSON object."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that `stellarbyte convert to-hf` wrote")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no {CONFIG}: give a folder that `stellarbyte convert to-hf` wrote")
    return read_json(folder / CONFIG)


def _has_three_ids(mapping: Mapping[str, Any]) -> bool:
    ids = [mapping.get(name, default) for name, default in _ID_DEFAULTS.items()]
    return all(type(token_id) is int for token_id in ids) and len(set(ids)) == len(ids)


def _with_three_ids(mapping: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> dict[str, Any]:
    """The fields with three different special tokens, which JAX needs.

    Hugging Face allows a token to be missing, to be a list, or to serve two purposes. The tokenizer of a StellarByte
    model has all three, and its own id is taken for a missing one, for a list that contains it (generation in JAX then
    ends at that one alone), and for a padding token that is bos or eos as well.
    """
    fields = dict(mapping)
    for name, default in _ID_DEFAULTS.items():
        value, own = mapping.get(name, default), getattr(tokenizer, name)
        if value is None or (isinstance(value, list) and own in value):
            fields[name] = own
        elif isinstance(value, list):
            raise UserError(
                f"{where}: {name} {value} is a list without the tokenizer's own {own}, at which alone texts in "
                f"JAX end: put it in, or set {name} to {own}"
            )
    if fields["pad_token_id"] in (fields["bos_token_id"], fields["eos_token_id"]):
        fields["pad_token_id"] = tokenizer.pad_token_id
    return fields


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, is not JSON, or holds no object.
    """
    try:
        value = reading.read_json(path, reading.MIB)
    except UserError as error:
        raise UserError(f"{error}: fetch or save it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: fetch or save it again")
    return value
