"""A correction that says a value alone takes the place of what was said."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stellarbyte.memory import Memory
from stellarbyte.memory.gate.sentences import sentences_of


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "m.db") as opened:
        yield opened


@pytest.mark.parametrize(
    ("said", "corrections", "kept"),
    [
        (["My dog is called Rex"], ["no, it's Max"], "My dog is called Max"),
        (["My dog is called Rex"], ["It's Max, not Rex."], "My dog is called Max"),
        (["My car is red", "What is a good car wash?"], ["Actually, it's blue."], "My car is blue"),
        (["My car is red"], ["no, blue", "I meant green"], "My car is green"),
        (["I have two cats"], ["sorry, three"], "I have three cats"),
        (
            ["My birthday is on 3 May. I sing in a choir."],
            ["Wait, it's the 4th of May"],
            "My birthday is on the 4th of May.",
        ),
        (["My email is a@b.com"], ["no, a@c.com"], "My email is a@c.com"),
        (["My flight leaves on Monday, no, Tuesday"], [], "My flight leaves on Tuesday"),
        (["我的猫叫咪咪"], ["不对，叫花花"], "我的猫叫花花"),
        (["我今年30岁"], ["不对，31岁"], "我今年31岁"),
        (["我的生日是5月3号，不对，是4号"], [], "我的生日是5月4号"),
        (["我的猫叫咪咪"], ["不是咪咪，是花花"], "我的猫叫花花"),
        (["我有两只猫"], ["不对，三只"], "我有三只猫"),
    ],
)
def test_a_value_alone_corrects_what_was_said(
    said: list[str], corrections: list[str], kept: str, memory: Memory
) -> None:
    before: list[str] = []
    for turn in [*said, *corrections]:
        memory.add_turn(turn, earlier=before)
        before.append(turn)
    assert kept in [entry.text for entry in memory.list()]
    assert len(memory) == len(sentences_of(said[0]))  # the old value went


@pytest.mark.parametrize(
    "turn",
    [
        "No, it's fine",
        "Sorry, I have to go",
        "No, write it shorter",
        "actually Bob is my boss",
        "Actually I have three",
        "Wait, what?",
        "不对，你说错了",
    ],
)
def test_what_is_no_value_corrects_nothing(turn: str, memory: Memory) -> None:
    before = ["My dog is called Rex", "I have two cats"]
    for said in before:
        memory.add_turn(said)
    memory.add_turn(turn, earlier=before)
    assert [entry.text for entry in memory.list()][:2] == before


@pytest.mark.parametrize("piece", ["no, ", "it is ", "not a, ", "no, it's a. ", "不对，", "不是a，"])
def test_no_turn_takes_long(piece: str) -> None:
    begun = time.process_time()
    for length in (118, 20_000):
        sentences_of((piece * length)[:length], ["My dog is called Rex"])
    assert time.process_time() - begun < 2


def test_a_pronoun_says_more_of_what_was_said_before(memory: Memory) -> None:
    said = ["My sister is called Anna."]
    memory.add_turn(said[0])
    memory.add_turn("Her birthday is 3 May.", earlier=said)
    assert [entry.text for entry in memory.list()] == ["My sister is called Anna. Her birthday is 3 May."]
    memory.add_turn("It is raining.", earlier=said)
    assert len(memory) == 1


def test_who_has_moved_lives_elsewhere(memory: Memory) -> None:
    memory.add("I live in Berlin")
    assert memory.add_turn("Not anymore, I moved to Munich")[0].outcome == "replaced"
    assert memory.add_turn("I don't live in Munich anymore")[0].outcome == "replaced"
    memory.add("我住在上海")
    assert memory.add_turn("我搬家了，现在住在广州")[0].outcome == "replaced"
    assert len(memory) == 2
