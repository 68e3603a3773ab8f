"""What was written in a YAML file or a command-line override, as nodes that remember where they stand."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stellarbyte.errors import UserError
from stellarbyte_jax.run_folder import check_is_run, model_files


@dataclass
class Node:
    """A value as written: a mapping or list of nodes or a scalar, where it stands, and an override's own characters."""

    value: Any
    where: str
    word: str | None = None


def read_yaml(path: Path) -> Node:
    """The file's nodes; an empty file is an empty mapping. Raises UserError with file:line."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str, path: str) -> Node:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        return Node({}, path) if root is None else _convert(root, loader, path, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: is not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error


def _convert(node: yaml.Node, loader: yaml.SafeLoader, path: str, ancestors: tuple[yaml.Node, ...]) -> Node:
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
            mapping[key.value] = dataclasses.replace(_convert(value, loader, path, (*ancestors, node)), where=key_where)
        return Node(mapping, where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_convert(item, loader, path, (*ancestors, node)) for item in node.value], where)
    try:
        return Node(loader.construct_object(node), where)
    except ValueError:  # looks like a date, is none
        return Node(node.value, where)


def locate(value: Any, where: str) -> Node:
    """Plain dicts, lists and scalars as nodes, all standing at `where`."""
    if isinstance(value, Mapping):
        return Node({str(key): locate(item, where) for key, item in value.items()}, where)
    return Node([locate(item, where) for item in value] if isinstance(value, (list, tuple)) else value, where)


# Overrides.


def parse_overrides(words: Sequence[str]) -> list[tuple[str, Node]]:
    """(dotted name, value) of each `--section.field value` or `--section.field=value`."""
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
            node = locate(yaml.safe_load(value), where)
        except (yaml.YAMLError, ValueError):
            node = Node(value, where)
        parsed.append((name, dataclasses.replace(node, word=value)))
    return parsed


def apply_override(root: Node, keys: list[str], override: Node, folder: Path) -> None:
    """Puts `override` at the path `keys` under `root`; whether such a field exists is for the dataclasses to say."""
    node = root
    if keys[0] == "model" and len(keys) > 1:
        expand_model(root, folder)
    for depth, key in enumerate(keys):
        name = ".".join(keys[:depth])
        last = depth == len(keys) - 1
        if node.value is None:
            node.value = {}
        if isinstance(node.value, list):
            if not key.isdecimal() or int(key) > len(node.value):
                raise UserError(f"{override.where}: {name} is a list of {len(node.value)}: {key!r} is no index of it")
            index = int(key)
            child = node.value[index] if index < len(node.value) else Node({}, override.where)
            node.value[index : index + 1] = [override if last else child]
        elif isinstance(node.value, dict):
            child = node.value.get(key, Node({}, override.where))
            node.value[key] = override if last else child
        else:
            raise UserError(f"{override.where}: {name} is {node.value!r}, which has no field {key}")
        node = child


def expand_model(root: Node, folder: Path) -> None:
    """Replaces a `model` that is a path by the nodes of that file, and one left out by those of the run `init_from`."""
    if not isinstance(root.value, dict):
        return
    model, init_from = (root.value.get(name) for name in ("model", "init_from"))
    if model is not None and isinstance(model.value, str):
        path = (Path() if model.word is not None else folder) / model.value
        if not path.is_file():
            raise UserError(f"{model.where}: model is {model.value!r}, but there is no file {path}")
        root.value["model"] = read_yaml(path)
    elif model is None and init_from is not None and isinstance(init_from.value, str):
        root.value["model"] = _model_of_run(init_from)


def _model_of_run(init_from: Node) -> Node:
    folder = Path(init_from.value)
    try:
        check_is_run(folder, "init_from")
    except UserError as error:
        raise UserError(f"{init_from.where}: {error}") from error
    whole, model = model_files(folder)
    if whole.is_file():
        config = read_yaml(whole)
        if isinstance(config.value, dict) and "model" in config.value:
            return config.value["model"]
    if model.is_file():
        return read_yaml(model)
    raise UserError(f"{init_from.where}: {folder} has neither config.yaml nor model.yaml: name its model in `model`")
