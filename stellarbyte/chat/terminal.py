"""The program behind `stellarbyte chat`: lines in, answers and commands' replies out."""

import argparse
import contextlib
import difflib
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from stellarbyte.chat.session import BASE, Answer, ChatSession
from stellarbyte.errors import UserError
from stellarbyte.memory.entries import Found
from stellarbyte.memory.recall import Recall, entry_line, told
from stellarbyte.reading import expanded
from stellarbyte.terminal_text import harmless

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"

HELP = """\
/adapter NAME      answer with this adapter from now on, /adapter off without any; the conversation goes on
/adapters          the adapters there are, * before the active one
/load NAME FOLDER  load an adapter and switch to it
/system TEXT       begin the conversation with this system message; /system alone: with none
/reset             forget the conversation
/undo              take your last message and its answer back
/retry             answer your last message again
/remember TEXT     put a text into the memory (of chat --memory FILE)
/forget WHAT       delete a memory for good, by its number or by words that only it has
/memories [WORDS]  the newest memories, or those that have to do with words
/help              this list
/quit              leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / wants a space before it."""


class Quit(Exception):
    """The user wants to leave."""


class Commands:
    """What the user's lines are: messages for the model, or commands that begin with / and are carried out here."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._commands: dict[str, Callable[[str], str]] = {
            "/adapter": self._adapter,
            "/adapters": lambda _: self._adapters(),
            "/load": self._load,
            "/system": self._system,
            "/reset": lambda _: self._reset(),
            "/undo": lambda _: self._undo(),
            "/remember": lambda text: self._recall().remember(text),
            "/forget": lambda what: self._recall().forget(what),
            "/memories": lambda words: self._recall().listing(words),
            "/help": lambda _: HELP,
            "/quit": self._quit,
        }

    def take(self, line: str) -> tuple[str | None, str]:
        """A message that wants an answer, or None and what a command has to tell.

        Raises:
            UserError: an unknown command, or one that cannot be carried out.
            Quit: the user wants to leave.
        """
        if not line.startswith("/"):
            return line.strip(), ""
        word, _, rest = line.strip().partition(" ")
        if word == "/retry":
            return self._session.undo(), ""
        if word not in self._commands:
            near = difflib.get_close_matches(word, [*self._commands, "/retry"], n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise UserError(f"there is no command {word}; {hint} (a message that begins with / wants a space first)")
        return None, self._commands[word](rest.strip())

    def _adapter(self, name: str) -> str:
        if not name:
            return self._adapters()
        started = time.perf_counter()
        self._session.use_adapter(name)
        seconds = time.perf_counter() - started
        return f"{self._active()} ({seconds * 1e3:.1f} ms)"

    def _adapters(self) -> str:
        names = [*self._session.adapter_names, BASE]
        active = self._session.adapter or BASE
        return "\n".join(f"{'*' if name == active else ' '} {name}" for name in names)

    def _load(self, words: str) -> str:
        name, _, folder = words.partition(" ")
        if not folder:
            raise UserError("/load wants a name and a folder: /load terse runs/terse")
        self._session.add_adapter(name, expanded(folder.strip()))
        self._session.use_adapter(name)
        return self._active()

    def _active(self) -> str:
        return f"adapter {self._session.adapter} is active" if self._session.adapter else "the base alone is active"

    def _system(self, text: str) -> str:
        self._session.system = text or None
        return "the conversation begins with this system message" if text else "there is no system message"

    def _reset(self) -> str:
        self._session.messages.clear()
        return "the conversation is forgotten"

    def _undo(self) -> str:
        message = self._session.undo()
        return f"taken back: {message}"

    def _recall(self) -> Recall:
        if self._session.recall is None:
            raise UserError("this chat has no memory: start it with --memory FILE")
        return self._session.recall

    def _quit(self, _: str) -> str:
        raise Quit


def run_chat(session: ChatSession, options: argparse.Namespace) -> None:
    """Talk as the options of `stellarbyte chat` say: on a terminal, or line by line where lines are piped in.

    Raises:
        UserError: a piped command or message has a mistake.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 gets its sentence where it is used
    session.system = options.system
    if sys.stdin.isatty() and sys.stdout.isatty() and not options.json:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends a line or an answer, not the talk
        talk(session, colour=options.colour)
    else:
        answer_lines(session, sys.stdin, as_json=options.json, echo=options.echo)


