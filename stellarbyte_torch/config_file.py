"""YAML files to frozen dataclasses; every mistake is told with file:line, field and what was expected."""

import collections.abc
import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stellarbyte.errors import UserError

Config = TypeVar("Config")

# YAML 1.1 takes these for strings, everybody else for numbers: 3e-4 (no dot), 1.0e5 (no sign).
_NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")

_LISTS = (list, tuple, collections.abc.Iterable)

# More names than this are no help in an error.
_MOST_FIELDS_LISTED = 20


@dataclass(frozen=True)
class Node:
    """A value as written: a mapping or list of nodes or a scalar, where it stands, and an override's own characters."""

    value: Any
    where: str
    word: str | None = None


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

    Raises:
        UserError: as `field_values`; or a value that the dataclass refuses.
    """
    if node.value is None:
        node = Node({}, node.where)
    values = field_values(kind, node, name)
    try:
        return kind(**values)
    except UserError as error:
        blamed = node.value.get(str(error).split()[0], node)
        raise UserError(f"{blamed.where}: {name}{'.' if name else ''}{error}") from None


def field_values(kind: type, node: Node, name: str = "") -> dict[str, Any]:
    """What a mapping gives for fields of the dataclass `kind`, by their names; ours or any other package's.

    Fields may be int, float, bool, str, an Enum, a Literal, a dataclass, a list, tuple or dict, or any of several of
    these or None. A dict's inside is taken as it is.

    Raises:
        UserError: an unknown field, with the nearest valid name; a missing one; a value of another type.
    """
    prefix = f"{name}." if name else ""
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: {name or 'the file'} is {_show(node)}, expected {_describe(kind)}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key, value in node.value.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            listed = ", ".join(fields) if len(fields) <= _MOST_FIELDS_LISTED else f"those of {kind.__name__}"
            hint = f"did you mean {prefix}{near[0]}?" if near else f"the fields here are {listed}"
            raise UserError(f"{value.where}: {prefix}{key} is not a field; {hint}")
    for field in fields.values():
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in node.value:
            raise UserError(f"{node.where}: {prefix}{field.name} is missing and must be given")
    types_ = typing.get_type_hints(kind)
    return {key: _coerce(types_[key], value, f"{prefix}{key}") for key, value in node.value.items()}


def plain(value: Any) -> Any:
    """Nodes, dataclasses, tuples and what they hold as dicts, lists and scalars, ready for YAML and JSON."""
    if isinstance(value, Node):
        return plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _coerce(kind: Any, node: Node, name: str) -> Any:
    value = node.value
    options = _options(kind)
    if value is None and (types.NoneType in options or Any in options):
        return None
    options = [option for option in options if option is not types.NoneType]
    if len(options) > 1:
        for option in options:
            try:
                return _coerce(option, node, name)
            except UserError:
                if isinstance(value, list) and (typing.get_origin(option) or option) in _LISTS:
                    raise  # it is about an item
        raise UserError(f"{node.where}: {name} is {_show(node)}, expected {' or '.join(map(_describe, options))}")
    (kind,) = options
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return plain(node)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, node, name)
    if origin is dict and isinstance(value, dict | None):
        return plain(node) or {}
    if origin in _LISTS and isinstance(value, list):
        items = [_coerce(arguments[0] if arguments else Any, item, f"{name}.{i}") for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number or (isinstance(value, str) and _NUMBER_WITH_EXPONENT.fullmatch(value)):
            # An integer literal may be beyond every float; float() would raise on it.
            number = math.inf if isinstance(value, int) and value.bit_length() > 1000 else float(value)
            if math.isfinite(number):
                return number
    elif origin in (int, bool, str) and type(value) is origin:
        return value
    elif origin is str and node.word is not None:
        return node.word  # on the command line every word is a string already: --output_dir 2026
    choices = _choices(kind)
    if value is False and "no" in choices:
        return "no"  # as which YAML 1.1 reads it: save_strategy: no
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    near = difflib.get_close_matches(str(value), map(str, choices), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{node.where}: {name} is {_show(node)}, expected {_describe(kind)}{hint}")


def _options(kind: Any) -> list[Any]:
    """The types that a union joins; a string beside an Enum is one of its values, and so no type of its own."""
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    options = list(typing.get_args(kind)) if is_union else [kind]
    has_enum = any(isinstance(option, enum.EnumMeta) for option in options)
    # A string last, as which an override's word passes in any case; Python keeps no order of its own here.
    return sorted((option for option in options if not (has_enum and option is str)), key=lambda option: option is str)


def _choices(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, enum.EnumMeta):
        return tuple(member.value for member in kind)  # type: ignore[var-annotated]
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) in _LISTS or kind in _LISTS:
        return "a list"
    if choices := _choices(kind):
        return f"one of {', '.join(map(str, choices))}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with fields such as {dataclasses.fields(kind)[0].name}"
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string (quote it)"}
    return names.get(kind, "a mapping")


def _show(node: Node) -> str:
    shapes = {dict: "a mapping", list: "a list", types.NoneType: "null", bool: str(node.value).lower()}
    return shapes.get(type(node.value), repr(node.value))
