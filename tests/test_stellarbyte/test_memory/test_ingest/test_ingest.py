"""Documents in a store: read again they change nothing, changed they replace what they said."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.memory import Memory
from stellarbyte.memory.ingest.ingest import Ingested, file_of, ingest
from stellarbyte.records.bad_records import BadRecords
from tests.test_stellarbyte.test_memory.embedders import Letters


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.db") as memory:
        yield memory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# Rivers\nThe Tajo ends in Lisbon.\n\n# Hills\nSintra has many.\n")
    (folder / "b.txt").write_text("Porto lies at the Douro.\n")
    return folder


def put(memory: Memory, *paths: Path, policy: str = "fail") -> Ingested:
    return ingest(memory, [str(path) for path in paths], BadRecords(policy))  # type: ignore[arg-type]


def sources(memory: Memory) -> list[str]:
    return sorted(entry.source.rpartition("/")[2] for entry in memory.list())


def test_passages_get_their_vectors_many_at_once(tmp_path: Path, folder: Path) -> None:
    class Counting(Letters):
        calls = 0

        def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
            self.calls += 1
            return super().embed(texts, queries=queries)

    (folder / "long.txt").write_text(
        "\n\n".join(f"{name} " * 150 for name in ("Minho", "Sado", "Mira", "Lima", "Vouga"))
    )
    embedder = Counting()
    with Memory(tmp_path / "vectors.db", embedder=embedder) as memory:
        done = put(memory, folder)
        assert done.outcomes == {"added": done.passages} and done.passages > 5 and embedder.calls == done.files
        found = memory.search("Vouga " * 150, how="vectors", floor=0)
        assert found[0].entry.text.startswith("Vouga")


def test_again_and_changed(memory: Memory, folder: Path) -> None:
    done = put(memory, folder)
    assert done == Ingested(files=2, passages=3, outcomes={"added": 3})
    assert sources(memory) == ["a.md:2", "a.md:5", "b.txt:1"]
    assert memory.search("Where does the Tajo end?")[0].entry.text == "Rivers\nThe Tajo ends in Lisbon."
    assert {entry.kind for entry in memory.list()} == {"passage"}

    ids = {entry.source: entry.id for entry in memory.list()}
    assert put(memory, folder) == Ingested(files=2, passages=3, kept=3)
    assert {entry.source: entry.id for entry in memory.list()} == ids

    (folder / "a.md").write_text("# Rivers\nThe Tajo ends in the Atlantic.\n")
    assert put(memory, folder) == Ingested(files=2, passages=2, kept=1, outcomes={"added": 1}, removed=2)
    assert sources(memory) == ["a.md:2", "b.txt:1"]
    assert "Lisbon" not in str([entry.text for entry in memory.list()])
    assert memory.list(source=f"{folder}/b")[0].id == ids[f"{folder}/b.txt:1"]


def test_a_passage_that_has_moved_is_found_where_it_is(memory: Memory, folder: Path) -> None:
    put(memory, folder / "b.txt")
    (folder / "b.txt").write_text("\n\nPorto lies at the Douro.\n")
    assert put(memory, folder / "b.txt") == Ingested(files=1, passages=1, outcomes={"added": 1}, removed=1)
    assert sources(memory) == ["b.txt:3"]


def test_a_file_that_is_gone_takes_its_passages_along(memory: Memory, folder: Path) -> None:
    memory.add("Porto is old.", source=f"{folder}/said")
    put(memory, folder)
    (folder / "b.txt").rename(folder.parent / "b.txt")
    assert put(memory, folder / "a.md").removed == 0
    assert put(memory, folder).removed == 1
    assert sources(memory) == ["a.md:2", "a.md:5", "said"]


def test_bad_files(memory: Memory, folder: Path) -> None:
    put(memory, folder)
    (folder / "b.txt").write_bytes(b"\xff")
    (folder / "c.jsonl").write_text('{"text": "Faro"}\n{"text": \n{"text": "Braga"}\n')
    with pytest.raises(UserError, match=r"b\.txt:1 is not valid UTF-8"):
        put(memory, folder)
    bad = BadRecords("skip")
    done = ingest(memory, [str(folder), str(folder / "gone.md")], bad)
    assert bad.count == 3 and [name.partition(" ")[0].rpartition("/")[2] for name in bad.first] == [
        "b.txt:1",
        "c.jsonl:2",
        "gone.md",
    ]
    assert done.outcomes == {"added": 2} and done.kept == 2
    # What a file said that cannot be read now stays until it can.
    assert sources(memory) == ["a.md:2", "a.md:5", "b.txt:1", "c.jsonl:1", "c.jsonl:3"]


def test_files_of_names_that_begin_alike(memory: Memory, folder: Path) -> None:
    (folder / "b.txt:1").mkdir()
    (folder / "b.txt:1" / "x.txt").write_text("Evora has a temple.")
    put(memory, folder)
    assert put(memory, folder / "b.txt").removed == 0 and len(memory) == 4


def test_the_user_hears_of_each_file(memory: Memory, folder: Path) -> None:
    heard: list[tuple[str, int]] = []
    ingest(memory, [str(folder)], BadRecords("fail"), lambda path, count: heard.append((path.name, count)))
    assert heard == [("a.md", 2), ("b.txt", 1)]


def test_the_file_of_a_source() -> None:
    names = {"a.md:1-2": "a.md", "a:b.txt:7": "a:b.txt", "x.pdf#page=3": "x.pdf", "a#page=1.txt:3": "a#page=1.txt"}
    assert {source: file_of(source) for source in names} == names


def test_by_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "memory.db")
    assert main(["memory", "ingest", store, str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"     2 of {folder}/a.md",
        f"     1 of {folder}/b.txt",
        "3 passages of 2 files: 0 there already, 3 added",
    ]
    (folder / "b.txt").unlink()
    (folder / "c.md").write_bytes(b"\xff")
    assert main(["memory", "ingest", store, str(folder)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.endswith(
        "c.md:1 is not valid UTF-8 (byte 0xff, invalid start byte): mend it, or set --on-bad-file to skip\n"
    )
    assert main(["memory", "ingest", store, str(folder), "--on-bad-file", "skip"]) == 0
    output = capsys.readouterr()
    assert output.out.endswith("2 passages of 1 files: 2 there already; 1 removed that no file holds any more\n")
    assert output.err.startswith("Skipped 1 bad record: ")
    assert main(["memory", "ingest", store, str(folder), "--on-bad-file", "skip", "--json"]) == 0
    expected = {"files": 1, "passages": 2, "kept": 2, "outcomes": {}, "removed": 0, "skipped": 1}
    assert json.loads(capsys.readouterr().out) == expected
