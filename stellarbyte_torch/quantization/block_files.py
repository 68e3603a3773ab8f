"""The files of weights of a quantised folder: one a block, so that an interrupted command goes on with the next."""

import hashlib
import math
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from stellarbyte.files import sha256_of, write_json
from stellarbyte.journal import Journal
from stellarbyte.safetensors_header import read_header
from stellarbyte_torch.model_folder import INDEX
from stellarbyte_torch.quantization.compressed import EMBEDDING, restored, stored
from stellarbyte_torch.quantization.quantize import LinearError, QuantizedBlock
from stellarbyte_torch.quantization.settings import QuantizationSettings


@dataclass(frozen=True)
class Contents:
    """What the files of a quantised folder hold.

    quantised: the number of weights that codes stand for. kept: the shape of each tensor that is as it was. nbytes: the
    bytes of all tensors. errors: of each quantised layer, in the order of the blocks. hashes: file name -> sha256.
    """

    quantised: int
    kept: dict[str, tuple[int, ...]]
    nbytes: int
    errors: list[LinearError]
    hashes: dict[str, str]

    @property
    def weights(self) -> int:
        """The number of all weights."""
        return self.quantised + sum(math.prod(shape) for shape in self.kept.values())

    @property
    def left_out(self) -> list[str]:
        """The names of the linear layers that are not quantised."""
        matrices = [name for name, shape in self.kept.items() if len(shape) == 2 and name.endswith(".weight")]
        return [name.removesuffix(".weight") for name in matrices if name != f"{EMBEDDING}.weight"]


class BlockFiles:
    """Writes blocks into an unfinished folder, and knows those of an earlier call by the journal.

    Raises:
        OSError: from any method, if a file cannot be written.
    """

    def __init__(self, folder: Path, settings: QuantizationSettings, journal: Journal) -> None:
        self._folder, self._settings, self._journal = folder, settings, journal
        for name, shard in _shards(journal.done).items():
            if (folder / shard).is_file():  # an earlier call had written the last block, too
                (folder / shard).rename(self._path(name))
        self._whole = {name for name in journal.done if self._is_whole(name)}
        self._blocks: list[str] = []

    @property
    def written(self) -> dict[str, Callable[[], QuantizedBlock]]:
        """Block name -> a function that reads it back, for the blocks that an earlier call has written."""
        return {name: partial(self._read, name) for name in self._whole}

    def add(self, block: QuantizedBlock) -> None:
        """Writes the next block, unless an earlier call has."""
        self._blocks.append(block.name)
        if block.name in self._whole:
            return
        content = save(stored(block.tensors, self._settings), {"format": "pt"})
        with self._path(block.name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        note = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "errors": [asdict(error) for error in block.errors],
            "quantised": sum(x.codes.numel() for x in block.tensors.values() if not isinstance(x, Tensor)),
            "kept": {name: list(x.shape) for name, x in block.tensors.items() if isinstance(x, Tensor)},
        }
        self._journal.note(block.name, note)

    def finish(self) -> Contents:
        """Gives the files the names that Transformers looks for, and writes their index."""
        weight_map, hashes, nbytes = {}, {}, 0
        for block, shard in _shards(self._blocks).items():
            self._path(block).rename(self._folder / shard)
            hashes[shard] = self._journal.done[block]["sha256"]
            for key, header in read_header(self._folder / shard).items():
                weight_map[key] = shard
                nbytes += header.end - header.start
        index = {"metadata": {"total_size": nbytes}, "weight_map": weight_map}
        write_json(self._folder / INDEX, index, sort_keys=True)
        notes = [self._journal.done[block] for block in self._blocks]
        return Contents(
            quantised=sum(note["quantised"] for note in notes),
            kept={name: tuple(shape) for note in notes for name, shape in note["kept"].items()},
            nbytes=nbytes,
            errors=[LinearError(**error) for note in notes for error in note["errors"]],
            hashes=hashes,
        )

    def _read(self, name: str) -> QuantizedBlock:
        errors = [LinearError(**error) for error in self._journal.done[name]["errors"]]
        return QuantizedBlock(name, restored(load_file(self._path(name)), self._settings), errors)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _is_whole(self, name: str) -> bool:
        try:
            return sha256_of(self._path(name)) == self._journal.done[name]["sha256"]
        except OSError:
            return False


def kept_names(journal: Journal) -> set[str]:
    """The names that the files of an earlier call's blocks may have in the unfinished folder."""
    return {name for block, shard in _shards(journal.done).items() for name in (f"{block}.safetensors", shard)}


def _shards(blocks: Collection[str]) -> dict[str, str]:
    """The name that the file of each block has in the end, if these are all of them."""
    return {block: f"model-{number:05d}-of-{len(blocks):05d}.safetensors" for number, block in enumerate(blocks, 1)}
