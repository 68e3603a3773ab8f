import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stellarbyte import door
from stellarbyte_torch.chat.session import open_session

from ..chat_models import QUESTIONS, adapter_folders, chat_folder

SHORT = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return adapter_folders(folder, tmp_path_factory.mktemp("adapters"), ("terse", "polite.v2"))


@pytest.fixture(scope="module")
def base_answers(folder: Path) -> list[str]:
    session = open_session(folder, max_new_tokens=SHORT)
    return [session.answer(question).text for question in QUESTIONS]


def chat(folder: Path, lines: str, monkeypatch: pytest.MonkeyPatch, *options: object) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return door.main(["chat", str(folder), "--max-new-tokens", "16", *map(str, options)])


def test_piped_lines_are_answered_to_standard_output_alone(
    folder: Path, base_answers: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"{QUESTIONS[0]}\n\n{QUESTIONS[1]}\n/retry\n/undo\n  {QUESTIONS[1]} \n/reset\n{QUESTIONS[0]}"
    assert chat(folder, lines, monkeypatch) == 0
    output = capsys.readouterr()
    first, second, _ = base_answers
    assert output.out.splitlines() == [first, second, second, second, first]
    assert f"taken back: {QUESTIONS[1]}" in output.err
    assert "the conversation is forgotten" in output.err


def test_adapters_swap_between_two_lines(
    folder: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["hello", "/undo", "/adapter off", "hello", "/undo", "/adapter second", "hello", "/undo", "/adapter terse"]
    lines += ["hello", "/adapters", "/quit", "not read"]
    options = ["--adapter", adapters[0], "--adapter", f"second={adapters[1]}", "--json"]
    assert chat(folder, "\n".join(lines), monkeypatch, *options) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answers = [record for record in records if "message" in record]
    assert [answer["adapter"] for answer in answers] == ["terse", None, "second", "terse"]
    texts = [answer["text"] for answer in answers]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
    assert texts[1] == open_session(folder, max_new_tokens=SHORT).answer("hello").text
    replies = {record["command"]: record["reply"] for record in records if "command" in record}
    assert replies["/adapters"] == "* terse\n  second\n  off"
    assert replies["/adapter second"].startswith("adapter second is active (")
    assert replies["/adapter second"].endswith(" ms)")
    assert list(answers[0]) == [
        *("message", "text", "adapter", "finish", "forgotten", "prompt_tokens", "new_tokens", "tokens_per_second")
    ]


def test_an_adapter_may_come_later(
    folder: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(folder, f"/load late {adapters[1]}\nhello\n/adapter", monkeypatch) == 0
    late = capsys.readouterr()
    assert late.err.startswith("adapter late is active\n")
    assert late.err.endswith("* late\n  off\n")
    assert chat(folder, "hello\n/adapter", monkeypatch, "--adapter", adapters[1]) == 0
    early = capsys.readouterr()
    assert early.err.endswith("* polite_v2\n  off\n")
    assert early.out == late.out


def test_system_texts(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    session = open_session(folder, max_new_tokens=SHORT)
    plain = session.answer("hello").text
    session.undo()
    session.system = "Be brief."
    brief = session.answer("hello").text
    assert plain != brief
    lines = "hello\n/undo\n/system\nhello\n/undo\n/system Be brief.\nhello"
    assert chat(folder, lines, monkeypatch, "--system", "Be brief.") == 0
    assert capsys.readouterr().out.splitlines() == [brief, plain, brief]


def test_what_a_reader_should_know_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = chat_folder(tmp_path, max_position_embeddings=96)
    # So that it never ends by itself.
    monkeypatch.setattr("stellarbyte_torch.chat.session._stop_ids", lambda *_: set())
    assert chat(folder, "hello\nand then\n" + "x" * 70, monkeypatch) == 0
    errors = capsys.readouterr().err
    assert "(cut off after 16 tokens, at --max-new-tokens)" in errors
    assert "where the context of 96 is full)" in errors
    assert "(the conversation outgrew the context of 96 tokens: its first 4 messages are forgotten)" in errors


def test_answers_cannot_command_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stellarbyte_torch.generate.decode", lambda _tokenizer, ids: "\x1b" * len(ids))
    assert chat(folder, "hello", monkeypatch) == 0
    assert capsys.readouterr().out == "\\x1b" * 16 + "\n"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("/adaptor x", "there is no command /adaptor; did you mean /adapter?"),
        ("/usr/bin is what?", "there is no command /usr/bin; /help lists them (a message that begins with / wants a"),
        ("/adapter x", "adapter 'x' is not registered: there are none"),
        ("/load x", "/load wants a name and a folder"),
        ("/load x nowhere", "nowhere holds no adapter_config.json: give a folder that PEFT or finetune wrote"),
        ("/undo", "nothing has been said yet"),
        ("/retry", "nothing has been said yet"),
        ("x" * 600, "too many for a context of 512 that must hold the answer, too: shorten it"),
        ("\udcff", "holds the lone surrogate U+DCFF, which is no character"),
    ],
)
def test_a_mistake_ends_a_script_with_a_sentence(
    folder: Path, lines: str, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(folder, f"{lines}\nnot read", monkeypatch) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("stellarbyte: error: ")
    assert complaint in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--adapter", "off=x"], "'off' cannot name an adapter"),
        (["--adapter", "nowhere"], "nowhere holds no adapter_config.json"),
        (["--top-p", "0.5"], "top_p 0.5 has no effect at temperature 0"),
        (["--chat-template", "no.jinja"], "--chat-template no.jinja cannot be read"),
        (["--device", "tpu9"], "--device tpu9 is not available here"),
    ],
)
def test_options_that_are_wrong(
    folder: Path,
    options: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert chat(folder, "hello", monkeypatch, *options) == 2
    assert complaint in capsys.readouterr().err


class Terminal:
    """The program on a terminal of its own, and what it has shown since it was last waited for."""

    def __init__(self, *arguments: object) -> None:
        self.screen, theirs = pty.openpty()
        command = [sys.executable, "-m", "stellarbyte", *map(str, arguments)]
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def wait_for(self, text: str, knock: Callable[[], None] = lambda: None) -> str:
        """What is shown up to this text; until something is, knocks again and again."""
        shown, deadline = "", time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < deadline, shown
            if not shown:
                knock()
            if select.select([self.screen], [], [], 0.5)[0]:
                shown += os.read(self.screen, 4096).decode()
        return shown.replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Any]:
    folder = chat_folder(tmp_path, max_position_embeddings=8192, position_embedding="rope", eos_token_id=258)
    (adapter,) = adapter_folders(folder, tmp_path, ["terse"])
    window = Terminal("chat", folder, "--adapter", adapter, "--max-new-tokens", 8000)
    yield window
    window.process.kill()
    window.process.wait()
    os.close(window.screen)


@pytest.mark.long
def test_on_a_terminal_mistakes_and_ctrl_c_do_not_end_the_talk(terminal: Terminal) -> None:
    assert "a context of 8192 tokens; /help lists the commands" in terminal.wait_for("terse> ")
    terminal.type("/adaptor off\n")
    assert "did you mean /adapter?" in terminal.wait_for("terse> ")
    terminal.type("/adapter off\n")
    assert "the base alone is active" in terminal.wait_for("\n> ")

    terminal.type("hello\n")
    terminal.wait_for("hello")
    time.sleep(1)  # in the midst of an answer of many seconds
    os.kill(terminal.process.pid, signal.SIGINT)
    assert "(interrupted; the conversation goes on from here)" in terminal.wait_for("\n> ")
    # A KeyboardInterrupt would have left the lock of the adapters held.
    terminal.type("/adapter terse\n")
    assert "adapter terse is active" in terminal.wait_for("terse> ")

    # Between the prompt and readline's wait for keys, Python notes a signal and goes on waiting: one presses again.
    shown = terminal.wait_for("terse> ", knock=lambda: os.kill(terminal.process.pid, signal.SIGINT))
    assert "Ctrl-D leaves" in shown
    terminal.type("\x04")
    assert terminal.process.wait(timeout=30) == 0
