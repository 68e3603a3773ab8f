"""The newest checkpoints are asked for texts, each once, and what comes of it is told."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.watch import samples
from stellarbyte.watch.samples import Samples

from .test_watched import Silent


class Answering(Silent):
    """Answers with a line for each prompt, as `stellarbyte generate` does."""

    lines: Sequence[str] = (json.dumps({"text": "a\x1b[31m"}), json.dumps({"text": "b"}))

    def begin(self, words: Sequence[str], done: Any) -> None:
        self.asked.append(words)
        done("\n".join(self.lines), self.error)


def test_each_checkpoint_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Answering()
    found = Samples(Path("runs/x"), ["def ", "in"], children)
    found.ask(None)
    assert children.asked == [] and found.told() == {"prompts": ["def ", "in"], "rows": []}
    found.ask(10)
    found.ask(10)
    found.ask(20)
    options = ["--step", "10", "--max-new-tokens", "64", "--json"]
    assert children.asked == [["generate", "runs/x", *options, "--prompt", "def ", "in"]], "one a minute"
    monkeypatch.setattr(samples, "_SECONDS_BETWEEN", 0.0)
    for _ in range(3):
        found.ask(20)
    assert len(children.asked) == 2
    assert [row["step"] for row in found.told()["rows"]] == [20, 10]
    assert found.told()["rows"][0] == {"step": 20, "texts": ["a\\x1b[31m", "b"], "problem": ""}
    for step in range(30, 60):
        found.ask(step)
    assert len(found.told()["rows"]) == 20 and found.told()["rows"][0]["step"] == 59


def test_nothing_is_asked_without_prompts() -> None:
    children = Answering()
    Samples(Path("runs/x"), [], children).ask(10)
    assert children.asked == []


@pytest.mark.parametrize(
    ("lines", "error", "problem"),
    [
        ([], "jax is not installed: pip install 'stellarbyte[jax]'", "jax is not installed"),
        (["no JSON"], None, "it gave no texts"),
        (["[]"], None, "it gave no texts"),
        ([json.dumps({"text": "a"})], None, "it gave 1 texts for 2 prompts"),
    ],
)
def test_what_goes_wrong_is_told(lines: list[str], error: str | None, problem: str) -> None:
    children = Answering(error=error)
    children.lines = lines
    found = Samples(Path("runs/x"), ["a", "b"], children)
    found.ask(10)
    (row,) = found.told()["rows"]
    assert row["texts"] == [] and row["problem"].startswith(problem)
