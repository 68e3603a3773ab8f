"""Keeps pieces of token shards that lie in a bucket on this machine's disk, up to a number of bytes."""

import os
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from stellarbyte.files import sha256_of_json
from stellarbyte.places import BucketPath
from stellarbyte_jax.data.array_file import BLOCK_BYTES, HEADER_BYTES

# Blocks in a piece of shards that the cache can hold whole: one request then brings what the next rows need as well.
_BLOCKS_IN_A_PIECE = 32


class BlockCache:
    """A folder of pieces of files, each a whole number of checked blocks; the pieces that were not read longest go.

    Several processes may share the folder, each with this bound for what it has read itself. A disk that is full, or a
    folder that cannot be written, costs time alone: pieces are then fetched anew.

    Args:
        folder: where pieces are kept.
        most_bytes: how many bytes of them stay.
        data_bytes: the size of all that will be read. If it is more than `most_bytes`, pieces are single blocks, since
            most of a larger piece would be thrown away before it is read.
    """

    def __init__(self, folder: Path, most_bytes: int, data_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._piece_bytes = BLOCK_BYTES * (_BLOCKS_IN_A_PIECE if data_bytes <= most_bytes else 1)
        self._lock = threading.Lock()
        self._pieces: OrderedDict[str, int] = OrderedDict()  # name -> bytes, those not read longest first
        self._bytes = 0
        with suppress(OSError):
            found = [(path.stat(), path.name) for path in folder.iterdir() if path.is_file()]
            for status, name in sorted(found, key=lambda each: each[0].st_mtime):
                self._note(name, status.st_size)

    def file(self, path: BucketPath, nbytes: int, sums: bytes) -> "CachedFile":
        """A file of `nbytes` bytes of items after its header; `sums`, its checksums, tell it from any other content."""
        return CachedFile(self, path, nbytes, sha256_of_json([path.name, sums.hex()])[:32])

    def _read(self, file: "CachedFile", piece: int) -> bytes:
        start, stop = piece * self._piece_bytes, min((piece + 1) * self._piece_bytes, file.nbytes)
        name = f"{file.name}-{start // BLOCK_BYTES}-{-(-stop // BLOCK_BYTES)}"
        kept = self._folder / name
        with suppress(OSError):
            content = kept.read_bytes()
            if len(content) == stop - start:
                self._note(name, len(content))
                with suppress(OSError):
                    os.utime(kept)
                return content
        content = file.path.read_range(HEADER_BYTES + start, HEADER_BYTES + stop)
        if len(content) == stop - start:
            self._keep(name, content)
        return content

    def _forget(self, file: "CachedFile") -> None:
        for kept in list(self._folder.glob(f"{file.name}-*")):
            with suppress(OSError):
                kept.unlink()

    def _keep(self, name: str, content: bytes) -> None:
        if len(content) > self._most_bytes:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file, partial = tempfile.mkstemp(prefix=".", dir=self._folder)
            try:
                with os.fdopen(file, "wb") as output:
                    output.write(content)
                Path(partial).replace(self._folder / name)
            except OSError:
                Path(partial).unlink(missing_ok=True)
                raise
        except OSError:
            return
        self._note(name, len(content))

    def _note(self, name: str, nbytes: int) -> None:
        with self._lock:
            self._bytes += nbytes - self._pieces.pop(name, 0)
            self._pieces[name] = nbytes
            gone = []
            while self._bytes > self._most_bytes and len(self._pieces) > 1:
                oldest, size = self._pieces.popitem(last=False)
                self._bytes -= size
                gone.append(oldest)
        for oldest in gone:
            with suppress(OSError):
                (self._folder / oldest).unlink()


class CachedFile:
    """The items of an array file in a bucket, by their bytes."""

    def __init__(self, cache: BlockCache, path: BucketPath, nbytes: int, name: str) -> None:
        self.path, self.nbytes, self.name = path, nbytes, name
        self._cache = cache

    def read(self, first: int, last: int) -> bytes:
        """The bytes from `first` to `last`, counted after the header; fewer if the file is shorter.

        Raises:
            UserError: the bucket cannot be reached. FileNotFoundError: the file is gone.
        """
        size = self._cache._piece_bytes
        pieces = range(first // size, -(-last // size))
        content = b"".join(self._cache._read(self, piece) for piece in pieces)
        return content[first - pieces.start * size : last - pieces.start * size]

    def forget(self) -> None:
        """Drops what is kept of the file on this machine, which may have been damaged there."""
        self._cache._forget(self)
