"""YAML files to frozen dataclasses; every mistake is told with file:line, field and what was expected."""

import dataclasses
import difflib
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stellarbyte_torch.errors import UserError

Config = TypeVar("Config")

# YAML 1.1 takes these for strings, everybody else for numbers: 3e-4 (no dot), 1.0e5 (no sign).
_NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Node:
    """A value as written, a mapping or list of nodes or a scalar, and the file:line where it stands."""

    value: Any
    where: str


def read_yaml(path: Path) -> Node:
    """The nodes of a file, whose top must be a mapping; an empty file is an empty one.

    Raises:
        UserError: the file cannot be read, is no YAML, or holds something else, with file:line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        node = Node({}, f"{path}:1") if root is None else _convert(root, loader, path, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: is not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: the file is {_show(node)}, expected fields and their values")
    return node


def _convert(node: yaml.Node, loader: yaml.SafeLoader, path: Path, ancestors: tuple[yaml.Node, ...]) -> Node:
    where = f"{path}:{node.start_mark.line + 1}"
    if any(node is ancestor for ancestor in ancestors):
        raise UserError(f"{where}: the alias contains itself")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Node] = {}
        for key, value in node.value:
            key_where = f"{path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{key_where}: a field's name must be a word, not a {key.id}")
            if key.value in mapping:
                raise UserError(f"{key_where}: {key.value} is given twice, first at {mapping[key.value].where}")
            # The key's line, not the value's: a block below its key would be blamed on its first line.
            mapping[key.value] = Node(_convert(value, loader, path, (*ancestors, node)).value, key_where)
        return Node(mapping, where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, loader, path, (*ancestors, node)) for item in node.value], where)
    try:
        return Node(loader.construct_object(node), where)
    except ValueError:  # looks like a date, is none
        return Node(node.value, where)


def build(kind: type[Config], node: Node, name: str = "") -> Config:
    """The dataclass `kind` from a mapping of its fields, called `name` in errors.

    Fields may be int, float, bool, str, a Literal, a dataclass, a tuple of one of these, or one of these or None.

    Raises:
        UserError: an unknown field, with the nearest valid name; a missing one; a value of another type, or one that
            the dataclass refuses.
    """
    prefix = f"{name}." if name else ""
    if node.value is None:
        node = Node({}, node.where)
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: {name or 'the file'} is {_show(node)}, expected {_describe(kind)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in node.value.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"the fields here are {', '.join(fields)}"
            raise UserError(f"{value.where}: {prefix}{key} is not a field; {hint}")
    for field in fields.values():
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in node.value:
            raise UserError(f"{node.where}: {prefix}{field.name} is missing and must be given")
    types_ = typing.get_type_hints(kind)
    values = {key: _coerce(types_[key], value, f"{prefix}{key}") for key, value in node.value.items()}
    try:
        return kind(**values)
    except UserError as error:
        blamed = node.value.get(str(error).split()[0], node)
        raise UserError(f"{blamed.where}: {prefix}{error}") from None


def _coerce(kind: Any, node: Node, name: str) -> Any:
    value = node.value
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        (kind,) = (argument for argument in arguments if argument is not types.NoneType)
        return _coerce(kind, node, name)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, node, name)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_coerce(arguments[0], item, f"{name}.{i}") for i, item in enumerate(value))
    if typing.get_origin(kind) is typing.Literal and isinstance(value, str) and value in arguments:
        return value
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number or (isinstance(value, str) and _NUMBER_WITH_EXPONENT.fullmatch(value)):
            # An integer literal may be beyond every float; float() would raise on it.
            number = math.inf if isinstance(value, int) and value.bit_length() > 1000 else float(value)
            if math.isfinite(number):
                return number
    elif kind in (int, bool, str) and type(value) is kind:
        return value
    near = difflib.get_close_matches(str(value), arguments, n=1) if typing.get_origin(kind) is typing.Literal else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{node.where}: {name} is {_show(node)}, expected {_describe(kind)}{hint}")


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "a list"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with fields such as {dataclasses.fields(kind)[0].name}"
    return {int: "an integer", float: "a finite number", bool: "true or false", str: "a string (quote it)"}[kind]


def _show(node: Node) -> str:
    shapes = {dict: "a mapping", list: "a list", types.NoneType: "null", bool: str(node.value).lower()}
    return shapes.get(type(node.value), repr(node.value))
