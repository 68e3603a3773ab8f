"""Memory's methods over an SQLite file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.memory import Memory
from test_stellarbyte.test_memory.embedders import Letters


def test_what_is_added_is_found_by_words_and_vectors(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", embedder=Letters()) as memory:
        for text in ("My dog is called Rex", "我的猫叫咪咪", "I live in Berlin"):
            assert memory.add(text).outcome == "added"
        for query, text in (
            ("What is my dog called?", "My dog is called Rex"),
            ("我的猫叫什么名字？", "我的猫叫咪咪"),
            ("where do I live", "I live in Berlin"),
        ):
            found = memory.search(query, floor=0)
            assert found[0].entry.text == text
            assert found[0].ranks == {"words": 1, "vectors": 1}
        assert [one.entry.text for one in memory.search("Berlin", how="vectors", limit=1, floor=0)] == [
            "I live in Berlin"
        ]
        assert [one.entry.text for one in memory.search("Berlin", how="words")] == ["I live in Berlin"]
        assert memory.search("nothing of the kind", floor=0.3) == []


def test_a_store_of_two_entries_answers_a_question_with_a_word_that_neither_has(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory:
        for text in ("My dog is called Max", "我住在北京"):
            memory.add(text)
        assert [one.entry.text for one in memory.search("what is my dog's name")] == ["My dog is called Max"]
        assert memory.search("which colour has the moon") == []


def test_an_entry_changes_and_goes_with_its_history(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", embedder=Letters()) as memory:
        number = memory.add("My dog is called Rex", source="chat").entry
        assert number is not None
        assert memory.add("my dog is called  rex.").outcome == "counted"
        assert memory.update(number, "My dog is called Max").text == "My dog is called Max"
        assert [old["text"] for old in memory.history(number)] == ["My dog is called Rex"]
        assert memory.search("Rex", how="words") == []
        entry = memory.get(number)
        assert entry is not None and (entry.seen, entry.source, entry.uses) == (2, "chat", 0)
        memory.count_uses([number])
        assert [entry.uses for entry in memory.list()] == [1]
        assert memory.delete([number, 99]) == 1
        assert memory.get(number) is None and memory.history(number) == [] and memory.list() == []
        assert memory.search("dog", floor=0) == [] and len(memory) == 0
        assert [decision.outcome for decision in memory.log()] == ["deleted", "updated", "counted", "added"]


def test_users_see_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path, user="ann", embedder=Letters()) as ann, Memory(path, user="bob", embedder=Letters()) as bob:
        number = ann.add("My dog is called Rex").entry
        assert number is not None
        bob.add("My cat is called Tom")
        assert [one.entry.user for one in bob.search("dog called Rex", floor=0)] == ["bob"]
        assert bob.get(number) is None and bob.delete([number]) == 0 and len(ann) == 1
        with pytest.raises(UserError, match=f"has no entry {number}"):
            bob.update(number, "stolen")
        assert bob.users() == {"ann": 1, "bob": 1}
        assert bob.forget("ann") == 1
        assert ann.search("dog", floor=0) == [] and ann.log() == [] and bob.users() == {"bob": 1}


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", embedder=Letters()) as memory:
        memory.add("My dog is called Rex")
    with pytest.raises(UserError, match=r"has vectors of the embedder letters, not of other: give that one, or"):
        Memory(tmp_path / "m.db", embedder=Letters(name="other"))
    with Memory(tmp_path / "m.db") as memory:
        assert memory.by_words_alone and memory.add("I live in Berlin").outcome == "added"
    with Memory(tmp_path / "m.db", embedder=Letters()) as memory:
        assert [one.entry.text for one in memory.search("Berlin", how="vectors", limit=1, floor=0)] == [
            "I live in Berlin"
        ]


class Noisy(Letters):
    """An embedder whose vectors of queries say nothing."""

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """The vectors, (len(texts), size)."""
        vectors = super().embed(texts)
        return np.random.default_rng(7).standard_normal(vectors.shape, np.float32) if queries else vectors


def test_vectors_weigh_what_they_are_worth(tmp_path: Path) -> None:
    """A store measures it on its own entries: bad vectors hardly change what the words say."""
    trees = "ash birch cedar fir oak pine elm yew palm teak lime plum fig bay gum box elder hazel maple alder".split()  # noqa: SIM905
    texts = [f"The {tree} harp of {tree[::-1] * 2} is kept in the damp room" for tree in trees]
    weights = {}
    for embedder in (Letters(256, "good"), Noisy(256, "noisy")):
        with Memory(tmp_path / f"{embedder.name}.db", embedder=embedder) as memory:
            for text in texts:
                memory.add(text, kind="passage")
            found = memory.search("cedar harp in the damp room", 3)
            assert found[0].entry.text == texts[2]
            kept = memory._tables.words.measured("")
            assert kept.trust is not None and kept.weighed == len(texts)
            weights[embedder.name] = kept.trust.weight
            if embedder.name == "noisy":
                for one, other in zip(found, memory.search("cedar harp in the damp room", 3, how="words"), strict=True):
                    assert abs(one.score - other.score) < 0.02
    assert weights["good"] > 0.25 > weights["noisy"]
