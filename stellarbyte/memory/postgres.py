"""A store in a PostgreSQL database with pgvector, which many machines share."""

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from stellarbyte.errors import UserError
from stellarbyte.memory.connection import Row
from stellarbyte.memory.half_vectors import adapt_half_vectors
from stellarbyte.memory.schema import POSTGRES, SCHEMA, table_statements, upgrade_statements

URLS = ("postgresql://", "postgres://")

# The tables have a schema of their own in the database, beside whatever else is there.
_SCHEMA = "stellarbyte_memory"
# The advisory lock of a store's only writer: "SBme" as a number.
_LOCK = 0x53426D65
_SECONDS_TO_CONNECT = 10


class PostgresDatabase:
    """The connection to a store's database, whose tables are made if `create` says so; threads may share it.

    Raises:
        UserError: psycopg is not installed, the server cannot be reached, it lacks pgvector, or the tables are not
            there, or of a newer version.
    """

    def __init__(self, url: str, *, create: bool) -> None:
        try:
            import psycopg
        except ModuleNotFoundError as error:
            raise UserError("psycopg is not installed: pip install 'stellarbyte[memory]'") from error
        self._error: type[Exception] = psycopg.Error
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]  # without the user and the password
        self.name, self.read_only = f"postgresql://{host}{parts.path}", False
        self._lock, self._depth, self._pipeline = threading.RLock(), 0, ExitStack()
        with self._told("cannot be reached"):
            self._database: Any = psycopg.connect(url, autocommit=True, connect_timeout=_SECONDS_TO_CONNECT)
        try:
            self._begin(create)
        except BaseException:
            self._database.close()
            raise

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows that a statement gives. Raises UserError with a sentence for whatever PostgreSQL refuses."""
        with self._lock, self._told("cannot be used"):
            found: list[Row] = self._database.execute(_marked(statement), tuple(parameters), binary=True).fetchall()
            return found

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Runs a statement that gives no rows; within a transaction nobody waits for its end."""
        with self._lock, self._told("cannot be used"):
            self._database.execute(_marked(statement), tuple(parameters))

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each row of parameters."""
        with self._lock, self._told("cannot be used"), self._database.cursor() as cursor:
            cursor.executemany(_marked(statement), [tuple(row) for row in rows])

    def bulk(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Adds rows to a table by COPY."""
        types = self._types(table, columns)
        with self._lock, self._told("cannot be used"):
            self._pipeline.close()  # which COPY cannot be in
            with (
                self._database.cursor() as cursor,
                cursor.copy(f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)") as copy,
            ):
                copy.set_types(types)
                for row in rows:
                    copy.write_row(row)
            self._pipeline.enter_context(self._database.pipeline())

    def new_ids(self, count: int) -> list[int]:
        """Ids that no entry has had, in ascending order."""
        sequence = "SELECT nextval(pg_get_serial_sequence('memories', 'id')) FROM generate_series(1, ?)"
        return sorted(number for (number,) in self.rows(sequence, (count,)))

    def among(self, column: str, values: Sequence[int] | Sequence[str]) -> tuple[str, list[Any]]:
        """A condition that a column has one of these values, and its parameters."""
        kind = "TEXT" if values and isinstance(values[0], str) else "BIGINT"
        return f"{column} = ANY(CAST(? AS {kind}[]))", [list(values)]

    def looked_up(self, table: str, key: str) -> str:
        """A CROSS JOIN with the rows of a table that have this key.

        Otherwise PostgreSQL, which expects as many of a frequent term as of a rare one, reads all that have the term.
        """
        return f"CROSS JOIN LATERAL (SELECT * FROM {table} w WHERE {key} OFFSET 0) w"

    def each(self, values: Sequence[int]) -> tuple[str, list[Any]]:
        """A table `i` whose column `value` has these values, and its parameters."""
        return "unnest(CAST(? AS BIGINT[])) AS i (value)", [list(values)]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction of the only writer: others wait for its end."""
        with self._transaction("BEGIN", f"SELECT pg_advisory_xact_lock({_LOCK})"):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction that sees the store as it is at one moment."""
        with self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            yield

    def scrub(self) -> None:
        """Nothing: when rows are overwritten in its files, the server's own VACUUM decides."""

    def compact(self) -> None:
        """Writes the tables anew without deleted rows."""
        self._vacuum("FULL, ANALYZE")
        self.settle()  # for FULL forgets which pages an index can answer for alone

    def settle(self) -> None:
        """Lets the server count what is in the tables now, and note which pages an index can answer for alone."""
        self._vacuum("ANALYZE")

    def size(self) -> int:
        """The bytes of the tables and their indices."""
        total = "SUM(pg_total_relation_size(format('%I.%I', schemaname, tablename)::regclass))"
        ((size,),) = self.rows(f"SELECT COALESCE({total}, 0) FROM pg_tables WHERE schemaname = ?", (_SCHEMA,))
        return int(size)

    def close(self) -> None:
        """Ends the connection."""
        with self._lock, suppress(self._error):
            self._database.close()

    def _begin(self, create: bool) -> None:
        self.run(f"SET search_path = {_SCHEMA}, public")
        self.run("SET client_min_messages = warning")
        self.run("SET jit = off")  # to compile a search takes longer than the search
        there = "SELECT 1 FROM pg_tables WHERE schemaname = ? AND tablename = 'meta'"
        if not self.rows(there, (_SCHEMA,)):
            if not create:
                raise UserError(f"{self.name} holds no memory: `stellarbyte memory add` makes it")
            with self.writing():
                if not self.rows(there, (_SCHEMA,)):  # no other process has come first
                    self._make_tables()
        version = self._version()
        if version > SCHEMA:
            raise UserError(
                f"{self.name} was made by a newer StellarByte (schema {version}, this one knows {SCHEMA}): update "
                "StellarByte"
            )
        if version < SCHEMA:
            with self.writing():
                for statement in upgrade_statements(self._version(), POSTGRES):  # another process may have come first
                    self.run(statement)
                self.run("UPDATE meta SET value = ? WHERE key = 'schema'", (str(SCHEMA),))
            self.settle()
        with self._told("cannot be used"):
            adapt_half_vectors(self._database)

    def _version(self) -> int:
        ((version,),) = self.rows("SELECT value FROM meta WHERE key = 'schema'")
        return int(version)

    def _make_tables(self) -> None:
        try:
            self.run("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
            self.rows("SELECT 1")  # waits for that
        except UserError as error:
            raise UserError(
                f"{self.name} lacks pgvector: install it on the server, and let an administrator run CREATE EXTENSION "
                f"vector ({error})"
            ) from error
        self.run(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}")
        for statement in table_statements(POSTGRES):
            self.run(statement)
        self.run("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA),))

    def _vacuum(self, options: str) -> None:
        for (table,) in self.rows("SELECT tablename FROM pg_tables WHERE schemaname = ?", (_SCHEMA,)):
            self.run(f"VACUUM ({options}) {table}")

    def _types(self, table: str, columns: str) -> list[int]:
        """The object ids of the types of a table's columns."""
        names = [name.strip() for name in columns.split(",")]
        condition, values = self.among("attname", names)
        known: dict[str, int] = dict(
            self.rows(
                "SELECT CAST(attname AS TEXT), CAST(atttypid AS BIGINT) FROM pg_attribute "
                f"WHERE attrelid = CAST(CAST(? AS TEXT) AS regclass) AND {condition}",
                [table, *values],
            )
        )
        return [known[name] for name in names]

    @contextmanager
    def _transaction(self, *begin: str) -> Iterator[None]:
        """A transaction in which nobody waits for the end of a statement without rows, but for that of the last."""
        with self._lock:
            if self._depth:
                yield
                return
            self._depth += 1
            try:
                with self._told("cannot be used"), self._pipeline:
                    self._pipeline.enter_context(self._database.pipeline())
                    for statement in begin:
                        self.run(statement)
                    yield
                    self.run("COMMIT")
            except BaseException:
                with suppress(self._error):
                    self._database.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns the server's errors into sentences."""
        try:
            yield
        except self._error as error:
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            said = re.sub(r"://[^\s/@]*@", "://", said)
            raise UserError(f"{self.name} {what}: {said}") from error


def _marked(statement: str) -> str:
    """The statement with psycopg's marks for parameters."""
    return statement.replace("%", "%%").replace("?", "%s")
