"""The file behind a memory: what is deleted is gone, killed and concurrent writers, files that are no memory."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.memory import Memory, MemorySettings
from stellarbyte.memory.schema import SCHEMA
from test_stellarbyte.test_memory.embedders import Letters

ROOT = Path(__file__).parents[3]

# Adds, changes and deletes for as long as it lives, and says what is done when it is done.
BUSY = """
import sys
sys.path[:0] = sys.argv[3:]
from stellarbyte.memory import Memory
from test_stellarbyte.test_memory.embedders import Letters
memory = Memory(sys.argv[1], embedder=Letters(16))
number = int(sys.argv[2])
while True:
    number += 1
    entry = memory.add(f"Fact of thing{number}x keepsake{number}y zebra{number}z").entry
    print("added", number, entry, flush=True)
    if number % 3 == 0:
        memory.update(entry, f"Fact of thing{number}x novelty{number}y zebra{number}z")
        print("updated", number, entry, flush=True)
    if number % 2 == 0:
        memory.delete([entry])
        print("deleted", number, entry, flush=True)
"""

WRITER = """
import sys
sys.path[:0] = sys.argv[3:]
from stellarbyte.memory import Memory
from test_stellarbyte.test_memory.embedders import Letters
with Memory(sys.argv[1], embedder=Letters(16)) as memory:
    for number in range(20):
        assert memory.add(f"Writer{sys.argv[2]} keeps object{number}").outcome == "added"
        assert memory.add("All of them keep the same stone").outcome in ("added", "counted")
        memory.search(f"object{number}")
