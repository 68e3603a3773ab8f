"""Fields of a config file that the command line gives another value: `--section.field value`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml

from stellarbyte.errors import UserError
from stellarbyte_torch.config_file import Node


def override(root: Node, words: Sequence[str]) -> Node:
    """The nodes with command-line words put over them: `--training.max_steps=10 --data.sources.0.path X`.

    Values are YAML. Whether such a field exists is for the dataclasses to say.

    Raises:
        UserError: words that are no override, or a name that leads through something that has no fields.
    """
    for name, value in _parse(words):
        root = _put(root, name.split("."), value, "")
    return root


def _parse(words: Sequence[str]) -> list[tuple[str, Node]]:
    parsed = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise UserError(f"{word!r} is not an override: write --section.field value")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"{word} has no value: write {word} value")
            value = remaining.pop(0)
        where = word if equals else f"{word} {value}"
        try:
            node = _located(yaml.safe_load(value), where)
        except (yaml.YAMLError, ValueError):
            node = Node(value, where)
        parsed.append((name, dataclasses.replace(node, word=value)))
    return parsed


def _located(value: Any, where: str) -> Node:
    if isinstance(value, dict):
        return Node({str(key): _located(item, where) for key, item in value.items()}, where)
    return Node([_located(item, where) for item in value] if isinstance(value, list) else value, where)


def _put(node: Node, keys: list[str], value: Node, name: str) -> Node:
    """The node with `value` in it at the end of the path `keys`; `name` is the path to the node."""
    if not keys:
        return value
    key, *rest = keys
    inner = f"{name}.{key}" if name else key
    if node.value is None or isinstance(node.value, dict):
        fields = node.value or {}
        child = fields.get(key, Node(None, value.where))
        return Node({**fields, key: _put(child, rest, value, inner)}, node.where)
    if not isinstance(node.value, list):
        raise UserError(f"{value.where}: {name} is {node.value!r}, which has no field {key}")
    items = list(node.value)
    if not key.isdecimal() or int(key) > len(items):
        raise UserError(f"{value.where}: {name} is a list of {len(items)}: {key!r} is no index of it")
    index = int(key)
    child = items[index] if index < len(items) else Node(None, value.where)
    items[index : index + 1] = [_put(child, rest, value, inner)]
    return Node(items, node.where)
