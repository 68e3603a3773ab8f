"""What a conversation may ask of its memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.memory import Memory
from stellarbyte.memory.entries import Decision
from stellarbyte.memory.recall import Recall, told


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "memory.db") as memory:
        yield memory


def test_remembering_and_listing(memory: Memory) -> None:
    recall = Recall(memory)
    assert recall.listing("") == "there are no memories yet"
    assert recall.remember("My dog is called Rex.") == "remembered as 1"
    assert recall.remember("My dog is called Rex.").startswith("known already, as 1: ")
    assert recall.remember("The river\nis\x1b wide.") == "remembered as 2"
    wide, rex = recall.listing("").split("\n")
    assert wide.startswith("   2  20") and wide.endswith(", chat: The river is\x1b wide.")
    assert rex.endswith(", chat: My dog is called Rex.")
    assert recall.listing("dog") == rex
    assert recall.listing("zebra") == "no memory has to do with 'zebra'"
    for number in range(30):
        recall.remember(f"number {number} is {'x' * 200}")
    assert recall.listing("").split("\n")[-1] == "and 12 older ones: /memories WORDS looks for some"
    assert recall.listing("").split("\n")[0].endswith("x…")


def test_forgetting(memory: Memory) -> None:
    recall = Recall(memory)
    for text in ("My dog is called Rex.", "My cat is called Mia.", "Rex bit a cat."):
        recall.remember(text)
    assert recall.forget("#2") == "memory 2 is deleted for good" and len(memory) == 2
    ask = recall.forget("rex").split("\n")
    assert ask[0] == "which of these? /forget and its number" and len(ask) == 3
    assert recall.forget("called rex.") == "memory 1 is deleted for good: My dog is called Rex."
    assert recall.forget("a cat was bitten by someone").startswith("which of these?")
    assert len(memory) == 1
    with pytest.raises(UserError, match="there is no memory 2: /memories shows"):
        recall.forget("2")
    with pytest.raises(UserError, match="no memory has to do with 'zebra'"):
        recall.forget("zebra")


@pytest.mark.parametrize(
    ("earlier", "message", "expected"),
    [
        (["What is my dog called?"], "And its colour?", 2),
        (["What is my dog called?", "And its colour?"], "And when is its birthday?", 3),
        (["我的猫叫什么？"], "它几岁了？", 4),
        (["What is my dog called?"], "What is the capital of Mongolia?", None),
        (["What is my dog called?"], "Thanks!", None),
    ],
)
def test_a_follow_up_is_looked_for_with_what_it_follows(
    earlier: list[str], message: str, expected: int | None, memory: Memory
) -> None:
    texts = ("My dog is called Rex.", "The colour of my dog is brown.", "My dog's birthday is May 3.", "我的猫三岁。")
    numbers = [memory.add(text).entry for text in (*texts, "My car is red.", "Lena plays the harp.")]
    found = [one.entry.id for one in Recall(memory).search(message, earlier)]
    assert found[:1] == ([] if expected is None else [numbers[expected - 1]])


def test_only_what_was_used_is_counted_and_only_a_memory_that_writes_is_written(memory: Memory) -> None:
    Recall(memory).remember("My dog is called Rex.")
    found = Recall(memory).search("What is my dog called?")
    assert [one.entry.id for one in found] == [1] and Recall(memory).search("  ") == []
    assert Recall(memory).keep("It barks.", found) == () and len(memory) == 1
    entry = memory.get(1)
    assert entry is not None and entry.uses == 1
    decisions = Recall(memory, writes=True).keep("My sister lives in Lisbon.", [])
    assert [decision.outcome for decision in decisions] == ["added"]
    assert [(entry.kind, entry.source) for entry in memory.list(newest=True)] == [("turn", "chat"), ("note", "chat")]


def test_a_floor_of_its_own(memory: Memory) -> None:
    Recall(memory).remember("My dog is called Rex.")
    assert Recall(memory, floor=0.0).search("dog") and not Recall(memory, floor=1.0).search("dog and much more beside")


def test_what_the_gate_has_decided_in_words() -> None:
    outcomes = {
        "replaced": "remembered as 3, whose old text goes into its history: why",
        "refused": "not remembered: why",
    }
    for outcome, text in outcomes.items():
        assert told(Decision(outcome, "why", {}, 3)) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ask", "complaint"),
    [
        (lambda memory: Recall(memory).remember(""), "/remember wants a text"),
        (lambda memory: Recall(memory).forget(""), "/forget wants a number or words"),
        (lambda memory: Recall(memory, most_tokens=0), "--memory-tokens 0 must be at least 1"),
        (lambda memory: Recall(memory, floor=1.5), r"--memory-floor 1\.5 must be a number from 0 to 1"),
    ],
)
def test_what_is_refused(memory: Memory, ask, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ask(memory)
