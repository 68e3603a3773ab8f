"""Records the sha256 of a folder's files once they are on disk, so that damage is noticed before anything is read.

The manifest also holds a sha256 of itself, because it may be damaged like any other file.
"""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.files import check_plain_name, sha256_of, sha256_of_json, write_json
from stellarbyte.reading import read_json

MANIFEST = "stellarbyte_files.json"

# README.md is left out because people edit it, and nothing is computed from it.
_NOT_NOTED = {MANIFEST, "README.md"}


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Records every file below the folder, and `about`. It must be written last, because it says that all is there.

    Raises:
        UserError: the manifest cannot be written. OSError: a file cannot be read.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _NOT_NOTED:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[name] = sha256_of(path)
    manifest = {**about, "files": files}
    write_json(folder / MANIFEST, {**manifest, "sha256": sha256_of_json(manifest)})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest that `write_manifest` wrote; None if there is none, or it is damaged."""
    try:
        manifest = read_json(folder / MANIFEST)
    except UserError:
        return None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != sha256_of_json(manifest):
        return None
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return None
    return manifest


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that must have a manifest, in a few words; None if nothing is."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    for name, digest in manifest["files"].items():
        try:
            for part in PurePosixPath(name).parts:
                check_plain_name(part, MANIFEST)
            if sha256_of(folder / name) != digest:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        except UserError as error:
            return str(error)
    return None


def check_files(folder: Path) -> None:
    """Checks a folder against its manifest, if it has one; a folder without a manifest passes.

    Raises:
        UserError: a file is missing or changed.
    """
    if not (folder / MANIFEST).exists():
        return
    problem = damage(folder)
    if problem is not None:
        raise UserError(
            f"{folder} is damaged: {problem}; bring it back from a copy or train it again. If you changed it yourself, "
            f"remove {MANIFEST} from it"
        )
