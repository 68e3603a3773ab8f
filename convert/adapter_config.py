"""Translates between a run's LoRAConfig and PEFT's adapter_config.json."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stellarbyte.adapter_folder import ADAPTER_CONFIG
from stellarbyte.errors import UserError, shown
from stellarbyte.layer_ranges import layer_ranges
from stellarbyte.lora_values import check_numbers, is_whole
from stellarbyte.patterns import check_patterns
from stellarbyte.reading import MIB, read_json_object
from stellarbyte_jax.lora_config import LoRAConfig, ends_with

# Fields of PEFT that do not change what a saved adapter computes, whatever their value.
_SILENT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "layers_pattern", "lora_ga_config", "loftq_config", "megatron_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip

# Fields that say what is adapted and at what rank. The tensors tell that as well; alphas are derived below.
_SPOKEN_FOR = {
    "alpha_pattern", "exclude_modules", "init_lora_weights", "layers_to_transform", "lora_alpha", "lora_dropout", "r",
    "rank_pattern", "target_modules", "use_rslora",
}  # fmt: skip

# Other ways to start change the base as well, so such an adapter does not fit the base as it was.
_STARTS_BESIDE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")


# The expression by which PEFT looks up a module's full name among a pattern's keys.
_FITTED = r"(.*\.)?({})$"
# That by which it finds the number of a module's layer, behind what layers_pattern names.
_LAYER = r"(?:^|.*?\.){}\.(?P<layer>\d+)\."


@dataclass(frozen=True)
class Adapted:
    """What the tensors of an adapter show: the adapted layers, and each adapted module with its rank."""

    layers: list[int]
    ranks: dict[str, int]


def to_peft(
    config: LoRAConfig, modules: Iterable[str], num_hidden_layers: int, base_model: str | None
) -> dict[str, Any]:
    """The fields of adapter_config.json for the adapters of a run; `modules` are the modules that are adapted."""
    modules = list(modules)
    every = isinstance(config.target_modules, str)
    targets = {name.rpartition(".")[2] for name in modules} if every else set(config.target_modules)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "target_modules": sorted(targets),
        "layers_to_transform": None if config.layers is None else config.layer_numbers(num_hidden_layers),
        "r": config.r,
        "lora_alpha": _whole(config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "rank_pattern": _in_any_order(config.rank_pattern, modules),
        "alpha_pattern": _in_any_order({name: _whole(a) for name, a in config.alpha_pattern.items()}, modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def read(folder: Path) -> dict[str, Any]:
    """The fields of a folder's adapter_config.json, after checking that adapters in JAX can have each of them.

    Raises:
        UserError: there is no such file, it is no LoRA, or a field would change what the adapter computes.
    """
    path = folder / ADAPTER_CONFIG
    fields = read_json_object(path, 16 * MIB)
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {shown(kind)}, and JAX holds LORA adapters alone: train one of these")
    for name, value in fields.items():
        neutral = value in (None, False, "none") or value in ([], {})
        if name not in _SILENT | _SPOKEN_FOR and not neutral:
            text = json.dumps(value) if len(json.dumps(value)) < 100 else shown(value)
            raise UserError(f"{path}: {shown(name)[1:-1]} is {text}, which adapters in JAX cannot have: train without")
    start = fields.get("init_lora_weights", True)
    if start not in _STARTS_BESIDE_THE_BASE:
        raise UserError(
            f"{path}: init_lora_weights is {shown(start)}, which changes the base as well: save the adapter as "
            "one for the base as it was, as PEFT's path_initial_model_for_weight_conversion does"
        )
    try:
        check_numbers(fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(fields.get("use_rslora", False), bool):
        raise UserError(f"{path}: use_rslora is {shown(fields['use_rslora'])}: write true or false")
    return fields


def from_peft(fields: Mapping[str, Any], adapted: Adapted, modules: list[str], layers: int, where: str) -> LoRAConfig:
    """The run's config of the same adapters.

    Args:
        fields: the fields that `read` returned.
        adapted: what the tensors show.
        modules: all modules of a layer that could be adapted.
        layers: the number of layers of the model.
        where: names the source of `fields` in errors.

    Raises:
        UserError: a module's alpha differs from layer to layer, or a rank or the modules from what the tensors show.
    """
    names = [f"model.layers.{layer}.{module}" for module in adapted.ranks for layer in adapted.layers]
    _check_targets(
        fields, names, [f"model.layers.{layer}.{module}" for module in modules for layer in range(layers)], where
    )
    fitted = {
        f"{where}: {field}[{key!r}]": (key, _FITTED.format(key))
        for field in ("rank_pattern", "alpha_pattern")
        for key in fields.get(field) or {}
    }
    check_patterns(fitted, names)
    alphas: dict[str, float] = {}
    for module, rank in adapted.ranks.items():
        full_names = [f"model.layers.{layer}.{module}" for layer in adapted.layers]
        stated = {_by_pattern(fields.get("rank_pattern"), name, fields.get("r", 8)) for name in full_names}
        if stated != {rank}:
            raise UserError(f"{where}: {module} has rank {rank}, but r and rank_pattern say {sorted(stated)}")
        several = {_by_pattern(fields.get("alpha_pattern"), name, fields.get("lora_alpha", 8)) for name in full_names}
        if len(several) > 1:
            raise UserError(
                f"{where}: alpha_pattern gives {module} {sorted(several)} in different layers, where adapters in JAX "
                "have one: train with one"
            )
        alphas[module] = several.pop()

    common: dict[str, Any] = {
        "r": fields.get("r", 8),
        "lora_alpha": fields.get("lora_alpha", 8),
        "lora_dropout": fields.get("lora_dropout", 0.0),
        "use_rslora": fields.get("use_rslora", False),
        "layers": None if len(adapted.layers) == layers else layer_ranges(adapted.layers),
    }
    targets = fields.get("target_modules")
    as_written = LoRAConfig(
        target_modules=tuple(targets) if targets and isinstance(targets, list) else tuple(adapted.ranks),
        rank_pattern=fields.get("rank_pattern") or {},
        alpha_pattern=fields.get("alpha_pattern") or {},
        **common,
    )
    # Only PEFT knows regular expressions and names of single layers; for these, modules are named one by one.
    one_by_one = LoRAConfig(
        target_modules=tuple(adapted.ranks),
        rank_pattern={module: rank for module, rank in adapted.ranks.items() if rank != common["r"]},
        alpha_pattern={module: alpha for module, alpha in alphas.items() if alpha != common["lora_alpha"]},
        **common,
    )
    return as_written if _describe(as_written, modules) == _describe(one_by_one, modules) else one_by_one


def _check_targets(fields: Mapping[str, Any], adapted: list[str], names: list[str], where: str) -> None:
    """Refuses fields by which PEFT would adapt other modules than the tensors do, and pass over tensors in silence."""
    targets = fields.get("target_modules")
    for field in ("target_modules", "exclude_modules", "layers_pattern"):
        value = fields.get(field)
        are_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not (value is None or isinstance(value, str) or are_names):
            raise UserError(f"{where}: {field} is {shown(value)}: write a list of names, or one regular expression")
    layers = fields.get("layers_to_transform")
    if not (
        layers is None or is_whole(layers, 0) or (isinstance(layers, list) and all(is_whole(n, 0) for n in layers))
    ):
        raise UserError(f"{where}: layers_to_transform is {shown(layers)}: write layer numbers, such as [0, 1]")
    if targets is None or targets == "all-linear":
        return
    expressions = {
        f"{where}: {field}": (value, value)
        for field in ("target_modules", "exclude_modules")
        if isinstance(value := fields.get(field), str)
    }
    check_patterns(
        expressions | {f"{where}: layers_pattern[{p!r}]": (p, _LAYER.format(p)) for p in _patterns(fields)}, names
    )
    chosen = {name for name in names if _is_target(fields, name)}
    for name in sorted(chosen ^ set(adapted)):
        has, lacks = ("fields", "tensors") if name in chosen else ("tensors", "fields")
        raise UserError(
            f"{where} adapts {name} by its {has} and not by its {lacks}, where target_modules is {shown(targets)}: "
            "config and weights are of different adapters, so save the adapter again"
        )


def _is_target(fields: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT would adapt the module of this name, by its `check_target_module_exists`."""
    excluded, targets, layers = (fields.get(f) for f in ("exclude_modules", "target_modules", "layers_to_transform"))
    if excluded and (
        re.fullmatch(excluded, name) if isinstance(excluded, str) else any(ends_with(name, end) for end in excluded)
    ):
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    if not any(ends_with(name, end) for end in targets or ()):
        return False
    if layers is None or layers == []:
        return True
    found = next((m for p in _patterns(fields) or [r"[^.]*"] if (m := re.match(_LAYER.format(p), name))), None)
    return found is not None and int(found["layer"]) in ([layers] if isinstance(layers, int) else layers)


