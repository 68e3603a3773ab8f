"""Opens the model that is to be quantised, a run or a folder of floats, and finds the text that goes with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from convert import hf_checkpoint, run_checkpoint, shards, staged_folder
from convert.config import CONFIG, read_fields
from convert.exported_tokenizer import for_a_run
from convert.given_folder import check_links
from convert.quantizing import rows
from convert.quantizing.rows import Encode, Rows, Wanted
from stellarbyte.errors import UserError, shown
from stellarbyte.file_manifest import check_files
from stellarbyte.files import sha256_of_json
from stellarbyte.places import BucketPath, Place, place
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_torch.model_folder import load_tokenizer
from stellarbyte_torch.quantization.blocks import FolderModel
from stellarbyte_torch.quantization.settings import QuantizationSettings


@dataclass(frozen=True)
class Source:
    """A model in floats.

    identity: a hash by which one is told from another. step: the run's step, if it is known. context: the most tokens
    of a row. bos: the token that begins a text. run_dir: the run that it is, or whose folder it lies in; None if there
    is none. folder: makes the folder of floats in a place that is given, or names the one that is there. encode: gives
    the function that makes tokens of a text. tokenizer_sha256: gives the hash by which token shards know the tokenizer.
    """

    name: str
    identity: str
    step: int | None
    context: int
    bos: int | None
    run_dir: Place | None
    folder: Callable[[Path], Path]
    encode: Callable[[], Encode]
    tokenizer_sha256: Callable[[], str]

    def rows(self, data: str | None, settings: QuantizationSettings, say: Callable[[str], None]) -> Rows:
        """The rows to calibrate and to measure on: of the run's own token shards, or of `data`.

        Raises:
            UserError: there is no text, or too little.
        """
        wanted = Wanted(settings.samples, min(settings.sequence_length, self.context), self.bos, settings.seed)
        if data is not None and rows.is_shards(place(data)):
            found = rows.of_shards(place(data), self.tokenizer_sha256(), wanted)
        elif data is not None:
            found = rows.of_text(data, self.encode(), wanted, say)
        elif self.run_dir is not None:
            found = rows.of_run(self.run_dir, self.step, wanted)
        else:
            raise UserError(f"{self.name} does not say what text it was trained on: name some with --data")
        count = len(found.calibration)
        if count < settings.samples:
            say(f"{found.source} makes {count} rows, fewer than --samples {settings.samples}: all of them serve")
        return found


def open_source(model: Place, step: int | None) -> Source:
    """The model in a run's folder or a Hugging Face folder.

    Raises:
        UserError: it is neither, is quantised already, or is damaged.
    """
    if not (model / CONFIG).is_file():
        if isinstance(model, Path) and not (model / "checkpoints").is_dir():
            raise UserError(
                f"{model} is neither a run, which has checkpoints, nor a model's folder, which has {CONFIG}: "
                "check the path"
            )
        return _run(model, step)
    if step is not None:
        raise UserError(f"--step {step} names a checkpoint, but {model} is a model's folder: leave --step out")
    if isinstance(model, BucketPath):
        raise UserError(f"{model} is in a bucket, and Hugging Face folders are read from this machine: copy it here")
    return _folder(model)


def check_apart(model: Place, output: Path) -> None:
    """Raises UserError if writing `output` would change the model that it is made of. A run may hold its exports."""
    if not isinstance(model, Path):
        return
    source, target = model.resolve(), output.resolve()
    if source == target:
        raise UserError(f"OUT {output} is MODEL itself, whose floats would be lost: name another folder")
    if source.is_relative_to(target):
        raise UserError(f"OUT {output} holds MODEL {model}: name a folder beside it")
    if target.is_relative_to(source) and (source / CONFIG).is_file():
        raise UserError(
            f"OUT {output} lies inside MODEL {model}, where it would go along as a part: name one beside it"
        )


def _folder(folder: Path) -> Source:
    check_links(folder)
    check_files(folder)
    fields = read_fields(folder)
    # Refused here, before Transformers' tokenizers, which warn of strange configs in words of their own.
    FolderModel(folder, torch.device("cpu"))
    manifest = staged_folder.read_manifest(folder) or {}
    step, bos, context = manifest.get("step"), fields.get("bos_token_id"), fields.get("max_position_embeddings")
    if not isinstance(context, int) or context < 1:
        raise UserError(f"{folder / CONFIG} has max_position_embeddings {shown(context)}, expected a number of tokens")
    above = folder.resolve().parent

    def encode() -> Encode:
        tokenizer = load_tokenizer(folder)
        return lambda text: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    return Source(
        name=str(folder),
        identity=sha256_of_json([shards.identity(folder), fields]),
        step=step if isinstance(step, int) else None,
        context=context,
        bos=bos if isinstance(bos, int) else None,
        run_dir=above if (above / "checkpoints").is_dir() else None,
        folder=lambda _: folder,
        encode=encode,
        tokenizer_sha256=lambda: Tokenizer(for_a_run(Tokenizer.load(folder).files), str(folder)).sha256,
    )


def _run(run_dir: Place, step: int | None) -> Source:
    checkpoint = run_checkpoint.load(run_dir, step)

    def folder(target: Path) -> Path:
        hf_checkpoint.to_hf(run_dir, target, step=checkpoint.step)
        return target

    def tokenizer() -> Tokenizer:
        return Tokenizer(checkpoint.tokenizer_files, str(run_dir))

    return Source(
        name=str(run_dir),
        identity=sha256_of_json([checkpoint.source, to_dict(checkpoint.config)]),
        step=checkpoint.step,
        context=checkpoint.config.context_length,
        bos=checkpoint.config.bos_token_id,
        run_dir=run_dir,
        folder=folder,
        encode=lambda: tokenizer().encode,
        tokenizer_sha256=lambda: tokenizer().sha256,
    )