def answer_lines(session: ChatSession, lines: Iterator[str], *, as_json: bool, echo: bool = False) -> None:
    """Answer one message a line: to standard output alone, and replies to commands to standard error.

    as_json: an object a line instead, of an answer or of a command's reply. echo: shows each line before its answer.

    Raises:
        UserError: a command or a message has a mistake; the lines after it are not read.
    """
    commands = Commands(session)
    for line in filter(str.strip, lines):
        if echo and not as_json:
            _write(f"> {harmless(line.strip())}\n")
        try:
            message, reply = commands.take(line)
        except Quit:
            return
        if message is None:
            if as_json:
                _print_json({"command": line.strip(), "reply": reply})
            else:
                print(harmless(reply), file=sys.stderr, flush=True)
        elif as_json:
            _print_json({"message": message, **_record(session.answer(message), session)})
        else:
            answer = session.answer(message, on_text=_write, on_recall=_tell_recalled)
            _write("\n")
            for note in notes(answer, session):
                print(harmless(note), file=sys.stderr, flush=True)


def talk(session: ChatSession, *, colour: bool) -> None:
    """Talk on a terminal until /quit or Ctrl-D; a mistake gets a sentence, and the talk goes on."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and editing keys

    commands = Commands(session)

    def tell(text: str) -> None:
        print(f"{_DIM}{harmless(text)}{_PLAIN}" if colour else harmless(text), flush=True)

    size = f"{session.parameters / 1e6:,.1f} M parameters"
    tell(f"{size}, a context of {session.context} tokens; /help lists the commands")
    while True:
        try:
            line = input(f"{session.adapter or ''}> ")
        except KeyboardInterrupt:
            tell("\nCtrl-D leaves")
            continue
        except EOFError:
            print()
            return
        try:
            message, reply = commands.take(line) if line.strip() else (None, "")
            if message is not None:
                with _interrupts() as interrupted:
                    answer = session.answer(
                        message,
                        on_text=_write,
                        stop=interrupted.is_set,
                        on_recall=lambda found: tell("\n".join(recalled(found))),
                    )
                _write("\n")
                reply = "\n".join(notes(answer, session))
        except UserError as error:
            reply = str(error)
        except Quit:
            return
        if reply:
            tell(reply)


def notes(answer: Answer, session: ChatSession) -> list[str]:
    """What a reader should know about an answer, beside its text."""
    texts = []
    if answer.finish == "interrupted":
        texts.append("(interrupted; the conversation goes on from here)")
    elif answer.finish == "length":
        full = answer.prompt_tokens + answer.new_tokens == session.context
        why = f"where the context of {session.context} is full" if full else "at --max-new-tokens"
        texts.append(f"(cut off after {answer.new_tokens} tokens, {why})")
    if answer.forgotten:
        texts.append(
            f"(the conversation outgrew the context of {session.context} tokens: "
            f"its first {answer.forgotten} messages are forgotten)"
        )
    return [*texts, *(f"({told(decision)})" for decision in answer.kept)]


def recalled(found: Sequence[Found]) -> list[str]:
    """A line for each entry that a prompt holds: its number, day, source and text."""
    return [f"recalled {entry_line(one.entry).strip()}" for one in found]


def _tell_recalled(found: Sequence[Found]) -> None:
    for text in recalled(found):
        print(harmless(text), file=sys.stderr, flush=True)


def _record(answer: Answer, session: ChatSession) -> dict[str, Any]:
    """An answer as JSON values; those of a memory are there if the chat has one."""
    plain = {name: value for name, value in vars(answer).items() if name not in ("recalled", "kept")}
    if session.recall is None:
        return plain
    found = {name: [one.to_dict() for one in getattr(answer, name)] for name in ("recalled", "kept")}
    return {**plain, **found}


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets the event inside, and does nothing else; a second one ends the program.

    KeyboardInterrupt in the midst of a forward pass would leave the adapters' lock held for good.
    """
    event = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> Any:
        if event.is_set():
            return signal.default_int_handler(number, frame)
        event.set()

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def _write(text: str) -> None:
    sys.stdout.write(harmless(text))
    sys.stdout.flush()


def _print_json(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)
