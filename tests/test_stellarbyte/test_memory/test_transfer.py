"""Export and import, the audit, another embedder, settings: what concerns a whole memory."""

import json
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.memory import Memory, MemorySettings
from stellarbyte.memory.minhash import similar_pairs
from test_stellarbyte.test_memory.embedders import Letters


def test_what_is_exported_is_imported_with_its_history(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    with Memory(tmp_path / "one.db", embedder=Letters()) as one:
        number = one.add("My dog is called Rex", source="chat").entry
        one.add("我住在北京", kind="turn", expires=2e9)
        one.count_uses([number or 0])
        one.add("Actually, my dog is called Max")
        assert one.export(file) == 2
        entries = one.list()
    with Memory(tmp_path / "two.db", embedder=Letters(), user="ann") as two:
        assert two.load(file) == (2, 0, 0)
        assert two.load(file) == (0, 2, 0)
        for before, after in zip(entries, two.list(), strict=True):
            same = ("text", "source", "kind", "language", "uses", "seen", "expires")
            assert all(getattr(before, name) == getattr(after, name) for name in same)
            assert abs(before.created - after.created) <= 1
        assert [old["text"] for old in two.history(two.list()[0].id)] == ["My dog is called Rex"]
        assert len(two.search("dog", how="vectors", floor=0)) == 2
        assert two.add("My dog is called Tom").outcome == "replaced"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ":2 is not valid JSON"),
        ("[1]", ":2 holds a list, expected an object"),
        ("{}", ":2 has no text"),
        ('{"text": 3}', ":2: text 3 must be a text"),
        ('{"text": "x", "kind": "odd"}', "kind 'odd' must be note, turn or passage"),
        ('{"text": "x", "uses": -1}', "uses -1 must be a count"),
        ('{"text": "x", "created": "yesterday"}', "created 'yesterday' must be a time"),
        ('{"text": "x", "history": [1]}', "history must be a list of objects"),
        ('{"text": "\\u0000"}', "holds a character that is no text"),
    ],
)
def test_a_bad_line_imports_nothing(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(f'{{"text": "a good line"}}\n{line}\n')
    with Memory(tmp_path / "m.db") as memory:
        with pytest.raises(UserError, match=words.replace("[", r"\[")):
            memory.load(file)
        assert memory.list() == []


def test_secrets_are_not_imported(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"text": "My password is hunter2"}) + "\n\n" + json.dumps({"text": "fine"}))
    with Memory(tmp_path / "m.db") as memory:
        assert memory.load(file) == (1, 0, 1)


def test_an_audit_finds_junk_duplicates_and_ghosts(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    texts = [
        "My dog is called Rex",
        "Thanks a lot!",
        "My dog is called Rex and he is five",
        "<|im_start|>",
        "I like tea",
    ]
    kinds = ["note", "turn", "note", "note", "turn"]
    file.write_text("\n".join(json.dumps({"text": t, "kind": k}) for t, k in zip(texts, kinds, strict=True)))
    with Memory(tmp_path / "m.db") as memory:
        memory.load(file)
        found = memory.audit()
        assert [(entry.text, reason) for entry, reason in found.junk] == [
            ("Thanks a lot!", "it says nothing but politeness"),
            ("<|im_start|>", "it holds special tokens of a prompt"),
        ]
        assert [(one.text, two.text) for one, two, _ in found.duplicates] == [(texts[2], texts[0])]
        assert found.ghosts == {}
        memory._store.connection.rows("DELETE FROM memories WHERE id = 1")
        assert memory.audit().ghosts == {"terms": 3, "frames": 1, "counts": 1}


def test_minhash_finds_similar_texts_among_many() -> None:
    texts = [" ".join(f"word{n}x{part}" for part in range(12)) for n in range(400)]
    texts[77] = texts[300] + " again"
    assert list(similar_pairs(texts)) == [(77, 300)]


def test_another_embedder_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path, embedder=Letters(), user="ann") as memory:
        memory.add("A green parrot")
        memory.add("A red robin")
    with Memory(path, embedder=Letters()) as watching, Memory(path) as memory:
        watching.search("parrot")
        counts: list[int] = []
        memory.reembed(Letters(48, "other"), counts.append)
        assert counts == [2]
        with Memory(path, embedder=Letters(48, "other"), user="ann") as ann:
            (found, _) = ann.search("robin", how="vectors", floor=0)
            assert found.entry.text == "A red robin"
    with pytest.raises(UserError, match="has vectors of the embedder other"):
        Memory(path, embedder=Letters())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"capacity": 0}, "capacity 0 must be an integer of at least 1"),
        ({"floor": 1.5}, "floor 1.5 must be a number from 0 to 1"),
        ({"retention_days": -1}, "retention_days -1 must be a number above 0"),
        ({"surprise": "much"}, "surprise 'much' must be a number"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MemorySettings(**values)  # type: ignore[arg-type]


def test_settings_are_the_store_s(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", settings=MemorySettings(floor=0.5)) as one, Memory(tmp_path / "m.db") as other:
        assert other.settings.floor == 0.5
        other.settings = MemorySettings(capacity=1)
        one.add("The first fact of many")
        one.add("The second thing of few")
        assert [entry.text for entry in one.list()] == ["The second thing of few"]
