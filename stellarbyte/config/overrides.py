"""Gives fields of a config other values from the command line: `--section.field value`."""

import dataclasses
from collections.abc import Sequence

from stellarbyte.config.nodes import Node, parse_yaml
from stellarbyte.errors import UserError, shown

# The deepest field of any config has about five names.
_MOST_NAMES = 32


def parse_overrides(words: Sequence[str]) -> list[tuple[str, Node]]:
    """The (dotted name, value) of each `--section.field value` or `--section.field=value`; values are YAML.

    Raises:
        UserError: a word does not belong to an override.
    """
    parsed = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise UserError(f"{shown(word)} is not an override: write --section.field value")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"{word} has no value: write {word} value")
            value = remaining.pop(0)
        where = word if equals else f"{word} {value}"
        if len(where) > 200:
            where = f"--{name}"
        parsed.append((name, _value(value, where)))
    return parsed


def override(root: Node, name: str, value: Node) -> Node:
    """The nodes with `value` put at the dotted `name`. The dataclasses check later whether such a field exists.

    Raises:
        UserError: the name leads through a value that has no fields, or is deeper than any config.
    """
    names = name.split(".")
    if len(names) > _MOST_NAMES:
        raise UserError(f"--{shown(name)[1:-1]} has {len(names)} names between dots, where {_MOST_NAMES} are the most")
    return _put(root, names, value, "")


def _value(text: str, where: str) -> Node:
    try:
        node = parse_yaml(text, None, where)
    except UserError:
        node = Node(text, where)  # words such as *.txt or {title}: {text} are not YAML
    return dataclasses.replace(node or Node(None, where), word=text)


def _put(node: Node, keys: list[str], value: Node, name: str) -> Node:
    """`node` with `value` put at the path `keys` inside it; `name` is the path to the node itself."""
    if not keys:
        return value
    key, *rest = keys
    inner = f"{name}.{key}" if name else key
    if node.value is None or isinstance(node.value, dict):
        fields = node.value or {}
        child = fields.get(key, Node(None, value.where))
        return dataclasses.replace(node, value={**fields, key: _put(child, rest, value, inner)})
    if not isinstance(node.value, list):
        raise UserError(f"{value.where}: {name} is {shown(node.value)}, which has no field {key}")
    items = list(node.value)
    is_index = key.isascii() and key.isdecimal() and len(key) < 10
    if not is_index or int(key) > len(items):
        raise UserError(f"{value.where}: {name} is a list of {len(items)}: {shown(key)} is no index of it")
    index = int(key)
    child = items[index] if index < len(items) else Node(None, value.where)
    items[index : index + 1] = [_put(child, rest, value, inner)]
    return dataclasses.replace(node, value=items)
