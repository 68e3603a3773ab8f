"""The tables of a store."""

from types import MappingProxyType

# Raised when the tables change; a store of a higher number is refused, and one of a lower number is brought up to it.
SCHEMA = 3

SQLITE = MappingProxyType(
    {
        "text": "TEXT",
        "number": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "key": "INTEGER",
        "real": "REAL",
        "vector": "BLOB",
        "bare": " WITHOUT ROWID",
        "beside": "",
    }
)
"""How SQLite says what the tables are made of."""

POSTGRES = MappingProxyType(
    {
        "text": 'TEXT COLLATE "C"',  # so that texts have SQLite's order, by code points
        "number": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "key": "BIGINT",
        "real": "DOUBLE PRECISION",
        "vector": "halfvec",
        "bare": "",
        "beside": " INCLUDE (count, length)",  # the index alone then answers, as a table without row ids does
    }
)
"""How PostgreSQL says it."""

# words: a row for each term of an entry, which is what BM25 needs and what can be deleted to the last byte. FTS5 leaves
# deleted words in its segments until these are merged (docs/tried.md).
# terms: in how many entries each term stands; to count that in `words` takes a frequent one long.
# frames: what entries say of whom, in respects in which only one thing can be true (gate/frames.py).
# fresh: the last time that an entry was said or used, from which retention counts.
# changes: the entries whose vectors were written, changed or deleted, for matrices in other processes.
_TABLES = """
CREATE TABLE meta (key {text} PRIMARY KEY, value {text} NOT NULL){bare};
CREATE TABLE memories (
    id {number}, owner {text} NOT NULL, kind {text} NOT NULL, text {text} NOT NULL, source {text} NOT NULL,
    language {text} NOT NULL, created {real} NOT NULL, updated {real} NOT NULL, last_used {real},
    uses INTEGER NOT NULL, seen INTEGER NOT NULL, fresh {real} NOT NULL, expires {real}, loss {real},
    judge {text}, digest {text} NOT NULL, terms INTEGER NOT NULL
);
CREATE INDEX memories_owner ON memories (owner, id);
CREATE INDEX memories_source ON memories (owner, source);
CREATE INDEX memories_digest ON memories (owner, digest);
CREATE INDEX memories_expires ON memories (expires) WHERE expires IS NOT NULL;
CREATE INDEX memories_fresh ON memories (fresh);
CREATE INDEX memories_least_used ON memories (owner, (uses + seen), fresh, id);
CREATE INDEX memories_loss ON memories (owner, judge, loss) WHERE loss IS NOT NULL;
CREATE TABLE words (
    owner {text} NOT NULL, term {text} NOT NULL, memory BIGINT NOT NULL, count INTEGER NOT NULL,
    length INTEGER NOT NULL, PRIMARY KEY (owner, term, memory){beside}
){bare};
CREATE TABLE terms (
    owner {text} NOT NULL, term {text} NOT NULL, entries BIGINT NOT NULL, PRIMARY KEY (owner, term)
){bare};
CREATE TABLE frames (
    owner {text} NOT NULL, frame {text} NOT NULL, memory BIGINT NOT NULL, PRIMARY KEY (owner, frame, memory)
){bare};
CREATE INDEX frames_memory ON frames (memory);
CREATE TABLE totals (
    owner {text} PRIMARY KEY, entries BIGINT NOT NULL, length BIGINT NOT NULL, vector_weight {real},
    usual_cosine {real}, cosine_spread {real}, weighed BIGINT
){bare};
CREATE TABLE vectors (memory {key} PRIMARY KEY, owner {text} NOT NULL, vector {vector} NOT NULL);
CREATE INDEX vectors_owner ON vectors (owner, memory);
CREATE TABLE history (
    id {number}, memory BIGINT NOT NULL, text {text} NOT NULL, source {text} NOT NULL, since {real} NOT NULL,
    until {real} NOT NULL, reason {text} NOT NULL
);
CREATE INDEX history_memory ON history (memory);
CREATE TABLE decisions (
    id {number}, time {real} NOT NULL, owner {text} NOT NULL, outcome {text} NOT NULL, reason {text} NOT NULL,
    scores {text} NOT NULL, memory BIGINT, text {text}, source {text} NOT NULL
);
CREATE INDEX decisions_memory ON decisions (memory);
CREATE INDEX decisions_owner ON decisions (owner, id);
CREATE TABLE changes (id {number}, memory BIGINT NOT NULL)
"""

# Of each older number, the statements that make the next one of it. What a store knew of its vectors is found anew.
_UPGRADES = {
    1: (
        "ALTER TABLE totals ADD COLUMN usual_cosine DOUBLE PRECISION",
        "ALTER TABLE totals ADD COLUMN cosine_spread DOUBLE PRECISION",
        "ALTER TABLE totals DROP COLUMN wrong_cosine",
        "UPDATE totals SET vector_weight = NULL, weighed = NULL",
    ),
    2: (
        "CREATE TABLE terms (owner {text} NOT NULL, term {text} NOT NULL, entries BIGINT NOT NULL, "
        "PRIMARY KEY (owner, term)){bare}",
        "INSERT INTO terms SELECT owner, term, COUNT(*) FROM words GROUP BY owner, term",
    ),
}
_UPGRADES_OF_POSTGRES = {
    2: (
        "ALTER TABLE words DROP CONSTRAINT words_pkey",
        "ALTER TABLE words ADD PRIMARY KEY (owner, term, memory){beside}",
    )
}


def table_statements(dialect: MappingProxyType[str, str]) -> tuple[str, ...]:
    """What makes the tables, in the words of SQLITE or POSTGRES."""
    return tuple(statement.strip().format(**dialect) for statement in _TABLES.split(";"))


def upgrade_statements(version: int, dialect: MappingProxyType[str, str]) -> tuple[str, ...]:
    """What brings a store of this number up to SCHEMA."""
    found: list[str] = []
    for older in range(version, SCHEMA):
        found += _UPGRADES[older] + (_UPGRADES_OF_POSTGRES.get(older, ()) if dialect is POSTGRES else ())
    return tuple(statement.format(**dialect) for statement in found)
