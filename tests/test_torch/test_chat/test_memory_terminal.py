"""A whole talk with a memory on a terminal: told in one session, known in the next, corrected, forgotten."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..chat_models import chat_folder
from .test_terminal import Terminal

DIM = "\x1b[2m"


@contextmanager
def chat(folder: Path, store: Path) -> Iterator[Terminal]:
    options = ["--memory", store, "--memory-write", "--max-new-tokens", 4, "--dtype", "float32"]
    window = Terminal("chat", folder, *options)
    try:
        window.wait_for("> ")
        yield window
        window.type("\x04")
        assert window.process.wait(timeout=60) == 0
    finally:
        window.process.kill()
        window.process.wait()
        os.close(window.screen)


def say(window: Terminal, line: str) -> str:
    window.type(f"{line}\n")
    return window.wait_for("\n> ").replace("\r", "")


@pytest.mark.long
def test_a_memory_over_two_sessions(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "model", max_position_embeddings=4096, position_embedding="rope", eos_token_id=258)
    store = tmp_path / "memory.db"
    with chat(folder, store) as window:
        shown = say(window, "My dog is called Rex.")
        assert "recalled" not in shown and "\n(remembered as 1)" in shown.partition(DIM)[2]
        assert "\n(not remembered: " in say(window, "Thanks!")

    with chat(folder, store) as window:
        shown = say(window, "What is my dog called?")
        assert f"{DIM}recalled 1  20" in shown and ", chat: My dog is called Rex." in shown
        assert "whose old text goes into its history" in say(window, "Actually, my dog is called Max.")
        shown = say(window, "What is my dog called?")
        assert "My dog is called Max" in shown.replace("my dog", "My dog") and "Rex" not in shown
        assert "is deleted for good: " in say(window, "/forget dog")
        assert "recalled" not in say(window, "What is my dog called?")
        assert "there are no memories yet" in say(window, "/memories")

    held = b"".join(path.read_bytes() for path in tmp_path.glob("memory.db*"))
    assert b"Rex" not in held and b"Max" not in held