"""


def start(program: str, *arguments: object, **more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments), str(ROOT), str(ROOT / "tests")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload]


def bytes_of(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


def test_deleted_text_is_gone_from_the_files(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path, embedder=Letters()) as memory, Memory(path) as other:
        numbers = [memory.add(f"Fact of thing{n}x with keepsake{n}y", source=f"place{n}z").entry for n in range(60)]
        memory.add("fact of thing7x with keepsake7y and more of oddment7w")
        memory.add("Fact of thing8x with keepsake8y", recalled=memory.list(limit=9))
        memory.update(numbers[9] or 0, "Fact of thing9x with novelty9y")
        assert other.search("keepsake3y")
        gone = [number for number in numbers[:40] if number is not None]
        memory.delete(gone)
        content = bytes_of(path)
        for n in range(40):
            for word in (f"thing{n}x", f"keepsake{n}y", f"place{n}z", f"novelty{n}y", f"oddment{n}w"):
                assert word.encode() not in content, word
        assert b"keepsake50y" in content
        assert other.search("thing3x keepsake3y", floor=0) == []
        assert memory.forget() == 20
        assert b"keepsake" not in bytes_of(path)


def test_an_entry_goes_when_its_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path, settings=MemorySettings(retention_days=1)) as memory:
        memory.add("The parcel of keepsake1 comes soon", expires=time.time() + 0.2)
        kept = memory.add("The parcel of keepsake2 comes late").entry
        time.sleep(0.25)
        assert [one.entry.id for one in memory.search("keepsake1 keepsake2 parcel", floor=0)] == [kept]
        assert [entry.id for entry in memory.list()] == [kept]
        memory.add("Another thing")
        assert [(d.outcome, d.reason) for d in memory.log(outcome="expired")] == [("expired", "its time was over")]
        assert b"keepsake1" not in bytes_of(path)
        memory.settings = MemorySettings(retention_days=1e-9)
        assert memory.list() == []


def killed(path: Path, moments: int, most_seconds: float, seed: int) -> None:
    """Kills a writer at random moments, and holds the store against what it had said it did."""
    random_ = random.Random(seed)
    number = 0
    for _ in range(moments):
        writer = start(BUSY, path, number)
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(random_.uniform(0, most_seconds))
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.readlines()
        writer.wait()
        with Memory(path, embedder=Letters(16)) as memory:
            done = [line.split() for line in said if line.endswith("\n")]
            there = {entry.id: entry.text for entry in memory.list()}
            deleted = {int(entry) for what, _, entry in done if what == "deleted"}
            updated = {int(entry) for what, _, entry in done if what == "updated"}
            content = bytes_of(path)
            last = int(done[-1][1])  # what came after its last word, the killed one may have done as well
            for what, fact, entry in done:
                number = max(number, int(fact))
                if int(entry) in deleted:
                    assert int(entry) not in there and f"zebra{fact}z".encode() not in content
                    assert memory.search(f"thing{fact}x zebra{fact}z", 1, floor=0.9) == []
                elif what == "added" and int(fact) != last:
                    assert f"zebra{fact}z" in there[int(entry)]
                    assert ("novelty" in there[int(entry)]) == (int(entry) in updated)
            assert not memory.audit().ghosts
            assert memory._store.connection.rows("PRAGMA integrity_check") == [("ok",)]
            number += 2


def test_killed_writers_leave_a_sound_store(tmp_path: Path) -> None:
    killed(tmp_path / "m.db", moments=2, most_seconds=0.3, seed=1)


@pytest.mark.long
def test_fifty_killed_writers_leave_a_sound_store(tmp_path: Path) -> None:
    killed(tmp_path / "m.db", moments=50, most_seconds=1.0, seed=2)


@pytest.mark.parametrize("writers", [2, pytest.param(4, marks=pytest.mark.long)])
def test_processes_that_write_at_once_lose_nothing(writers: int, tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    running = [start(WRITER, path, number) for number in range(writers)]
    assert [process.wait() for process in running] == [0] * writers
    with Memory(path, embedder=Letters(16)) as memory:
        texts = sorted(entry.text for entry in memory.list())
        assert len(texts) == writers * 20 + 1
        assert set(texts) >= {
            f"Writer{writer} keeps object{number}" for writer in range(writers) for number in range(20)
        }
        (stone,) = [entry for entry in memory.list() if "stone" in entry.text]
        assert stone.seen == writers * 20
        assert len(memory.search("Writer0 keeps object7", writers * 20 + 1, how="vectors", floor=0)) == writers * 20 + 1
        assert not memory.audit().ghosts


def test_another_process_s_writes_are_found_by_vectors(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path, embedder=Letters()) as one, Memory(path, embedder=Letters()) as other:
        first = one.add("A green parrot").entry
        assert [found.entry.id for found in other.search("green parrot", how="vectors", floor=0)] == [first]
        second = one.add("A yellow canary").entry
        assert {found.entry.id for found in other.search("parrot", how="vectors", floor=0)} == {first, second}
        one.delete([first or 0])
        one.update(second or 0, "A yellow submarine")
        (found,) = other.search("submarine", how="vectors", floor=0)
        assert (found.entry.id, found.entry.text) == (second, "A yellow submarine")
        one.vacuum()
        one.add("A red robin")
        assert len(other.search("robin", how="vectors", floor=0)) == 2


def refused(path: Path, words: str) -> None:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=words):
        Memory(path, create=False).audit()
    assert before is None or path.read_bytes() == before


def test_files_that_are_no_memory(tmp_path: Path) -> None:
    refused(tmp_path / "none.db", "is not there: `stellarbyte memory add` makes it")
    refused(tmp_path, "is a folder")
    (tmp_path / "text.db").write_text("not a database, but a text that is long enough to be one")
    refused(tmp_path / "text.db", "is not an SQLite file")
    os.mkfifo(tmp_path / "pipe.db")
    refused(tmp_path / "pipe.db", "is a pipe or a device")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE memories (id INTEGER)")
    other.close()
    refused(tmp_path / "other.db", "another program's SQLite file")
    with pytest.raises(UserError, match="is no folder"):
        Memory(tmp_path / "nowhere" / "m.db")


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_store_is_brought_up(version: int, tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path) as memory:
        memory.add("My dog is called Rex.")
        memory.add("The dog of Tom barks.", kind="passage")
    older = ("usual_cosine", "cosine_spread")
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE terms")
        if version == 1:
            for column in older:
                database.execute(f"ALTER TABLE totals DROP COLUMN {column}")
            database.execute("ALTER TABLE totals ADD COLUMN wrong_cosine REAL")
        database.execute(f"PRAGMA user_version = {version}")
    database.close()
    path.chmod(0o444)
    if os.geteuid():  # root may write what is read-only
        refused(path, f"older StellarByte .schema {version}, this one knows")
    path.chmod(0o644)
    with Memory(path, embedder=Letters(16)) as memory:
        assert [found.entry.text for found in memory.search("Rex")] == ["My dog is called Rex."]
        assert memory._tables.words.frequencies("", ["dog", "rex", "cat"]) == {"dog": 2, "rex": 1}
        assert memory.delete([1]) == 1 and not memory.audit().ghosts
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
        columns = {row[1] for row in database.execute("PRAGMA table_info(totals)")}
    database.close()
    assert columns >= {*older} and "wrong_cosine" not in columns


def test_a_newer_and_a_damaged_store(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path) as memory:
        for number in range(60):
            memory.add(f"Fact of thing{number}x with keepsake{number}y")
    sound = path.read_bytes()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    refused(path, f"newer StellarByte .schema {SCHEMA + 1}, this one knows {SCHEMA}.")
    path.write_bytes(sound[: len(sound) // 2])
    refused(path, "is damaged")
    broken = bytearray(sound)
    broken[4096 * 3 :] = os.urandom(len(sound) - 4096 * 3)
    path.write_bytes(broken)
    refused(path, "is damaged")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path) as memory:
        memory.add("The first fact")
    program = f"""
