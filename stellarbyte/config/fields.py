"""Describes the fields of every config, with type, default and meaning, from the dataclasses' own docstrings."""

import dataclasses
import difflib
import enum
import shutil
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType, NoneType
from typing import Any

from stellarbyte.config.build import options_of
from stellarbyte.config.docstrings import field_docstrings, first_sentence
from stellarbyte.config.plain import plain, yaml_text
from stellarbyte.errors import UserError, shown

FINETUNING = "finetune"

_WIDTH = 100
_MOST_LISTED = 12
_WORDS = {int: "int", float: "float", bool: "true or false", str: "str", Any: "any value"}
_CONFIGS = {
    "": ("stellarbyte_jax.config", "RunConfig"),
    FINETUNING: ("stellarbyte_torch.finetune.config", "FinetuneConfig"),
}


@dataclass(frozen=True)
class Field:
    """A field of a config, described for users.

    name: the dotted name. kind, default: the type and the default in words; the default is None if the field must be
    given. meaning: the docstring, on one line. section: the dataclass of the fields inside it, if there are any.
    metadata: more about those, for `fields_of`. refused: what to write instead, if a config may not give the field.
    """

    name: str
    kind: str
    default: str | None
    meaning: str
    section: type | None
    metadata: Mapping[str, Any]
    refused: str | None

    def text(self, width: int, *, is_listed: bool = False) -> str:
        """The name, type and default on one line, and the meaning below; `is_listed` leaves out the fields within."""
        default = "required" if self.default is None else f"default {self.default}"
        inner = f" {_listed(self.section)}" if self.section is not None and not is_listed else ""
        full_stop = "." if self.meaning[-1:].isalnum() else ""  # PEFT's texts have none
        meaning = textwrap.fill(
            f"{self.meaning}{full_stop}{inner}",
            width,
            initial_indent="    ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        head = textwrap.fill(f"{self.name}: {self.kind}; {default}", width, subsequent_indent="  ")
        return f"{head}\n{meaning}".rstrip()


def describe(path: str = "") -> str:
    """A text about a section or a field: its fields, each with type, default and meaning.

    `path` is dotted, such as "data", "data.sources.path" or "training.remat"; paths of a fine-tuning config begin with
    "finetune". An empty path gives the sections, each with its first sentence.

    Raises:
        UserError: there is no such field; the sentence names the nearest one.
        ModuleNotFoundError: a library that fine-tuning needs is not installed; the door names its extra.
    """
    keys = [key for key in path.split(".") if key and not key.isdecimal()]
    width = min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    if not keys:
        return _overview(width)
    prefix = FINETUNING if keys[0] == FINETUNING else ""
    root = _config(prefix)
    found, fields = None, list(fields_of(root, prefix))
    for index in range(bool(prefix), len(keys)):
        found = next((field for field in fields if field.name == ".".join(keys[: index + 1])), None)
        if found is None:
            raise UserError(f"{shown(path)} is no field of a config; {_suggestion(keys[index:], fields, root, prefix)}")
        if found.refused is not None:
            raise UserError(f"{found.name} is not for the config: {found.refused}")
        fields = [] if found.section is None else list(fields_of(found.section, found.name, found.metadata))
    texts = [] if found is None else [found.text(width, is_listed=True)]
    return "\n\n".join(texts + [field.text(width) for field in fields if field.refused is None])


def fields_of(kind: type, name: str = "", metadata: Mapping[str, Any] = MappingProxyType({})) -> Iterator[Field]:
    """The fields of a dataclass, in order, below the dotted `name`.

    A field's metadata may describe a section in it: "section" is its dataclass, if the field is declared as a mapping;
    "defaults" maps fields of that dataclass to other defaults, in words; and "refused" maps fields that a config may
    not give to what to write instead. `metadata` is the metadata of the field that holds `kind`.
    """
    types, docstrings = typing.get_type_hints(kind), field_docstrings(kind)
    defaults, refused = metadata.get("defaults", {}), metadata.get("refused", {})
    for field in dataclasses.fields(kind):
        if field.init:
            declared, section = types[field.name], field.metadata.get("section")
            yield Field(
                name=f"{name}.{field.name}" if name else field.name,
                kind=_type(declared, section),
                default=defaults.get(field.name, _default(field, declared)),
                meaning=docstrings.get(field.name, ""),
                section=section or _section(declared),
                metadata=field.metadata,
                refused=refused.get(field.name),
            )


def type_words(kind: Any) -> str:
    """A type in the words of YAML's users, such as "float or null", "one of: none, int8, nf4" or "list of str"."""
    return _type(kind, None)


def _type(kind: Any, section: type | None) -> str:
    options = options_of(kind)
    words = [_words(option, section) for option in options if option is not NoneType]
    return " or ".join([*dict.fromkeys(words), *(["null"] if NoneType in options else [])])


def _words(kind: Any, section: type | None) -> str:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    if isinstance(kind, enum.EnumMeta):
        return f"one of: {', '.join(str(member.value) for member in kind)}"  # type: ignore[var-annotated]
    if dataclasses.is_dataclass(kind) or (section is not None and origin in (dict, Mapping)):
        return "section"
    if origin in (list, tuple, Iterable, Sequence):
        inner = _words(arguments[0], None) if arguments else "any value"
        return "list of sections" if inner == "section" else f"list of {inner}"
    if origin in (dict, Mapping):
        return f"mapping of {_words(arguments[0], None)} to {_words(arguments[1], None)}" if arguments else "mapping"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _section(kind: Any) -> type | None:
    """The dataclass in a type that is a dataclass, an optional one, or a list of one; else None."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind
    return next((found for inner in typing.get_args(kind) if (found := _section(inner)) is not None), None)


def _default(field: "dataclasses.Field[Any]", kind: Any) -> str | None:
    if field.default is not dataclasses.MISSING:
        if field.default is None and NoneType not in options_of(kind) and kind is not Any:
            return "as below"
        value = field.default.value if isinstance(field.default, enum.Enum) else field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if dataclasses.is_dataclass(value):
            return "the defaults of its fields"
    else:
        return None
    return yaml_text(plain(value), one_line=True)


def _config(prefix: str) -> type:
    module, name = _CONFIGS[prefix]
    return getattr(import_module(module), name)


def _overview(width: int) -> str:
    lines = ["The fields of a pretraining config, by section:", ""]
    fields = list(fields_of(_config("")))
    entries = [(field.name, first_sentence(field.meaning)) for field in fields]
    entries.append((FINETUNING, "The fields of a fine-tuning config, which are lora, training, data and others."))
    column = max(len(name) for name, _ in entries) + 4
    for name, sentence in entries:
        if name == FINETUNING:
            lines += ["", "And in a config of its own:", ""]
        indent = f"  {name:{column - 2}}"
        lines += textwrap.wrap(sentence, width, initial_indent=indent, subsequent_indent=" " * column)
    return "\n".join(lines)


def _listed(section: type) -> str:
    names = [field.name for field in dataclasses.fields(section) if field.init]
    return f"Its fields are {', '.join(names)}." if len(names) <= _MOST_LISTED else f"It has {len(names)} fields."


def _suggestion(keys: list[str], fields: list[Field], root: type, prefix: str) -> str:
    """A hint about what the user may have meant by the first of `keys`, which is not one of the fields."""
    here = {field.name.rpartition(".")[2]: field.name for field in fields if field.refused is None}
    near = difflib.get_close_matches(keys[0], here, n=1)
    if near:
        return f"did you mean {here[near[0]]}?"
    # The name may be right but in the wrong section.
    everywhere = {name.rpartition(".")[2]: name for name in reversed(list(_names(root, prefix)))}
    near = difflib.get_close_matches(keys[-1], everywhere, n=1, cutoff=0.8)
    if near:
        return f"did you mean {everywhere[near[0]]}?"
    if not here:
        return "that field has no fields in it"
    elsewhere = "" if prefix else f"; those of fine-tuning begin with {FINETUNING}"
    return f"the fields there are {', '.join(here)}{elsewhere}"


def _names(kind: type, name: str, metadata: Mapping[str, Any] = MappingProxyType({})) -> Iterator[str]:
    for field in fields_of(kind, name, metadata):
        if field.refused is None:
            yield field.name
            if field.section is not None:
                yield from _names(field.section, field.name, field.metadata)
