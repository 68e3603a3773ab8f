"""Hands vectors to PostgreSQL, and takes them from it, in pgvector's binary form of halfvec."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

# The number of dimensions, and a field that pgvector does not use.
_HEAD = struct.Struct(">HH")


def adapt_half_vectors(database: Any) -> None:
    """Lets a connection of psycopg take arrays, (D,), as halfvec. Raises psycopg.Error: there is no such type."""
    from psycopg.adapt import Dumper
    from psycopg.pq import Format
    from psycopg.types import TypeInfo

    info = TypeInfo.fetch(database, "halfvec")
    if info is None:
        raise database.ProgrammingError("pgvector is older than 0.7 and has no halfvec: update it")

    class HalfVector(Dumper):
        format, oid = Format.BINARY, info.oid

        def dump(self, obj: np.ndarray) -> bytes:
            return _HEAD.pack(len(obj), 0) + obj.astype(">f2").tobytes()

    database.adapters.register_dumper(np.ndarray, HalfVector)


def from_binary(vectors: Sequence[bytes], size: int) -> np.ndarray:
    """Vectors as a query gives them, (N, size) in float16."""
    raw = np.frombuffer(b"".join(vectors), np.uint8).reshape(len(vectors), _HEAD.size + 2 * size)
    return raw[:, _HEAD.size :].copy().view(">f2").astype(np.float16)
