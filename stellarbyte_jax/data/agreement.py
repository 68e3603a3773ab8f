"""Refuses a config whose description of its data contradicts the token shards that it names."""

from itertools import groupby
from pathlib import Path

from stellarbyte.errors import UserError, shown_path
from stellarbyte.files import sha256_of
from stellarbyte.records.formats import file_format
from stellarbyte_jax.config import ByteConfig, DataConfig
from stellarbyte_jax.data.corpus import files_of
from stellarbyte_jax.data.documents import RecordText
from stellarbyte_jax.data.recipe import Recipe, SourceFile
from stellarbyte_jax.data.tokenizer import Tokenizer

# Sources that were moved are hashed again only if they have at most this many bytes: a start must not wait for all of a
# large corpus.
_MOST_BYTES_READ = 1 << 30


def check_described(
    data: DataConfig, recipe: Recipe, *, with_sources: bool, most_bytes_read: int = _MOST_BYTES_READ
) -> None:
    """Refuses a config whose data is not what the shards were made from.

    with_sources: whether to look at the source files too. They are not checked if some of them are not on this machine.
    most_bytes_read: moved sources are hashed if they have at most this many bytes; otherwise only sizes are compared.

    Raises:
        UserError: a setting or a source differs; the error names the field and both values.
    """
    recipe.check_serves(data)
    for name in ("validation_fraction", "tokens_per_shard"):
        ours, theirs = getattr(recipe, name), getattr(data, name)
        if ours != theirs:
            raise _contradiction(data, f"data.{name} is {theirs}", f"was prepared with {ours}", f"set it to {ours}")
    made_of = [(file.fields, file.template) for file in recipe.source_files]
    described = [(text.fields, text.template) for text in map(RecordText, data.sources)]
    if _runs(made_of) != _runs(described):
        raise _contradiction(
            data,
            f"data.sources have the fields and templates {_words(described)}",
            f"was prepared with {_words(made_of)}",
            "set them so",
        )
    if with_sources:
        _check_sources(data, recipe, most_bytes_read)


def check_tokenizer_fits(model: ByteConfig, tokenizer: Tokenizer) -> None:
    """Raises a UserError if the tokenizer has more tokens than the model, or other special tokens."""
    tokenizer.check_fits(model.vocab_size)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = getattr(model, name), getattr(tokenizer, name)
        if ours != theirs:
            raise UserError(f"model.{name} {ours} is not the tokenizer's {theirs}: set it to {theirs}")


def check_made_with(data: DataConfig, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Raises a UserError if the token shards were made with another tokenizer."""
    if recipe.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"data.shards {data.shards} was made with another tokenizer than {data.tokenizer}: "
            "prepare it again into an empty folder"
        )


def _check_sources(data: DataConfig, recipe: Recipe, most_bytes_read: int) -> None:
    try:
        paths = [path for _, path in files_of(data.sources, lambda _: None)]
        sizes = [path.stat().st_size for path in paths]
    except (UserError, OSError):
        return  # some of the files are not here
    known = recipe.source_files
    where = ", ".join(source.path for source in data.sources)
    if len(paths) != len(known):
        raise _contradiction(
            data, f"data.sources {where} are {len(paths)} files", f"was prepared from {len(known)}", "name these"
        )
    to_read = sum(size for path, size, file in zip(paths, sizes, known, strict=True) if not _untouched(path, file))
    for path, size, file in zip(paths, sizes, known, strict=True):
        same = (size, file_format(path)) == (file.size, file_format(Path(file.path)))
        if same and not _untouched(path, file) and to_read <= most_bytes_read:
            try:
                same = sha256_of(path) == file.sha256
            except OSError:
                continue
        if not same:
            raise _contradiction(
                data,
                f"data.sources has {path}",
                f"was prepared from {file.path} of other content",
                "name that, or bring its content back",
            )


def _untouched(path: Path, file: SourceFile) -> bool:
    return shown_path(path) == file.path and path.stat().st_mtime_ns == file.mtime_ns


def _runs(pairs: list[tuple[tuple[str, ...], str | None]]) -> list[tuple[tuple[str, ...], str | None]]:
    # Equal neighbours count once: one source may have many files, and two sources may have the same fields.
    return [pair for pair, _ in groupby(pairs)]


def _words(pairs: list[tuple[tuple[str, ...], str | None]]) -> str:
    shown = [
        " ".join([f"[{', '.join(fields)}]", *([repr(template)] if template else [])]) for fields, template in pairs
    ]
    return " then ".join(word for word, _ in groupby(shown))


def _contradiction(data: DataConfig, ours: str, theirs: str, fix: str) -> UserError:
    return UserError(f"{ours}, but data.shards {data.shards} {theirs}: {fix}, or prepare into another folder")
