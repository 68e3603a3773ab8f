"""Decides which folders an export may replace: those of earlier exports, and never what the user put there."""

import os
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from convert.shards import INDEX, WEIGHT_FILE
from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of, write_json
from stellarbyte.journal import NAME as NOTES
from stellarbyte.reading import read_json

MANIFEST = "stellarbyte_export.json"
CERTIFICATE, PICTURE = "certificate.json", "certificate.svg"  # `verify` adds them later, so no manifest lists them


def write_manifest(folder: Path, about: Mapping[str, Any], known: Mapping[str, str]) -> None:
    """Writes into `folder` what it was made of (`about`) and the sha256 of each file, to recognise them later.

    known: file name -> sha256, where that is known already.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.name != NOTES]
    files = {path.name: known.get(path.name) or sha256_of(path) for path in paths}
    write_json(folder / MANIFEST, {**about, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content that `write_manifest` wrote; None if there is no such file, or it is no manifest."""
    try:
        manifest = read_json(folder / MANIFEST)
    except UserError:
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def remove_others(folder: Path, kept: Container[str]) -> None:
    """Removes from an unfinished export what an earlier command left there, but for its notes and what is `kept`."""
    for path in folder.iterdir():
        if path.name not in kept and path.name != NOTES:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def check_replaceable(target: Path, force: bool) -> frozenset[str]:
    """The entries of `target` that an export keeps when it takes its place; there are some only with `force`.

    Raises:
        UserError: `target` is a file, its links lead back to themselves, or it holds files that no export wrote or that
            changed since, without `force`.
    """
    if Path(os.path.realpath(target)).is_symlink():
        raise UserError(f"{target} cannot be written: its links lead back to themselves; name another folder")
    if not target.exists():
        return frozenset()
    if not target.is_dir():
        raise UserError(f"{target} is a file: name a folder for the export")
    foreign = _foreign(target)
    if foreign and not force:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{target} holds {foreign[0]}{others}, which no export wrote or which was changed since: "
            "name another folder, or use --force to replace the files of the model and keep the rest"
        )
    # Weights of another model must not stay: transformers would load them beside ours, or instead of them.
    return frozenset(name for name in foreign if not WEIGHT_FILE.fullmatch(name) and name != INDEX)


def _foreign(folder: Path) -> list[str]:
    manifest = read_manifest(folder)
    names = sorted(path.name for path in folder.iterdir())
    if manifest is None:
        return names
    return [name for name in names if not _is_ours(folder / name, manifest["files"])]


def _is_ours(path: Path, hashes: Mapping[str, str]) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return path.name in (MANIFEST, CERTIFICATE, PICTURE) or (
        path.name in hashes and hashes[path.name] == sha256_of(path)
    )