import resource, signal, sys
sys.path[:0] = sys.argv[3:]
from stellarbyte.errors import UserError
from stellarbyte.memory import Memory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
memory = Memory(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 100_000},) * 2)
try:
    for number in range(2000):
        memory.add(f"Fact of thing{{number}}x " + "with very many words " * 50)
except UserError as error:
    print(number, error)
"""
    process = start(program, path, "")
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.wait() == 0 and "the memory is as it was before" in said, said
    with Memory(path) as memory:
        assert memory.list(limit=1)[0].text == "The first fact"
        assert len(memory) == 1 + int(said.split()[0])
        assert memory.add("There is room again").outcome == "added" and not memory.audit().ghosts


@pytest.mark.long
def test_a_small_disk_that_is_full_can_be_read_and_has_lost_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user may mount no disk")
    try:
        path, told = disk / "m.db", []
        full = "the disk is full; the memory is as it was before"
        with Memory(path) as memory, pytest.raises(UserError, match=full):  # noqa: PT012
            for number in range(1_000):
                things = " ".join(f"{number * 7919 % 10_007}x{thing}" for thing in range(60))
                told.append(memory.add(f"Hall {number} holds {things}", kind="passage").entry)
        with Memory(path) as memory:
            assert [entry.id for entry in memory.list()] == told and len(told) > 20
            assert memory.search("hall 5", 1)[0].entry.text.startswith("Hall 5 ")
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        with Memory(path) as memory:
            assert memory.add("My dog is called Rex").outcome == "added" and memory.delete(told) == len(told)
            assert b"Hall" not in bytes_of(path)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_read_only_store_is_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "m.db"
    path.parent.mkdir()
    with Memory(path, embedder=Letters()) as memory:
        memory.add("The first fact")
    before = path.read_bytes()
    path.chmod(0o444)
    path.parent.chmod(0o555)
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if os.geteuid() == 0:  # to whom nothing is read-only
                patch.setattr(os, "access", lambda *_: False)
            with Memory(path, embedder=Letters()) as memory:
                assert [one.entry.text for one in memory.search("first fact")] == ["The first fact"]
                memory.count_uses([1])  # a chat recalls all the same
                for write in (lambda: memory.add("no"), lambda: memory.delete([1]), memory.vacuum):
                    with pytest.raises(UserError, match="is read-only: nothing can be written to it"):
                        write()
    finally:
        path.parent.chmod(0o755)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["m.db"]
