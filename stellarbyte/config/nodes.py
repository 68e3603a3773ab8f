"""Reads YAML files and command-line overrides into nodes that remember where they stand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from stellarbyte.errors import UserError, shown
from stellarbyte.places import Place
from stellarbyte.reading import MIB, read_text

# Bounds that no real config comes near.
MOST_BYTES = MIB
MOST_VALUES = 20_000
MOST_DEPTH = 40


@dataclass(frozen=True)
class Node:
    """A value as written: a scalar, or a mapping or list of nodes; its place; and the characters of an override."""

    value: Any
    where: str
    word: str | None = None


def read_yaml(path: Place) -> Node:
    """The nodes of a YAML file, which must hold a mapping; an empty file is an empty mapping.

    Raises:
        UserError: the file cannot be read, is not YAML (see `parse_yaml`), or holds something else than a mapping.
    """
    node = parse_yaml(read_text(path, MOST_BYTES), str(path)) or Node({}, f"{path}:1")
    if not isinstance(node.value, dict):
        raise UserError(f"{node.where}: the file is {shown(node.value)}, expected fields and their values")
    return node


def parse_yaml(text: str, path: str | None, where: str = "") -> Node | None:
    """The nodes of a YAML text, or None if it is empty; their place is `where` unless `path` names a file.

    Scalars are those of YAML 1.2's core schema: 010 is ten, and 1:30, on, and 2026-01-01 are words.

    Raises:
        UserError: the text is not YAML, gives a key twice, has a tag such as !!timestamp (which no field needs), more
            than `MOST_DEPTH` levels, or more than `MOST_VALUES` values; an alias counts wherever it is used.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        return None if root is None else _Conversion(path, where).convert(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and path else ""
        invalid = "" if isinstance(error, _TooMany) else "is not valid YAML: "
        raise UserError(f"{path or where}{line}: {invalid}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path or where}: is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path or where}: is nested deeper than {MOST_DEPTH} levels") from None


def locate(value: Any, where: str) -> Node:
    """Nodes of plain dicts, lists and scalars, all with the place `where`."""
    if isinstance(value, Mapping):
        return Node({str(key): locate(item, where) for key, item in value.items()}, where)
    return Node([locate(item, where) for item in value] if isinstance(value, list | tuple) else value, where)


class _Loader(yaml.SafeLoader):
    """YAML 1.1's syntax with the scalars of YAML 1.2's core schema, so that no word surprisingly becomes a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as in PyYAML
    _composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's method with a bound on the number of keys and values, each of which takes a kilobyte of memory."""
        self._composed += 1
        if self._composed > 2 * MOST_VALUES:
            raise _TooMany(None, None, f"the file stands for more than {MOST_VALUES} values", self.get_mark())
        return super().compose_node(parent, index)


class _TooMany(yaml.MarkedYAMLError):
    """The file has more nodes than may be read."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), _first)


def is_word(text: str) -> bool:
    """Whether YAML reads this text as a string if it is not quoted."""
    return _implicit_kind(text) == "str"


def _implicit_kind(text: str) -> str:
    for tag, pattern in _Loader.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            return tag.rpartition(":")[2]
    return "str"


class _Conversion:
    """Converts PyYAML's nodes to ours, and counts them, because nested aliases may stand for more than memory holds."""

    def __init__(self, path: str | None, where: str) -> None:
        self._path, self._where, self._count = path, where, 0

    def convert(self, node: yaml.Node, ancestors: tuple[yaml.Node, ...]) -> Node:
        where = self._place(node)
        self._count += 1
        if self._count > MOST_VALUES:
            raise UserError(f"{where}: the file stands for more than {MOST_VALUES} values, aliases counted")
        if any(node is ancestor for ancestor in ancestors):
            raise UserError(f"{where}: the alias contains itself")
        if isinstance(node, yaml.CollectionNode):
            if len(ancestors) == MOST_DEPTH:
                raise UserError(f"{where}: is nested deeper than {MOST_DEPTH} levels")
            if node.tag.rpartition(":")[2] not in ("map", "seq"):
                raise UserError(f"{where}: has the tag {node.tag}: write the value without a tag")
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, (*ancestors, node)), where)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.convert(item, (*ancestors, node)) for item in node.value], where)
        return Node(self._scalar(node, where), where)

    def _mapping(self, node: yaml.MappingNode, ancestors: tuple[yaml.Node, ...]) -> dict[str, Node]:
        mapping: dict[str, Node] = {}
        for key, value in node.value:
            where = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{where}: a field's name must be a word, not a {key.id}")
            if key.value in mapping:
                raise UserError(f"{where}: {key.value} is given twice, first at {mapping[key.value].where}")
            # The place is the key's line, because a block below the key begins on a later line.
            mapping[key.value] = replace(self.convert(value, ancestors), where=where)
        return mapping

    def _scalar(self, node: yaml.ScalarNode, where: str) -> Any:
        kind, text = node.tag.rpartition(":")[2], node.value
        if kind not in ("str", _implicit_kind(text)):
            raise UserError(f"{where}: {shown(text)} has the tag {node.tag}: write the value without a tag")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if kind == "int":
            if len(text) > 4000:  # Python itself refuses integers that are a little longer
                raise UserError(f"{where}: {shown(text)} has {len(text)} digits: no field takes such a number")
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        return text

    def _place(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}" if self._path else self._where
