"""Turns configs into plain dicts, lists and scalars, writes them as YAML, and finds the fields in which two differ."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from stellarbyte.config.nodes import Node, is_word
from stellarbyte.files import write_text
from stellarbyte.places import Place, place


def plain(value: Any) -> Any:
    """The value with nodes, dataclasses and tuples, at any depth, turned into dicts, lists and scalars as in JSON."""
    if isinstance(value, Node):
        return plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def save_yaml(config: Any, path: str | Place) -> None:
    """Writes a whole config as YAML, from which `build` makes an equal config.

    Raises:
        UserError: the file cannot be written; an earlier file stays as it was.
    """
    write_text(place(path), yaml_text(config))


def yaml_text(config: Any, *, one_line: bool = False) -> str:
    """YAML of a config or a value in one; `one_line` gives the form of an override, without a line end."""
    style = {"default_flow_style": True, "width": 1e9} if one_line else {"width": 120}
    text = yaml.dump(plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    return text.removesuffix("...\n").rstrip("\n") if one_line else text


def differing_fields(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """The (dotted name, value in a, value in b) of every field in which two configs differ, with `plain` values."""
    return _differences("", plain(a), plain(b))


def _differences(name: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    prefix = f"{name}." if name else ""
    if isinstance(a, dict) and isinstance(b, dict):
        if name.endswith("_pattern") and a == b and list(a) != list(b):  # order matters: the first key that fits counts
            return [(name, a, b)]
        keys = dict.fromkeys([*a, *b])
        return [found for key in keys for found in _differences(f"{prefix}{key}", a.get(key), b.get(key))]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and any(isinstance(item, dict) for item in a):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (x, y) in pairs for found in _differences(f"{prefix}{i}", x, y)]
    return [] if a == b else [(name, a, b)]


class _Dumper(yaml.SafeDumper):
    """Quotes strings that our reader or another would not read as strings, or would read with other line breaks."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        exotic = any(character in text for character in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if exotic or not is_word(text) else None)


_Dumper.add_representer(str, _Dumper.represent_str)
