"""Which turns are statements of the user: of somebody known, of one word, in Japanese."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stellarbyte.memory import Memory


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(tmp_path / "m.db") as opened:
        yield opened


def test_a_name_that_an_entry_has_is_somebody_known(memory: Memory) -> None:
    memory.add("My friend Anna lives in Rome")
    memory.add("我的朋友陈静住在北京")
    for turn in ("Anna's dog is called Rex", "Anna loves jazz", "陈静的狗叫旺财", "陈静喜欢爵士乐"):
        assert memory.add_turn(turn)[0].outcome == "added", turn
    for turn in ("Rome is a large city", "Bruno loves jazz", "爵士乐来自美国"):
        assert memory.add_turn(turn)[0].reason == "it says nothing of the user", turn


def test_statements_of_one_word(memory: Memory) -> None:
    for turn in ("I'm a vegetarian", "I'm from Peru.", "I have a dog"):
        assert memory.add_turn(turn)[0].outcome == "added", turn
    for turn in ("I have a headache", "I have an idea", "I'm in", "I'm a bit late"):
        assert memory.add_turn(turn)[0].outcome == "refused", turn


def test_japanese(memory: Memory) -> None:
    turns = [
        "私の犬の名前はレックスです。",
        "東京に住んでいます。",
        "私の犬の名前はマックスです。",
        "大阪に引っ越しました",
        "妹はアンナといいます",
        "私は30歳です",
    ]
    assert [memory.add_turn(turn)[0].outcome for turn in turns] == ["added"] * 2 + ["replaced"] * 2 + ["added"] * 2
    assert memory.list()[0].text == "私の犬の名前はマックスです。"
    reasons = [
        memory.add_turn(turn)[0].reason
        for turn in ("私の犬の名前は何ですか", "私の詩を書いてください", "今日は私も疲れました", "火山は危険です")
    ]
    assert reasons == ["it is a question", "it is a request", "it will be over soon", "it says nothing of the user"]
    assert memory.add_turn("覚えておいて、鍵は植木鉢の下です")[0].outcome == "added"
    assert memory.list()[-1].kind == "note"
