"""The sha256 of a folder's files, noted once they are on disk, so that damage is seen before anything is read.

The note carries a sha256 of itself too: what it says about the folder is trusted as little as the files are.
"""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.files import check_plain_name, sha256_of, sha256_of_json, write_json
from stellarbyte.reading import read_json

MANIFEST = "stellarbyte_files.json"

# People write into these, and nothing is computed from them.
_NOT_NOTED = {MANIFEST, "README.md"}


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Notes every file below the folder, and `about`; the last thing to be written, since it says that all is there.

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
    """What `write_manifest` noted; None where there is no such file, or one that it would not write."""
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
    """What is wrong with a folder that a manifest was written into, in a few words; None of a whole one."""
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
    """Holds a folder against its manifest, if it has one; others pass.

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
