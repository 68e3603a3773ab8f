"""Reads untrusted JSON and text files, with bounds on the kind of file, its size and its depth."""

import json
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError, shown, shown_path
from stellarbyte.places import Place, place

MIB = 1 << 20

# Bounds that no real file comes near: the largest tokenizer.json of a released model has about 35 MiB.
MOST_JSON_BYTES = 256 * MIB
MOST_JSON_DEPTH = 64


def expanded(path: str | Path) -> Path:
    """The path with ~ and ~user replaced. Raises UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{shown_path(path)} cannot be found: {error}") from None


def read_text(path: str | Place, most_bytes: int) -> str:
    """The text of a UTF-8 file of at most `most_bytes`, without a byte order mark.

    Raises:
        UserError: the file cannot be read, is not a regular file (a pipe might block and a device never end), is too
            large, or is not UTF-8.
    """
    path = place(path)
    if "\0" in str(path):
        raise UserError(f"{shown(str(path))} is no file name: it holds a NUL character")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
            raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}: name a file")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > most_bytes:
        raise UserError(f"{path} is larger than {_size(most_bytes)}, the most that such a file may have")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; `where` names the text in errors, such as "file" or "file:line".

    Raises:
        UserError: the text is not JSON, has a key twice in an object, holds a number of thousands of digits, or is
            nested deeper than `MOST_JSON_DEPTH` levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if _deeper_than(value, MOST_JSON_DEPTH):
            raise RecursionError
    except RecursionError:
        raise UserError(f"{where} is nested deeper than {MOST_JSON_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not valid JSON: {error}") from None
    except ValueError as error:  # a key is there twice, or an integer is too long for Python
        raise UserError(f"{where} is not valid JSON: {str(error).partition(':')[0]}") from None
    return value


def read_json(path: str | Place, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The value in a JSON file. Raises UserError where `read_text` and `parse_json` do."""
    return parse_json(read_text(path, most_bytes), str(path))


def read_json_object(path: str | Place, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where `read_json` does, and if the file holds something else."""
    value = read_json(path, most_bytes)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {shown(value)}, expected an object with named fields")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return found


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than `levels`, found without recursion."""
    inside = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        items: Iterable[Any] = (item for outer in inside for item in (outer.values() if type(outer) is dict else outer))
        inside = [item for item in items if isinstance(item, dict | list)]
    return bool(inside)


def _size(count: int) -> str:
    return f"{count // MIB} MiB" if count >= MIB else f"{count // 1024} KiB"
