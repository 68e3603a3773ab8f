"""Builds frozen dataclasses from nodes; errors give file:line, the field and what was expected."""

import collections.abc
import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from stellarbyte.config.nodes import Node
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError, shown

Config = TypeVar("Config")

_LISTS = (list, tuple, collections.abc.Iterable)
_MAPPINGS = (dict, Mapping)

# Truth values of YAML 1.1, which a field of true or false still accepts.
_TRUTH = {"yes": True, "on": True, "no": False, "off": False}

# A longer list of names in an error would not help.
_MOST_FIELDS_LISTED = 60


def build(kind: type[Config], node: Node, name: str = "", root: type | None = None) -> Config:
    """A dataclass `kind` built from a mapping of its fields; errors call it `name`.

    root: the dataclass whose sections are searched for a misplaced field, for a hint; `kind` by default.

    Raises:
        UserError: where `field_values` does, or if the dataclass refuses a value.
    """
    if node.value is None:
        node = Node({}, node.where)
    values = field_values(kind, node, name, root or kind)
    try:
        return kind(**values)
    except UserError as error:
        first = str(error).split()[0].rstrip(",:")
        prefix = f"{name}." if name and first.partition(".")[0] in _fields(kind) else ""
        raise UserError(f"{_blamed(node, first.removeprefix(f'{name}.')).where}: {prefix}{error}") from None


def field_values(kind: type, node: Node, name: str = "", root: type | None = None) -> dict[str, Any]:
    """The values in a mapping for fields of the dataclass `kind`, by name; it may be any package's dataclass.

    Fields may be int, float, bool, str, an Enum, a Literal, a dataclass, a list, tuple or mapping, or a union of these
    and None.

    Raises:
        UserError: a field is unknown (the nearest valid name is given), missing, or has a value of another type.
    """
    prefix = f"{name}." if name else ""
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: {name or 'the file'} is {shown(node.value)}, expected {_describe(kind)}")
    fields = _fields(kind)
    for key, value in node.value.items():
        if key not in fields:
            hint = _suggestion(key, prefix, fields, kind, root or kind)
            raise UserError(f"{value.where}: {prefix}{_short(key)} is not a field; {hint}")
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [f"{prefix}{key}" for key in required if key not in node.value]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise UserError(f"{node.where}: {' and '.join(missing)} {verb} missing and must be given")
    types_ = typing.get_type_hints(kind)
    return {key: _coerce(types_[key], value, f"{prefix}{key}", root or kind) for key, value in node.value.items()}


def _fields(kind: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind) if field.init}


def _blamed(node: Node, name: str) -> Node:
    """The node of the field `name` that a dataclass rejects, or the node around it if the file does not give it."""
    for key in name.split("."):
        if isinstance(node.value, dict):
            node = node.value.get(key, node)
    return node


def _coerce(kind: Any, node: Node, name: str, root: type) -> Any:
    value = node.value
    options = options_of(kind)
    if value is None and (types.NoneType in options or Any in options):
        return None
    options = [option for option in options if option is not types.NoneType]
    if len(options) > 1:
        return _coerce_to_one_of(options, node, name, root)
    (kind,) = options
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return plain(node)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, node, name, root)
    if origin in _MAPPINGS and isinstance(value, dict | None):
        inner = arguments[1] if arguments else Any
        return {key: _coerce(inner, item, f"{name}.{key}", root) for key, item in (value or {}).items()}
    if origin in _LISTS and isinstance(value, list):
        inner = arguments[0] if arguments else Any
        items = [_coerce(inner, item, f"{name}.{i}", root) for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
        # An integer may be too large for any float, and float() would raise.
        number = math.inf if isinstance(value, int) and value.bit_length() > 1000 else float(value)
        if math.isfinite(number):
            return number
    elif origin is int and type(value) is int:
        if -(2**63) <= value < 2**63:
            return value
        raise UserError(f"{node.where}: {name} is {shown(value)}, which no integer of 64 bits holds")
    elif origin is bool and isinstance(value, bool | str) and _truth(value) is not None:
        return _truth(value)
    elif origin is str and (isinstance(value, str) or node.word is not None):
        # On the command line any word may be a string, such as 2026 in --output_dir 2026.
        return _checked_text(value if isinstance(value, str) else node.word or "", node, name)
    choices = _choices(kind)
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    near = difflib.get_close_matches(_short(str(value)), map(str, choices), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{node.where}: {name} is {shown(value)}, expected {_describe(kind)}{hint}")


def _coerce_to_one_of(options: list[Any], node: Node, name: str, root: type) -> Any:
    fitting = [option for option in options if _takes(option, node.value)]
    for option in fitting or options:
        try:
            return _coerce(option, node, name, root)
        except UserError:
            if len(fitting) == 1:
                raise  # the error is about something inside this list or mapping
    expected = " or ".join(map(_describe, options))
    raise UserError(f"{node.where}: {name} is {shown(node.value)}, expected {expected}")


def _takes(option: Any, value: Any) -> bool:
    """Whether `value` is a list or a mapping that `option` may hold."""
    origin = typing.get_origin(option) or option
    if isinstance(value, list):
        return origin in _LISTS
    return isinstance(value, dict) and (origin in _MAPPINGS or dataclasses.is_dataclass(option))


def _truth(value: bool | str) -> bool | None:
    return value if isinstance(value, bool) else _TRUTH.get(value.lower())


def _checked_text(text: str, node: Node, name: str) -> str:
    if "\0" in text:
        raise UserError(f"{node.where}: {name} is {shown(text)}, which holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{node.where}: {name} is {shown(text)}, which is not UTF-8 text") from None
    return text


def options_of(kind: Any) -> list[Any]:
    """The types in a union; str beside an Enum is left out, because it only stands for the Enum's values."""
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    options = list(typing.get_args(kind)) if is_union else [kind]
    has_enum = any(isinstance(option, enum.EnumMeta) for option in options)
    # str comes last, because any word of an override passes as a string; Python keeps no reliable order here.
    return sorted((option for option in options if not (has_enum and option is str)), key=lambda option: option is str)


def _choices(kind: Any) -> tuple[Any, ...]:
    if isinstance(kind, enum.EnumMeta):
        return tuple(member.value for member in kind)  # type: ignore[var-annotated]
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def _describe(kind: Any) -> str:
    if (typing.get_origin(kind) or kind) in _LISTS:
        return "a list"
    if choices := _choices(kind):
        return f"one of {', '.join(map(str, choices))}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with fields such as {dataclasses.fields(kind)[0].name}"
    names = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string (quote it)"}
    return names.get(kind, "a mapping")


def _short(text: str) -> str:
    if not text:
        return "''"
    return text if len(text) <= 100 else f"{text[:100]}…"


def _suggestion(key: str, prefix: str, fields: Mapping[str, Any], kind: type, root: type) -> str:
    key = _short(key)
    near = difflib.get_close_matches(key, fields, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    # The name may be right but in the wrong section, such as learning_rate at the top.
    elsewhere = {name.rpartition(".")[2]: name for name in _all_names(root, "")}
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.8)
    if near:
        return f"did you mean {elsewhere[near[0]]}?"
    listed = ", ".join(fields) if len(fields) <= _MOST_FIELDS_LISTED else f"those of {kind.__name__}"
    return f"the fields here are {listed}"


def _all_names(kind: type, prefix: str) -> list[str]:
    names = []
    for name, inner in typing.get_type_hints(kind).items():
        section = dataclasses.is_dataclass(inner) and isinstance(inner, type)
        names += _all_names(inner, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return names
