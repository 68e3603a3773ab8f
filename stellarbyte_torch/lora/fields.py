"""Checks the values of a LoRAConfig's fields, as far as that needs no model."""

import re
from collections.abc import Callable
from typing import Any

from stellarbyte.errors import UserError, in_full
from stellarbyte.lora_values import check_numbers, is_number, is_whole
from stellarbyte.patterns import check_patterns
from stellarbyte_torch.lora.nonlinear import ACTIVATIONS

INITS = (True, False, "gaussian", "eva", "olora", "pissa", "corda", "loftq", "lora_ga", "orthogonal", "mica")
_PISSA_STEPS = re.compile(r"pissa_niter_\d{1,4}")

_FLAGS = (
    *("use_rslora", "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "inference_mode", "ensure_weight_tying"),
    *("train_embeddings", "train_norms", "train_head"),
)


def check_fields(config: Any) -> None:
    """Raises UserError, beginning with the field's name, if no adapter can have a value."""
    check_numbers(vars(config))
    for field, (fits, expected) in _EXPECTED.items():
        value = getattr(config, field)
        if not fits(value):
            raise UserError(f"{field} is {in_full(value)}: {expected}")
    if config.activation is not None and config.activation not in tuple(ACTIVATIONS):
        raise UserError(
            f"activation {in_full(config.activation)} is unknown: choose one of {', '.join(ACTIVATIONS)}, or null"
        )
    _check_pairs(config)
    check_patterns(expressions(config), ())


def expressions(config: Any) -> dict[str, tuple[str, str]]:
    """Field -> (the regular expression in it, the expression that PEFT matches a module's name against)."""
    found: dict[str, tuple[str, str]] = {}
    for field in ("target_modules", "exclude_modules"):
        value = getattr(config, field)
        if isinstance(value, str) and value != "all-linear":
            found[field] = (value, rf"(?:{value})\Z")
    for field in ("rank_pattern", "alpha_pattern"):
        found |= {f"{field}[{key!r}]": (key, rf"(.*\.)?({key})$") for key in getattr(config, field) or {}}
    for pattern in _listed(config.layers_pattern):
        found[f"layers_pattern[{pattern!r}]"] = (pattern, rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.")
    return found


def _check_pairs(config: Any) -> None:
    if isinstance(config.target_modules, str):
        for field in ("layers_to_transform", "layers_pattern"):
            if getattr(config, field) not in (None, []):
                raise UserError(
                    f"{field} narrows a list of target_modules, and these are {config.target_modules!r}: "
                    "use `layers`, which works with both, or name the modules in a list"
                )
    if config.layers_pattern and config.layers_to_transform is None:
        raise UserError("layers_pattern says where layers_to_transform counts, which is not given: give both or none")
    if config.init_lora_weights == "loftq" or config.loftq_config:
        field = "init_lora_weights loftq" if config.init_lora_weights == "loftq" else "loftq_config"
        raise UserError(
            f"{field} replaces the base by a quantised one, and the adapter would fit only that one: leave it out, and "
            "train on a quantised base instead (quantization int8 or nf4)"
        )


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str | int) else list(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple | set) and all(isinstance(name, str) and name for name in value)


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(is_whole(index, 0) for index in value)


def _optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and key for key in value)


_NAMES = "write a list of names, such as [q_proj, v_proj]"
_NAMES_OR_ONE_EXPRESSION = f"{_NAMES}, or one regular expression"
_LAYERS = "write layer numbers, such as [0, 1]"

_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (_optional(lambda v: v in ("LORA", "NONLINEAR_LORA")), "leave it out, as these are LoRA's fields"),
    "target_modules": (
        _optional(lambda v: (isinstance(v, str) and v != "") or _are_names(v)),
        _NAMES_OR_ONE_EXPRESSION,
    ),
    "exclude_modules": (_optional(lambda v: isinstance(v, str) or _are_names(v)), _NAMES_OR_ONE_EXPRESSION),
    "modules_to_save": (_optional(_are_names), "write a list of names, such as [lm_head]"),
    "target_parameters": (_optional(_are_names), "write a list of names, such as [mlp.experts.down_proj]"),
    "layers_to_transform": (
        _optional(lambda v: is_whole(v, 0) or (isinstance(v, list) and all(is_whole(layer, 0) for layer in v))),
        _LAYERS,
    ),
    "layers_pattern": (_optional(lambda v: isinstance(v, str) or _are_names(v)), "write a name, such as layers"),
    "trainable_token_indices": (
        _optional(lambda v: _are_tokens(v) or (_is_mapping(v) and all(map(_are_tokens, v.values())))),
        "list token numbers, or map modules to such lists",
    ),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "choose none, all or lora_only"),
    "init_lora_weights": (
        lambda v: (
            any(v is init or (isinstance(v, str) and v == init) for init in INITS)
            or (isinstance(v, str) and _PISSA_STEPS.fullmatch(v) is not None)
        ),
        f"choose one of {', '.join(str(init).lower() for init in INITS)}, pissa_niter_16",
    ),
    **{field: (lambda value: isinstance(value, bool), "choose true or false") for field in _FLAGS},
    "orthogonal_reg": (lambda value: is_number(value) and value >= 0, "choose 0 (off) or more"),
    "l2_reg": (lambda value: is_number(value) and value >= 0, "choose 0 (off) or more"),
    "loraplus_lr_ratio": (
        _optional(lambda value: is_number(value) and value > 0),
        "choose more than 0, or null for one rate",
    ),
    "loraplus_lr_embedding": (lambda value: is_number(value) and value >= 0, "choose a learning rate, 0 or more"),
}
