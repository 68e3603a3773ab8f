"""A store in one SQLite file."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stellarbyte.errors import UserError, shown_path
from stellarbyte.memory.connection import Row, marks
from stellarbyte.memory.schema import SCHEMA, SQLITE, table_statements, upgrade_statements

# In the file's header, so that another program's SQLite file is known from ours: "SBme".
APPLICATION_ID = 0x53426D65
_HEADER = b"SQLite format 3\0"
_BESIDE = ("-wal", "-shm", "-journal")
# Seconds that a writer waits for the others.
_PATIENCE = 60.0
# The pages of the log after which it is written into the file and begun anew: 1 MiB, so that it fills no small disk.
_LOG_PAGES = 256


class SqliteFile:
    """The connection to a store's file, which is made if `create` says so; threads may share it.

    Attributes:
        path: the file.

    Raises:
        UserError: the file is not there, or cannot be opened, is another program's, is damaged, or was made by a newer
            version.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path, self.name, self.read_only = path, shown_path(path), False
        self._lock, self._depth = threading.RLock(), 0
        self._check_file(create)
        with self._told():
            self._database = self._open()
        try:
            self._begin()
        except BaseException:
            self._database.close()
            raise

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows that a statement gives. Raises UserError with a sentence for whatever SQLite refuses."""
        with self._lock, self._told():
            return self._database.execute(statement, parameters).fetchall()

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Runs a statement that gives no rows."""
        self.rows(statement, parameters)

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each row of parameters."""
        with self._lock, self._told():
            self._database.executemany(statement, rows)

    def bulk(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Adds rows to a table; the more they are in the order of its key, the faster."""
        places = marks(columns.split(","))
        self.many(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)

    def new_ids(self, count: int) -> list[int]:
        """Ids that no entry has had, in ascending order."""
        rows = self.rows("SELECT seq FROM sqlite_sequence WHERE name = 'memories'")
        last = rows[0][0] if rows else 0
        return list(range(last + 1, last + 1 + count))

    def among(self, column: str, values: Sequence[int] | Sequence[str]) -> tuple[str, list[Any]]:
        """A condition that a column has one of these values, and its parameters."""
        return f"{column} IN (SELECT value FROM json_each(?))", [json.dumps(values)]

    def looked_up(self, table: str, key: str) -> str:
        """A CROSS JOIN with the rows of a table that have this key; SQLite keeps the order of the tables."""
        return f"CROSS JOIN {table} w WHERE {key}"

    def each(self, values: Sequence[int]) -> tuple[str, list[Any]]:
        """A table `i` whose column `value` has these values, and its parameters."""
        return "json_each(?) AS i", [json.dumps(values)]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction of the only writer: other processes wait for its end."""
        if self.read_only:
            raise UserError(f"{self.name} is read-only: nothing can be written to it")
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction that sees the store as it is at one moment."""
        with self._transaction("BEGIN"):
            yield

    def scrub(self) -> None:
        """Writes the log's pages into the file and cuts the log to nothing.

        The log holds pages as they were before a deletion; in the file SQLite overwrites what is deleted with zeros
        (secure_delete). While another process reads, the log stays until the next call.
        """
        if not self.read_only:
            self.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def compact(self) -> None:
        """Writes the file anew without free pages."""
        self.rows("VACUUM")
        self.scrub()

    def settle(self) -> None:
        """Nothing: our statements tell SQLite themselves in which order to read tables."""

    def size(self) -> int:
        """The bytes of the file and of its log."""
        names = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(path.stat().st_size for path in names if path.exists())

    def close(self) -> None:
        """Ends the connection; the last one to a file removes the log."""
        with self._lock, suppress(sqlite3.Error):
            self._database.close()

    def _check_file(self, create: bool) -> None:
        path = self.path
        if path.name.endswith(_BESIDE):
            raise UserError(f"{self.name} has the name of a file that SQLite keeps beside a memory: name another file")
        if path.is_dir():
            raise UserError(f"{self.name} is a folder: name the file of a memory")
        if path.exists():
            if not path.is_file():
                raise UserError(f"{self.name} is a pipe or a device: name the file of a memory")
            with self._told():
                empty = not path.stat().st_size
                if not empty and not is_sqlite(path):
                    raise UserError(f"{self.name} is no memory: it is not an SQLite file")
            if create or not empty:
                return
        if not create:
            raise UserError(f"{self.name} is not there: `stellarbyte memory add` makes it")
        if not path.parent.is_dir():
            raise UserError(f"{self.name} cannot be made: {shown_path(path.parent)} is no folder")

    def _open(self) -> sqlite3.Connection:
        place = f"file:{quote(os.fsencode(self.path.absolute()))}"
        settings: dict[str, Any] = {
            "uri": True, "timeout": _PATIENCE, "isolation_level": None, "check_same_thread": False,
        }  # fmt: skip
        beside = self.path.with_name(f"{self.path.name}-wal")
        there = self.path.exists()
        if not there or (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)):
            return sqlite3.connect(place, **settings)
        self.read_only = True
        # Without a log beside it the file is whole; with one, SQLite needs the log's index, which others have made.
        alone = not beside.exists() or not beside.stat().st_size
        return sqlite3.connect(f"{place}?mode=ro{'&immutable=1' if alone else ''}", **settings)

    def _begin(self) -> None:
        ((found,),) = self.rows("PRAGMA application_id")
        ((version,),) = self.rows("PRAGMA user_version")
        ((tables,),) = self.rows("SELECT COUNT(*) FROM sqlite_master")
        if tables and found != APPLICATION_ID:
            raise UserError(f"{self.name} is no memory: it is another program's SQLite file")
        if tables and version > SCHEMA:
            raise UserError(
                f"{self.name} was made by a newer StellarByte (schema {version}, this one knows {SCHEMA}): update "
                "StellarByte"
            )
        if self.read_only:
            if tables and version < SCHEMA:
                raise UserError(
                    f"{self.name} was made by an older StellarByte (schema {version}, this one knows {SCHEMA}) and is "
                    "read-only: copy it to where it can be written"
                )
            return
        self.rows("PRAGMA journal_mode = WAL")
        # A transaction that was reported done survives a power failure.
        self.rows("PRAGMA synchronous = FULL")
        self.rows("PRAGMA secure_delete = ON")
        self.rows("PRAGMA cache_size = -65536")
        self.rows(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        self.rows("PRAGMA foreign_keys = ON")
        if not tables:
            with self.writing():
                if not self.rows("SELECT 1 FROM sqlite_master"):  # no other process has come first
                    for statement in table_statements(SQLITE):
                        self.rows(statement)
                    self.rows(f"PRAGMA application_id = {APPLICATION_ID}")
                    self.rows(f"PRAGMA user_version = {SCHEMA}")
        elif version < SCHEMA:
            with self.writing():
                ((version,),) = self.rows("PRAGMA user_version")  # another process may have come first
                for statement in upgrade_statements(version, SQLITE):
                    self.rows(statement)
                self.rows(f"PRAGMA user_version = {SCHEMA}")
        # What a process that was killed has deleted may still stand in the log. On a full disk it stays there until
        # there is room, and the store can be read.
        try:
            self.scrub()
        except UserError as error:
            if not isinstance(error.__cause__, sqlite3.OperationalError):
                raise

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with self._lock:
            if self._depth:
                yield
                return
            self.rows(begin)
            self._depth += 1
            try:
                yield
                self.rows("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back already, for example because the disk is full
                    self._database.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns SQLite's errors into sentences."""
        try:
            yield
        except (sqlite3.Error, OSError, OverflowError) as error:
            raise UserError(f"{self.name} {_sentence(error)}") from error


def is_sqlite(path: Path) -> bool:
    """Whether there is such a file, and it is SQLite's; raises OSError: it cannot be read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, OverflowError):
        return "cannot be asked for a number of more than 64 bits"
    told = str(error)
    if "full" in told:
        return "cannot be written: the disk is full; the memory is as it was before"
    if "I/O" in told:
        return "cannot be read or written: the disk is full or faulty; the memory is as it was before"
    if "readonly" in told:
        return "is read-only: nothing can be written to it"
    if "locked" in told:
        return f"is being written by another process for more than {_PATIENCE:.0f} s: try again later"
    if "malformed" in told or "not a database" in told or "corrupt" in told:
        return f"is damaged ({told}): restore it from a copy, or from an export by `stellarbyte memory import`"
    if "unable to open" in told:
        return "cannot be opened: see the rights of the file and its folder"
    return f"cannot be used: {told}"
