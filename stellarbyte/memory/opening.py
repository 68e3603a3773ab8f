"""Opens a store: the connection, the tables, and whether its vectors are the embedder's."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.memory.connection import Connection
from stellarbyte.memory.postgres import URLS, PostgresDatabase
from stellarbyte.memory.postgres_vectors import VectorsInPostgres
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.settings import MemorySettings
from stellarbyte.memory.sqlite_file import SqliteFile
from stellarbyte.memory.stored_vectors import StoredVectors
from stellarbyte.memory.tables import Tables
from stellarbyte.memory.vectors import Nearest, VectorsInMemory
from stellarbyte.memory.words import WORDS_VERSION


@dataclass(frozen=True)
class Opened:
    """A store that is open.

    Attributes:
        connection, tables: the store.
        nearest: finds vectors; None: there is no embedder.
    """

    connection: Connection
    tables: Tables
    nearest: Nearest | None

    def settings(self) -> MemorySettings:
        """The store's settings, as they are now."""
        rows = self.connection.rows("SELECT value FROM meta WHERE key = 'settings'")
        return MemorySettings.from_json(rows[0][0]) if rows else MemorySettings()


def open_store(
    place: str | Path, embedder: Embedder | None, owner: str, settings: MemorySettings | None, create: bool
) -> Opened:
    """Opens the store. Raises UserError: it cannot be opened, or its vectors are of another embedder."""
    is_url = isinstance(place, str) and place.startswith(URLS)
    connection: Connection = (
        PostgresDatabase(str(place), create=create) if is_url else SqliteFile(Path(place), create=create)
    )
    try:
        tables = Tables(connection)
        if not connection.read_only:
            _begin(connection, tables, settings)
        if embedder is not None:
            check_embedder(connection, tables, embedder)
        store = Opened(connection, tables, None)
        return store if embedder is None else with_embedder(store, embedder, owner)
    except BaseException:
        connection.close()
        raise


def with_embedder(store: Opened, embedder: Embedder, owner: str) -> Opened:
    """The store, searched by an embedder's vectors."""
    kind = VectorsInPostgres if isinstance(store.connection, PostgresDatabase) else VectorsInMemory
    stored = StoredVectors(store.connection, owner, embedder.size)
    return replace(store, nearest=kind(stored, whitened=embedder.whitened))


def _begin(connection: Connection, tables: Tables, settings: MemorySettings | None) -> None:
    meta = tables.meta()
    if "epoch" in meta and meta.get("words") == str(WORDS_VERSION) and settings is None:
        return
    with connection.writing():
        meta = tables.meta()
        if meta.get("words") != str(WORDS_VERSION):
            tables.reindex()
            tables.set_meta("words", str(WORDS_VERSION))
        if "epoch" not in meta:
            tables.set_meta("epoch", "1")
        if settings is not None or "settings" not in meta:
            tables.set_meta("settings", (settings or MemorySettings()).to_json())


def told_embedder(embedder: Embedder) -> dict[str, Any]:
    """What a store keeps of its embedder."""
    return {"name": embedder.name, "hash": embedder.hash, "size": embedder.size}


def check_embedder(connection: Connection, tables: Tables, embedder: Embedder) -> None:
    """Notes the embedder in a store that has none. Raises UserError: its vectors are of another one."""
    told = tables.meta().get("embedder")
    if told is None:
        if connection.read_only:
            return
        with connection.writing():
            told = tables.meta().get("embedder")
            if told is None:
                tables.set_meta("embedder", json.dumps(told_embedder(embedder)))
                return
    known = json.loads(told)
    if known["hash"] != embedder.hash or known["size"] != embedder.size:
        raise UserError(
            f"{connection.name} has vectors of the embedder {known['name']}, not of {embedder.name}: give that one, or "
            f"`stellarbyte memory reembed {connection.name} --embedder FOLDER` with the folder of this one"
        )
