"""Lets exports be read from and written to a bucket, by way of a temporary folder of this machine."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convert.shards import INDEX, WEIGHT_FILE
from convert.staged_folder import CERTIFICATE, MANIFEST, PICTURE
from stellarbyte.bucket_lock import NAME as LOCK
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import BucketPath, Place
from stellarbyte.reading import read_json

# Without these a folder is neither a model nor an adapter; they are written last and deleted first.
_HEADS = ("adapter_config.json", "config.json")


@contextmanager
def read_here(folder: Place) -> Iterator[Path]:
    """The folder itself, or a copy of one that is in a bucket, which is deleted afterwards.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    if not isinstance(folder, BucketPath):
        yield folder
        return
    files = folder.files()
    if not files:
        raise UserError(f"{folder} holds no files: name a folder that an export was written to")
    with tempfile.TemporaryDirectory(prefix="stellarbyte-") as temporary:
        copy = Path(temporary) / folder.name
        for file in files:
            here = copy / file.key.removeprefix(folder.key).lstrip("/")
            here.parent.mkdir(parents=True, exist_ok=True)
            file.download(here)
        yield copy


@contextmanager
def written_there(folder: Place, force: bool) -> Iterator[Path]:
    """The folder itself, to write an export to, or a temporary one whose files then go into the bucket.

    An earlier export in the bucket is replaced: its config goes first and the new one comes last, so that a folder of
    which only a part is there is no model to anybody.

    force: whether to replace the files of a model that no export wrote; other files stay in any case.

    Raises:
        UserError: the folder holds files that no export wrote, without `force`; or it cannot be written.
    """
    if not isinstance(folder, BucketPath):
        yield folder
        return
    with folder_lock(folder, doing="export"):
        ours = _replaceable(folder, force)
        with tempfile.TemporaryDirectory(prefix="stellarbyte-") as temporary:
            here = Path(temporary) / folder.name
            yield here
            for name in sorted(ours, key=lambda name: name not in _HEADS):
                (folder / name).unlink(missing_ok=True)
            for file in sorted(here.iterdir(), key=lambda file: (file.name in _HEADS, file.name == MANIFEST)):
                (folder / file.name).upload(file)


def _replaceable(folder: BucketPath, force: bool) -> set[str]:
    """The names of the files that the new export takes the place of."""
    there = {path.name for path in folder.iterdir()} - {LOCK}
    listed: object = None
    if MANIFEST in there:
        manifest = read_json(folder / MANIFEST)
        listed = manifest.get("files") if isinstance(manifest, dict) else None
    ours = there & {MANIFEST, CERTIFICATE, PICTURE, *(listed if isinstance(listed, dict) else ())}
    foreign = sorted(there - ours)
    if foreign and not force:
        others = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{folder} holds {foreign[0]}{others}, which no export wrote: name another folder, or use --force to "
            "replace the files of the model and keep the rest"
        )
    # Weights of another model must not stay: transformers would load them beside ours, or instead of them.
    return ours | {name for name in foreign if WEIGHT_FILE.fullmatch(name) or name in (INDEX, *_HEADS)}
