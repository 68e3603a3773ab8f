"""Signals, early, late and twice, in each command that takes long enough for one to come."""

import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hostile.case import Case, Cases, Command, World, convert, stellarbyte, torch
from hostile.kinds.command_lines import SOUND, Words, _filled, _make

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS = (0.3, 0.5, 2.0)
# Longer than the sound ones: so many steps, draws or texts.
LONGER: dict[str, Words] = {
    "tokenizer train": ("--input", "{in}/large.txt", "--vocab-size", "2000"),
    "prepare": ("--data.sources.0.path={in}/large.txt",),
    "pretrain": ("--training.max_steps=600", "--checkpoint.save_steps=50", "--training.eval_steps=100"),
    "plan": ("--search",),
    "generate": ("--max-new-tokens", "240"),
    "torch generate": ("--max-new-tokens", "240"),
    "chat": ("--max-new-tokens", "50"),
    "chat of a run": ("--max-new-tokens", "50"),
    "data preview": ("--samples", "1000"),
    "finetune": ("--training.max_steps=40", "--training.save_steps=10", "--training.eval_steps=10"),
}
# What goes on where it was stopped, or begins anew, when it is asked once more.
GOES_ON = ("corpus", "tokenizer train", "prepare", "pretrain", "to-hf", "from-hf", "to-peft", "from-peft", "prune")
GOES_ON += ("finetune", "merge", "quantize")
STARTING: dict[str, Callable[[World], Command]] = {
    "stellarbyte": lambda world: stellarbyte("pretrain", world.run_yaml("", "c.yaml"), "--training.max_steps=3000"),
    "convert": lambda world: convert("verify", world.base / "run", world.copy("hf")),
    "torch": lambda world: torch("finetune", world.finetune_yaml(), "--training.max_steps=300"),
}
_DONE = "it was done before"


def _large(world: World, command: str) -> None:
    if any("large" in str(word) for word in LONGER.get(command, ())):
        world.file("large.txt", "".join(f"line {i} of {i * 7919 % 10007} stars\n" for i in range(300_000)))


def _words(command: str) -> Words:
    return (*SOUND[command][1], *LONGER.get(command, ()))


def _sent(world: World, command: str, signals: tuple[tuple[int, float], ...]) -> Command:
    _large(world, command)
    made = _make(world, SOUND[command][0], _words(command))
    return replace(made, stdin=b"star\n" * 100 if command.startswith("chat") else b"", signals=signals)


def _again(world: World, command: str) -> Command:
    return SOUND[command][0](*_filled(world, _words(command)))


def _fresh(world: World, program: str, signals: tuple[tuple[int, float], ...]) -> Command:
    return replace(STARTING[program](world), signals=signals, fresh=True)


def cases() -> Cases:
    """Each signal at each time, of each command in turn; and of programs that are just being started."""
    for number, command in enumerate(SOUND):
        for turn, seconds in enumerate(SECONDS):
            for which in SIGNALS if command in ("pretrain", "finetune") else (SIGNALS[(number + turn) % 3],):
                yield _case(f"{command}, {which.name} after {seconds} s", command, ((which, seconds),))
        first, second = SIGNALS[number % 3], SIGNALS[(number + 1) % 3]
        yield _case(
            f"{command}, {first.name} after 0.4 s and {second.name} after 0.5 s", command, ((first, 0.4), (second, 0.5))
        )
    for program in STARTING:
        for turn, seconds in enumerate((0.8, 1.2, 1.6, 2.4, 3.2, 5.0)):
            which = SIGNALS[turn % 3]
            yield Case(
                "signals",
                f"{program} being started, {which.name} after {seconds} s",
                partial(_fresh, program=program, signals=((which, seconds),)),
                _DONE,
                either=True,
                codes=(128 + which,),
            )


def _case(name: str, command: str, signals: tuple[tuple[int, float], ...]) -> Case:
    return Case(
        "signals",
        name,
        partial(_sent, command=command, signals=signals),
        _DONE,
        codes=tuple(128 + number for number, _ in signals),
        abrupt=len(signals) > 1,
        then=partial(_again, command=command) if command in GOES_ON else None,
    )
