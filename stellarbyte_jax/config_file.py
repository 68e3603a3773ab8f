"""Config files: YAML and command-line overrides to the dataclasses of `config`, and back; every mistake is located."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stellarbyte.errors import UserError
from stellarbyte.files import write_text
from stellarbyte_jax.config import ByteConfig, LoRAConfig, RunConfig
from stellarbyte_jax.config_nodes import Node, apply_override, expand_model, locate, parse_overrides, read_yaml

Config = TypeVar("Config")

# YAML 1.1 takes these for strings, everybody else for numbers: 3e-4 (no dot), 1.0e5 (no sign).
_NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's YAML file, with command-line overrides put over it.

    `overrides` are words as on a command line: `--seed 3`, `--training.max_steps=10`, `--data.sources.0.path X`. Values
    are YAML. `model` is a mapping, or the path of a model's YAML file: relative to the run's file where that names it,
    to the current directory where an override does. It may be left out where `init_from` names a run that has one.

    Raises:
        UserError: naming file:line or override, field, value and what was expected.
    """
    root = read_yaml(Path(path))
    for name, override in parse_overrides(overrides):
        apply_override(root, name.split("."), override, Path(path).parent)
    expand_model(root, Path(path).parent)
    return _build(RunConfig, root, "", RunConfig)


def load_model_config(path: str | Path) -> ByteConfig:
    """Reads a model's YAML file; raises UserError as `load_run_config` does."""
    return _build(ByteConfig, read_yaml(Path(path)), "", ByteConfig)


def save_config(config: RunConfig | ByteConfig, path: str | Path) -> None:
    """Writes the whole config of a run or a model as YAML, from which `load_…_config` makes an equal one."""
    text = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_text(Path(path), text)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as dicts, lists and scalars, ready for JSON or YAML."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def run_config_from_dict(mapping: Mapping[str, Any], where: str) -> RunConfig:
    """The inverse of `to_dict`; `where` names the source in errors."""
    return _build(RunConfig, locate(mapping, where), "", RunConfig)


def model_config_from_dict(mapping: Mapping[str, Any], where: str) -> ByteConfig:
    """The inverse of `to_dict` for a model; `where` names the source in errors."""
    return _build(ByteConfig, locate(mapping, where), "", ByteConfig)


def lora_config_from_dict(mapping: Mapping[str, Any], where: str) -> LoRAConfig:
    """The inverse of `to_dict` for adapters; `where` names the source in errors."""
    return _build(LoRAConfig, locate(mapping, where), "lora", RunConfig)


def differing_fields(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(dotted name, value in a, value in b) of every field in which two configs of one class differ."""
    assert type(a) is type(b)
    differing = []
    for field in dataclasses.fields(a):
        differing += _differences(field.name, getattr(a, field.name), getattr(b, field.name))
    return differing


class _Dumper(yaml.SafeDumper):
    """Quotes and escapes the exotic line breaks that PyYAML would write bare and read back as spaces."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        exotic = any(character in text for character in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if exotic else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _differences(name: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    if a == b:
        return []
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        return [(f"{name}.{inner}", x, y) for inner, x, y in differing_fields(a, b)]
    if isinstance(a, tuple) and len(a) == len(b) and any(dataclasses.is_dataclass(item) for item in a):
        pairs = enumerate(zip(a, b, strict=True))
        return [difference for i, (x, y) in pairs for difference in _differences(f"{name}.{i}", x, y)]
    return [(name, _plain(a), _plain(b))]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


# Building: nodes to dataclasses.


def _build(kind: type[Config], node: Node, name: str, root: type) -> Config:
    prefix = f"{name}." if name else ""
    if node.value is None:
        node = Node({}, node.where)
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: {name or 'the file'} is {_show(node)}, expected {_describe(kind)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in node.value.items():
        if key not in fields:
            raise UserError(f"{value.where}: {prefix}{key} is not a field; {_suggest(key, prefix, list(fields), root)}")
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [f"{prefix}{key}" for key in required if key not in node.value]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise UserError(f"{node.where}: {' and '.join(missing)} {verb} missing and must be given")
    types_ = typing.get_type_hints(kind)
    values = {key: _coerce(types_[key], value, f"{prefix}{key}", root) for key, value in node.value.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{_blame(node, str(error).split()[0])}: {error}") from error


def _blame(node: Node, name: str) -> str:
    """Where the field `name` that a dataclass rejects stands: its own line, if the file gives it one."""
    blamed = node
    for key in name.split("."):
        if isinstance(blamed.value, dict):
            blamed = blamed.value.get(key, blamed)
    return blamed.where


def _coerce(kind: Any, node: Node, name: str, root: type) -> Any:
    value = node.value
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not types.NoneType]
        lists = [kind for kind in kinds if typing.get_origin(kind) is tuple]
        return _coerce((lists if isinstance(value, list) and lists else kinds)[0], node, name, root)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build(kind, node, name, root)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_coerce(arguments[0], item, f"{name}.{i}", root) for i, item in enumerate(value))
    if typing.get_origin(kind) is Mapping and isinstance(value, dict):
        return {key: _coerce(arguments[1], item, f"{name}.{key}", root) for key, item in value.items()}
    if typing.get_origin(kind) is typing.Literal and isinstance(value, str) and value in arguments:
        return value
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number or (isinstance(value, str) and _NUMBER_WITH_EXPONENT.fullmatch(value)):
            # An integer literal may be beyond every float; float() would raise on it.
            number = math.inf if isinstance(value, int) and value.bit_length() > 1000 else float(value)
            if math.isfinite(number):
                return number
    elif kind in (int, bool, str) and type(value) is kind:
        return value
    elif kind is str and node.word is not None:
        return node.word  # on the command line every word is a string already: --output_dir 2026
    raise UserError(f"{node.where}: {name} is {_show(node)}, expected {_describe(kind)}")


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list"
    if typing.get_origin(kind) is Mapping:
        return "a mapping"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with fields such as {dataclasses.fields(kind)[0].name}"
    return {int: "an integer", float: "a finite number", bool: "true or false", str: "a string (quote it)"}[kind]


def _show(node: Node) -> str:
    shapes = {dict: "a mapping", list: "a list", types.NoneType: "null", bool: str(node.value).lower()}
    return shapes.get(type(node.value), repr(node.value))


def _suggest(key: str, prefix: str, siblings: list[str], root: type) -> str:
    near = difflib.get_close_matches(key, siblings, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    # A right name in the wrong section, such as learning_rate at the top.
    elsewhere = {name.rpartition(".")[2]: name for name in _all_names(root, "")}
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)
    return f"did you mean {elsewhere[near[0]]}?" if near else f"the fields here are {', '.join(siblings)}"


def _all_names(kind: type, prefix: str) -> list[str]:
    names = []
    for name, inner in typing.get_type_hints(kind).items():
        names += _all_names(inner, f"{prefix}{name}.") if dataclasses.is_dataclass(inner) else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return names
