"""Reads a run's or a model's config from YAML and command-line overrides into the dataclasses of `config`, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stellarbyte.config.build import build
from stellarbyte.config.nodes import Node, locate, read_yaml
from stellarbyte.config.overrides import override, parse_overrides
from stellarbyte.config.plain import differing_fields, plain, save_yaml
from stellarbyte.errors import UserError, shown
from stellarbyte.places import Place, local, place
from stellarbyte_jax.config import ByteConfig, LoRAConfig, RunConfig
from stellarbyte_jax.run_folder import check_is_run, model_files

__all__ = [
    "differing_fields",
    "load_model_config",
    "load_run_config",
    "lora_config_from_dict",
    "model_config_from_dict",
    "run_config_from_dict",
    "save_config",
    "to_dict",
]


def load_run_config(path: str | Place, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's YAML file, with command-line overrides put over it.

    `overrides` are words as on a command line: `--seed 3`, `--training.max_steps=10`, `--data.sources.0.path X`. Values
    are YAML. `model` is a mapping, or the path of a model's YAML file. A path in the run's file is relative to that
    file, a path in an override to the current directory. `model` may be left out if `init_from` names a run that has a
    model.

    Raises:
        UserError: a value is refused; the error names file:line or override, field, value and what was expected.
    """
    path = place(path)
    root = read_yaml(path)
    for name, value in parse_overrides(overrides):
        if name.startswith("model."):
            root = _with_model(root, path.parent)
        root = override(root, name, value)
    return build(RunConfig, _with_model(root, path.parent))


def load_model_config(path: str | Place) -> ByteConfig:
    """Reads a model's YAML file; raises UserError as `load_run_config` does."""
    return build(ByteConfig, read_yaml(place(path)))


def save_config(config: RunConfig | ByteConfig, path: str | Place) -> None:
    """Writes the whole config of a run or a model as YAML, from which `load_…_config` makes an equal one."""
    save_yaml(config, path)


def to_dict(config: RunConfig | ByteConfig | LoRAConfig) -> dict[str, Any]:
    """The config as dicts, lists and scalars, ready for JSON or YAML."""
    return plain(config)


def run_config_from_dict(mapping: Mapping[str, Any], where: str) -> RunConfig:
    """The inverse of `to_dict`; `where` names the source in errors."""
    return build(RunConfig, locate(mapping, where))


def model_config_from_dict(mapping: Mapping[str, Any], where: str) -> ByteConfig:
    """The inverse of `to_dict` for a model; `where` names the source in errors."""
    return build(ByteConfig, locate(mapping, where))


def lora_config_from_dict(mapping: Mapping[str, Any], where: str) -> LoRAConfig:
    """The inverse of `to_dict` for adapters; `where` names the source in errors."""
    return build(LoRAConfig, locate(mapping, where), "lora", RunConfig)


def _with_model(root: Node, folder: Place) -> Node:
    """The nodes with a mapping as `model`: a path is replaced by its file, a missing model by that of `init_from`."""
    model, init_from = (root.value.get(name) for name in ("model", "init_from"))
    if model is not None and isinstance(model.value, str):
        path = (Path() if model.word is not None else folder) / str(local(model.value, f"{model.where}: model"))
        if not path.is_file():
            raise UserError(f"{model.where}: model is {shown(model.value)}, but there is no file {path}")
        model = read_yaml(path)
    elif model is None and init_from is not None and isinstance(init_from.value, str):
        model = _model_of_run(init_from)
    return root if model is None else dataclasses.replace(root, value={**root.value, "model": model})


def _model_of_run(init_from: Node) -> Node:
    folder = place(init_from.value)
    try:
        check_is_run(folder, "init_from")
    except UserError as error:
        raise UserError(f"{init_from.where}: {error}") from error
    whole, model = model_files(folder)
    if whole.is_file():
        config = read_yaml(whole)
        is_cut = model.is_file() and _prunes(config)
        if "model" in config.value and not is_cut:
            return config.value["model"]
    if model.is_file():
        return read_yaml(model)
    raise UserError(f"{init_from.where}: {folder} has neither config.yaml nor model.yaml: name its model in `model`")


def _prunes(config: Node) -> bool:
    """Whether a run's config prunes its model while it trains."""
    training = config.value.get("training")
    prune = None if training is None or not isinstance(training.value, Mapping) else training.value.get("prune")
    return prune is not None and prune.value is not None