def _patterns(fields: Mapping[str, Any]) -> list[str]:
    value = fields.get("layers_pattern") or []
    return [value] if isinstance(value, str) else value


def _describe(config: LoRAConfig, modules: list[str]) -> dict[str, tuple[int, float]]:
    return {module: (config.rank(module), config.scaling(module)) for module in modules if config.adapts(module)}


def _by_pattern(pattern: Mapping[str, Any] | None, name: str, otherwise: Any) -> Any:
    """The value of the first key that matches a module's full name, as PEFT looks it up."""
    for key, value in (pattern or {}).items():
        if re.match(_FITTED.format(key), name):
            return value
    return otherwise


def _in_any_order(pattern: Mapping[str, Any], modules: list[str]) -> dict[str, Any]:
    """A run's pattern as a pattern of PEFT's that means the same in any order, because PEFT sorts keys when it saves.

    If two keys with different values match one module, a run takes the first; then each module is named in full.
    """
    fitting = {module: [value for name, value in pattern.items() if ends_with(module, name)] for module in modules}
    if all(len(set(values)) < 2 for values in fitting.values()):
        return dict(pattern)
    return {rf"^model\.layers\.\d+\.{re.escape(module)}": values[0] for module, values in fitting.items() if values}


def _whole(number: float) -> float:
    """The number as an integer if it is one, which is how PEFT writes an alpha."""
    return int(number) if float(number).is_integer() else number
