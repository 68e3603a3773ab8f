"""Compares the smaller files of an export with its run, and with what they were when they were written."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from convert import config as hf_config
from convert import exported_tokenizer, staged_folder
from convert.run_checkpoint import RunCheckpoint
from stellarbyte.errors import UserError
from stellarbyte.files import check_plain_name
from stellarbyte.reading import MIB, parse_json, read_json_object
from stellarbyte_jax.data.tokenizer import Tokenizer

# The parts of tokenizer.json that decide a text's tokens; the others say how it is padded and cut.
_TOKENIZER_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")
_TEMPLATE = "chat_template.jinja"

# What is hashed at once: milliseconds, so that a thread that does it seldom waits for Python's lock.
_PIECE_BYTES = 8 * MIB


def differences(checkpoint: RunCheckpoint, hf_dir: Path, text: str) -> list[str]:
    """Sentences on how the tokenizer and generation_config.json of an export differ from the run.

    `text` is encoded by both tokenizers.

    Raises:
        UserError: a file cannot be read.
    """
    files = exported_tokenizer.for_hugging_face(checkpoint.tokenizer_files, checkpoint.config.context_length)
    ours = Tokenizer(files, "of the run").encode_as_hugging_face(text)
    theirs = _encoded_by_default(hf_dir, text)
    if ours != theirs:
        return [f"the export's tokenizer makes {theirs} of the text {text!r}, where {ours} is right: export again"]
    found = Tokenizer.load(hf_dir).files
    return [
        *(f"{name} is not that of the run: export again" for name in _changed(files, found)),
        *_generation_differences(checkpoint, hf_dir),
    ]


def _encoded_by_default(folder: Path, text: str) -> list[int]:
    """Token ids as a user of transformers gets them, with special tokens around the text."""
    from stellarbyte_torch.model_folder import load_tokenizer

    return list(load_tokenizer(folder)(text, split_special_tokens=True)["input_ids"])


def _changed(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    for name, parts in (("tokenizer.json", _TOKENIZER_PARTS), ("tokenizer_config.json", _SPECIAL_TOKENS)):
        a, b = _fields(ours, name), _fields(theirs, name)
        for part in parts:
            if a.get(part) != b.get(part):
                yield f"{part} in {name}"
    if ours.get(_TEMPLATE) != theirs.get(_TEMPLATE):
        yield _TEMPLATE


def _fields(files: Mapping[str, str], name: str) -> dict[str, Any]:
    fields = parse_json(files.get(name, "{}"), name)
    return fields if isinstance(fields, dict) else {}


def _generation_differences(checkpoint: RunCheckpoint, hf_dir: Path) -> Iterator[str]:
    path = hf_dir / hf_config.GENERATION_CONFIG
    if not path.is_file():
        return
    theirs = read_json_object(path)
    for name, token_id in hf_config.generation_to_hf(checkpoint.config).items():
        found = theirs.get(name)
        if found is not None and found != token_id and not (isinstance(found, list) and token_id in found):
            yield f"{name} is {token_id} in the run, but {found} in {path.name}"


def changed_since_export(hf_dir: Path) -> list[str]:
    """Names of files that are missing or changed since `to-hf` wrote them, by its manifest; empty without one."""
    with looking_for_changes(hf_dir) as changed:
        return changed()


@contextmanager
def looking_for_changes(hf_dir: Path) -> Iterator[Callable[[], list[str]]]:
    """Looks in a thread, while the block runs; yields the function that waits and returns what changed."""
    manifest = staged_folder.read_manifest(hf_dir)
    given_up = Event()
    with ThreadPoolExecutor(1, "hash") as pool:
        looking = {
            name: pool.submit(_is_changed, hf_dir, name, sha256, given_up)
            for name, sha256 in (manifest["files"] if manifest else {}).items()
        }
        try:
            yield lambda: [str(name)[:80] for name, found in looking.items() if found.result()]
        finally:
            given_up.set()


def _is_changed(folder: Path, name: str, sha256: object, given_up: Event) -> bool:
    found = hashlib.sha256()
    try:
        path = folder / check_plain_name(name, staged_folder.MANIFEST)
        if not path.is_file():
            return True
        piece = memoryview(bytearray(_PIECE_BYTES))
        with path.open("rb", buffering=0) as file:
            while not given_up.is_set() and (count := file.readinto(piece)):
                found.update(piece[:count])
    except (UserError, OSError):
        return True
    return found.hexdigest() != sha256
