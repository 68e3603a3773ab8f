"""Carries a model's config between ByteConfig and the config.json of a family, by the family's own words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from convert.families.family import Experts, Family
from convert.foreign_fields import architecture
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError, in_full
from stellarbyte_jax.config_file import model_config_from_dict

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Fields of ByteConfig that every family has, by the same names. The first have to be in every config.json.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NEEDED = (*_SIZES, "max_position_embeddings", "rms_norm_eps")
_SHARED = (
    *NEEDED,
    *("num_key_value_heads", "head_dim", "hidden_act", "initializer_range", "tie_word_embeddings", "attention_dropout"),
    *IDS,
)
_POSITIONS = ("rope_theta", "rope_scaling")
# Transformers 5 reads either name of the number of experts.
_COUNTS = ("num_local_experts", "num_experts")
# The layer from which on Qwen's layers have a window, where config.json does not say it.
_FIRST_WINDOWED = 28


def to_hf(family: Family, config: ByteConfig, dtype: str) -> dict[str, Any]:
    """The fields of config.json for a model that the family can hold (`fit.fit`), with weights in `dtype`.

    Positions are written as Transformers 5 has them, in rope_parameters, and as Transformers 4 and other tools look for
    them. Both read only their own.
    """
    ours = {field.name: getattr(config, field.name) for field in dataclasses.fields(ByteConfig)}
    fields = {
        "architectures": [family.architecture],
        "dtype": dtype,
        "model_type": family.model_type,
        "use_cache": True,
        **{name: ours[name] for name in (*_SHARED, *family.fields)},
        **family.neutral,
        **_positions(config),
        **_window(family, config),
    }
    if family.experts is not None:
        fields |= {"output_router_logits": False, family.experts.count: config.num_experts}
        fields[family.experts.width] = config.moe_intermediate_size
    return fields


def _positions(config: ByteConfig) -> dict[str, Any]:
    if config.rope_scaling is None:
        return {
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        }
    given = dataclasses.asdict(config.rope_scaling)
    scaling = {name: value for name, value in given.items() if value is not None}
    if scaling["rope_type"] == "yarn":
        scaling.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
    }


def _window(family: Family, config: ByteConfig) -> dict[str, Any]:
    windowed, layers = config.sliding_window is not None, config.num_hidden_layers
    if family.window in ("never", "sliding_window"):
        return {}
    fields: dict[str, Any] = {"use_sliding_window": windowed}
    if family.window == "layer_types":
        kind = "sliding_attention" if windowed else "full_attention"
        fields |= {"max_window_layers": 0 if windowed else layers, "layer_types": [kind] * layers}
    return fields


def from_hf(family: Family, mapping: Mapping[str, Any], ids: Mapping[str, int], where: str) -> ByteConfig:
    """The model's config from the content of a family's config.json, as Transformers 4 and 5 write it.

    Args:
        family: the family that model_type names.
        mapping: the content of config.json.
        ids: the three special tokens, which the tokenizer decides: config.json may leave them out or list several.
        where: names the file in errors.

    Raises:
        UserError: a size is missing, a field has no place here, or layers differ from each other.
    """
    given = {name: value for name, value in mapping.items() if name not in IDS}
    for name, value in family.neutral.items():
        found = given.pop(name, None)
        if found is not None and found != value:
            raise UserError(
                f"{where}: {name} is not a field of StellarByte, and {in_full(found)} would change the model, which "
                f"has {in_full(value)}"
            )
    given |= _read_window(family, given, where)
    fields = architecture({"position_embedding": "rope", **given}, where)
    _check_known(family, fields, where)
    if family.experts is not None:
        fields |= _take_experts(family.experts, fields, where)
    _complete_scaling(fields)
    return model_config_from_dict({**family.absent, **fields, **family.fixed, **ids}, where)


def _read_window(family: Family, given: dict[str, Any], where: str) -> dict[str, Any]:
    """sliding_window as it counts, from the fields that say which layers have one; those are taken out."""
    if family.window in ("never", "sliding_window"):
        return {}
    use = given.pop("use_sliding_window", False)
    kinds, first = given.pop("layer_types", None), given.pop("max_window_layers", _FIRST_WINDOWED)
    window, layers = given.get("sliding_window", 4096), given.get("num_hidden_layers")
    if use is not True or window is None:
        return {"sliding_window": None, "layer_types": kinds}
    if family.window == "use_sliding_window":
        return {"sliding_window": window}
    if kinds is not None:
        windowed = isinstance(kinds, list) and "sliding_attention" in kinds
        return {"sliding_window": window if windowed else None, "layer_types": kinds}
    if not isinstance(first, int) or not isinstance(layers, int) or 0 < first < layers:
        raise UserError(
            f"{where}: max_window_layers is not a field of StellarByte, whose layers all have a window or none: "
            f"{in_full(first)} of {in_full(layers)} layers would have none"
        )
    return {"sliding_window": window if first <= 0 else None}


def _check_known(family: Family, fields: Mapping[str, Any], where: str) -> None:
    needed: tuple[str, ...] = NEEDED
    known = {*_SHARED, *family.fields, *_POSITIONS}
    if family.experts is not None:
        needed = (*needed, "num_experts_per_tok")
        known |= {*_COUNTS, family.experts.width}
    for name, value in fields.items():
        fixed = name in family.fixed and value == family.fixed[name]
        if name not in known and not fixed:
            raise UserError(
                f"{where}: {name} is no field of a {family.architecture}, and {in_full(value)} might change the model: "
                "take it out if it does not"
            )
    missing = [name for name in needed if name not in fields]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}: fetch or save it again")
    if isinstance(fields["intermediate_size"], list):
        raise UserError(
            f"{where}: intermediate_size is {in_full(fields['intermediate_size'])}, and a {family.architecture} has "
            "one width for all layers: fetch or save it again"
        )


def _take_experts(experts: Experts, fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The experts' number and width by our names; those of config.json that are none here are taken out."""
    counts = {name: fields.pop(name) for name in _COUNTS if name in fields}
    if len(set(map(str, counts.values()))) != 1:
        found = f"{in_full(counts)}, which is not one number" if counts else "no number of experts"
        raise UserError(f"{where} has {found}: set {experts.count}")
    if experts.width not in fields:
        raise UserError(f"{where} lacks {experts.width}, the width of an expert: fetch or save it again")
    return {"num_experts": next(iter(counts.values())), "moe_intermediate_size": fields[experts.width]}


def _complete_scaling(fields: dict[str, Any]) -> None:
    """Puts in what Transformers takes from max_position_embeddings where rope_scaling leaves it out."""
    scaling, context = fields.get("rope_scaling"), fields["max_position_embeddings"]
    if not isinstance(scaling, dict):
        return
    if scaling.get("rope_type") in ("yarn", "llama3"):
        scaling.setdefault("original_max_position_embeddings", context)
    original = scaling.get("original_max_position_embeddings")
    if scaling.get("rope_type") == "yarn" and isinstance(original, int) and original > 0 and isinstance(context, int):
        scaling.setdefault("factor", context / original)
