"""Finds the files of data sources, each of them once, and reports which files are left out."""

import fnmatch
import glob
import os
import stat
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stellarbyte.errors import UserError, shown_path
from stellarbyte.reading import expanded
from stellarbyte.records.compression import irregular_kind
from stellarbyte.records.formats import SUPPORTED, file_format

# Folders that this project and Hugging Face's libraries write, known by their files; none holds text to train on.
_OUR_FOLDERS = {
    "token shards": ({"manifest.json", "train-documents.npy"}, {"recipe.json", "train-documents.npy"}),
    "adapter": ({"adapter_config.json"},),
    "model": ({"config.json", "model.safetensors"}, {"config.json", "model.safetensors.index.json"}),
    "tokenizer": ({"tokenizer.json", "tokenizer_config.json"},),
    "checkpoint": ({"trainer_state.json"}, {"_CHECKPOINT_METADATA"}),
}
# A run's folder is searched all the same, because it may also hold a corpus.
_OUR_RUNS = ({"config.yaml", "metrics.jsonl"}, {"config.yaml", "checkpoints"})
# Files that are left out of a run's folder, and of a folder above that is itself the source.
_OUR_FILES = {
    *("manifest.json", "recipe.json", "position.json"),
    *("config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "trainer_state.json", "metrics.jsonl", "summary.json", "checkpoints", "ledger"),
    *("divergence.jsonl", "amendments.jsonl"),
}

_NAMES_SHOWN, _KINDS_SHOWN = 3, 8


class SourceFiles(NamedTuple):
    """The files of a source, sorted by path, and one line about the files left out; None if there are none."""

    files: list[Path]
    remark: str | None


class _Found(NamedTuple):
    path: Path
    status: os.stat_result
    is_link: bool


class _LeftOut:
    """The files that are not read: for each kind, their number and the first few names."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: set[Path] = set()  # a folder may be searched for several parts of a glob
        self._kinds: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, path: Path) -> None:
        if path in self._seen:
            return
        self._seen.add(path)
        count, names = self._kinds.get(kind, (0, []))
        if count < _NAMES_SHOWN:
            names.append(shown_path(path.relative_to(self._root) if path.is_relative_to(self._root) else path))
        self._kinds[kind] = (count + 1, names)

    def __str__(self) -> str:
        kinds = sorted(self._kinds.items())
        words = [
            f"{count} {kind} ({', '.join(names)}{', …' if count > len(names) else ''})"
            for kind, (count, names) in kinds[:_KINDS_SHOWN]
        ]
        return ", ".join(words) + (f" and {len(kinds) - _KINDS_SHOWN} kinds more" if len(kinds) > _KINDS_SHOWN else "")


def files_of_sources(sources: Sequence[tuple[str, Hashable]], report: Callable[[str], None]) -> list[tuple[int, Path]]:
    """The files of all sources, in order, each with the index of its source; `report` is called with remarks.

    A source is a path and the manner of reading its files; a file in two sources of the same manner is taken once.

    Raises:
        UserError: where `source_files` does.
    """
    found = []
    seen: dict[tuple[int, int, Hashable], int] = {}
    for index, (path, manner) in enumerate(sources):
        files, remark = source_files(path)
        if remark is not None:
            report(remark)
        again = 0
        for file in files:
            status = status_of(file)
            if seen.setdefault((status.st_dev, status.st_ino, manner), index) == index:
                found.append((index, file))
            else:
                again += 1
        if again:
            report(f"{shown_path(path)}: files that an earlier source has are not read again: {again}")
    return found


def status_of(path: Path) -> os.stat_result:
    """The result of Path.stat.

    Raises:
        UserError: the file is gone, or its folder may not be read.
    """
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"{shown_path(path)} cannot be read: {error.strerror or error}") from None


def source_files(path: str) -> SourceFiles:
    """The files of a source: the file itself, all files of a folder and its subfolders, or the files of a glob.

    Links are followed, and every file is taken once, however many names lead to it. In a folder or a glob, files that
    cannot be read as text are left out, and so are hidden files and the folders that training writes.

    Raises:
        UserError: there are no such files, or none that can be read.
    """
    if not path:
        raise UserError("the path of a source is empty: name a file, a folder or a glob")
    if "\0" in path:
        raise UserError(f"{shown_path(path)} cannot be read: no path holds a NUL character")
    where = expanded(path)
    try:
        status: os.stat_result | None = where.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except OSError as error:  # no permission, too long a name, a loop of links
        raise UserError(f"{shown_path(path)} cannot be read: {error.strerror or error}") from None
    if status is None and not glob.has_magic(path):
        raise UserError(
            f"{shown_path(path)} does not exist: check the path, which is relative to {shown_path(Path.cwd())}"
        )
    if status is not None and not stat.S_ISDIR(status.st_mode):
        kind = irregular_kind(status.st_mode)
        if kind is not None:
            raise UserError(f"{shown_path(path)} is {kind}, not a file: write what it gives to a file, and name that")
        if file_format(where) is None:
            raise UserError(f"{shown_path(path)} has an unsupported format: {SUPPORTED}")
        return SourceFiles([where], None)

    root, pattern = (where, ("**",)) if status is not None else _split_pattern(where)
    left_out = _LeftOut(root)
    try:
        matches = list(_Search(root, left_out).matches(root, pattern)) if root.is_dir() else []
    except OSError as error:
        name = shown_path(error.filename or path)
        raise UserError(f"the folder {name} cannot be read: {error.strerror or error}") from None
    files = _readable(matches, left_out)
    remark = str(left_out)
    if not files and not matches and not (remark and status is not None):
        if status is None:
            raise UserError(
                f"no file matches {shown_path(path)}: check the pattern, which is relative to {shown_path(Path.cwd())}"
            )
        raise UserError(f"the folder {shown_path(path)} holds no file that can be read: {SUPPORTED}")
    if not files:
        what = f"the folder {shown_path(path)} holds" if status is not None else f"{shown_path(path)} matches"
        raise UserError(f"{what} no file that can be read, but {remark}, of an unsupported format: {SUPPORTED}")
    count = f"{len(files)} file{'s' * (len(files) > 1)}"
    return SourceFiles(files, f"{shown_path(path)}: {count} read; left out: {remark}" if remark else None)


def _split_pattern(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder that a glob starts in, and the parts after it."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first]), parts[first:]


def _readable(matches: Iterable[_Found], left_out: _LeftOut) -> list[Path]:
    """The files that can be read as text, each once, under its own name rather than a link's."""
    seen = set()
    files = []
    for found in sorted(matches, key=lambda found: (found.is_link, found.path.as_posix())):
        path, status, _ = found
        kind = irregular_kind(status.st_mode)
        if kind is not None:
            left_out.add(kind.removeprefix("a "), path)
        elif path.name.startswith(("~$", "#")) or path.name.endswith(("~", "#")):
            left_out.add("editor's backup", path)
        elif file_format(path) is None:
            left_out.add("".join(path.suffixes[-1:]).lower() or "without a suffix", path)
        elif (status.st_dev, status.st_ino) not in seen:
            if status.st_size == 0:
                left_out.add("empty", path)
            seen.add((status.st_dev, status.st_ino))
            files.append(path)
    return sorted(files, key=Path.as_posix)


class _Search:
    """Follows a glob's parts from folder to folder; no folder is searched twice, whatever links lead there."""

    def __init__(self, root: Path, left_out: _LeftOut) -> None:
        self._root, self._left_out = root, left_out
        # The folders above the source: a link to one of them would lead to files beside the source.
        self._above = {_identity(folder.stat()) for folder in root.resolve().parents} if root.is_dir() else set()

    def matches(self, folder: Path, parts: Sequence[str]) -> Iterator[_Found]:
        """Everything below `folder` that fits `parts`, except folders."""
        part, rest = parts[0], parts[1:]
        if part == "**":
            for below, entries in self._folders(folder):
                if rest:
                    yield from self.matches(below, rest)
                else:
                    yield from (found for found in entries if not stat.S_ISDIR(found.status.st_mode))
        elif glob.has_magic(part):
            for found in self._entries(folder, part):
                if not fnmatch.fnmatchcase(found.path.name, part):
                    continue
                if not stat.S_ISDIR(found.status.st_mode):
                    if not rest:
                        yield found
                elif rest and not self._is_ours(found.path):
                    yield from self.matches(found.path, rest)
        else:
            path = folder / part
            try:
                status = path.stat()
            except OSError:
                return
            if not rest and not stat.S_ISDIR(status.st_mode):
                yield _Found(path, status, path.is_symlink())
            elif rest and stat.S_ISDIR(status.st_mode):
                yield from self.matches(path, rest)

    def _folders(self, top: Path) -> Iterator[tuple[Path, list[_Found]]]:
        """Every folder from `top` down with its entries; those behind links come last, so that real names are kept."""
        seen: set[tuple[int, int]] = set()
        waiting, behind_links = deque([top]), deque[Path]()
        while waiting or behind_links:
            folder = waiting.popleft() if waiting else behind_links.popleft()
            identity = _identity(folder.stat())
            if identity in seen or identity in self._above or (folder != self._root and self._is_ours(folder)):
                continue
            seen.add(identity)
            entries = self._entries(folder, "*")
            yield folder, entries
            for found in entries:
                if stat.S_ISDIR(found.status.st_mode):
                    (behind_links if found.is_link else waiting).append(found.path)

    def _entries(self, folder: Path, part: str) -> list[_Found]:
        """The entries of a folder, sorted by name, without those left out. `part` may ask for hidden ones by a dot."""
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        names = {entry.name for entry in listed}
        ours = _kind_of_folder(names) is not None or any(needed <= names for needed in _OUR_RUNS)
        found = []
        for entry in listed:
            path = folder / entry.name
            if entry.name.startswith(".") and not part.startswith("."):
                if fnmatch.fnmatchcase(entry.name, part) and not entry.name.endswith(".lock"):
                    self._left_out.add("hidden", path)
            elif ours and entry.name in _OUR_FILES:
                self._left_out.add("written by training", path)
            else:
                try:
                    found.append(_Found(path, entry.stat(), entry.is_symlink()))
                except OSError:
                    self._left_out.add("link to nothing", path)
        return found

    def _is_ours(self, folder: Path) -> bool:
        kind = _kind_of_folder(set(os.listdir(folder)))  # noqa: PTH208 - only the names are needed
        if kind is not None:
            self._left_out.add(kind, folder)
        return kind is not None


def _kind_of_folder(names: set[str]) -> str | None:
    for kind, markers in _OUR_FOLDERS.items():
        if any(needed <= names for needed in markers):
            return kind
    return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
