"""A judge is asked how surprising a turn is where that can matter, and heeded if it can tell what it knows."""

from pathlib import Path

from stellarbyte.memory import Decision, Memory

TREES = "ash birch cedar fir oak pine elm yew palm teak lime plum fig bay gum box elder hazel maple alder larch".split()  # noqa: SIM905


class Judge:
    """To whom what was not said before costs `new` nats, what is known `known`, and what has the word old 3."""

    hash = "judge"

    def __init__(self, new: float, known: float) -> None:
        self.new, self.known, self.asked = new, known, 0

    def loss(self, text: str, given: str) -> float:
        """See Judge of the memory's protocols."""
        self.asked += 1
        return self.known if text in given else 3.0 if "old" in text else self.new


def told(memory: Memory) -> list[Decision]:
    """What the gate decides on a turn for each tree, and on an old one."""
    turns = [f"My garden has a {tree}" for tree in TREES]
    return [memory.add_turn(turn)[0] for turn in (*turns, "I own an old chest")]


def test_what_a_judge_foresees_is_refused(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", judge=Judge(new=9.0, known=2.9)) as memory:
        *trees, old = told(memory)
        assert {decision.outcome for decision in trees} == {"added"}
        assert old.reason == "the model foresees it" and round(old.scores["surprise"], 3) == 0.1


def test_a_judge_that_cannot_tell_what_it_knows_refuses_nothing(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", judge=Judge(new=6.4, known=6.0)) as memory:
        assert {decision.outcome for decision in told(memory)} == {"added"}


def test_no_judge_lets_in_what_is_of_nobody_known(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db", judge=Judge(new=9.0, known=1.0)) as memory:
        told(memory)
        assert memory.add_turn("Comets have tails of gas")[0].reason == "it says nothing of the user"


def test_a_judge_is_not_asked_of_what_is_refused_anyway(tmp_path: Path) -> None:
    judge = Judge(new=9.0, known=1.0)
    with Memory(tmp_path / "m.db", judge=judge) as memory:
        for turn in ("What is a comet?", "Write a poem.", "Thanks!", "My password is hunter2.", "I'm tired today."):
            memory.add_turn(turn)
        assert judge.asked == 0
        memory.add_turn("My dog is called Rex")
        assert judge.asked == 2  # after what a search finds, and after itself
