"""Ends runs by signals at every moment, lets them go on, and holds them against a run that nothing ended.

`make torture` runs it: 100 runs, each ended one to four times. `python -m tests.torture --help` has the options.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
KINDS = (*(number.name for number in POLITE), "SIGKILL", "storm")
PHASES = ("import", "start", "step", "evaluation", "save", "end")
# What no ending may print, whatever it was ended by.
NEVER = re.compile(r"Traceback|Exception|Fatal Python|core dumped|Aborted|terminate called")
_LONGEST = 300.0


@dataclass(frozen=True)
class Ending:
    """How a run ended: by which kind of signals, in which phase, with what exit code and output.

    `fault` says what was wrong with it, or is None.
    """

    kind: str
    phase: str
    code: int
    seconds: float
    output: str
    fault: str | None


class Whole:
    """The run that nothing ends, which the others must equal, and how long its phases take.

    Raises:
        AssertionError: the run fails.
    """

    def __init__(self, config: Path, overrides: list[str]) -> None:
        self.config, self.overrides = config, overrides
        self.fields = yaml.safe_load(config.read_text(encoding="utf-8"))
        self.folder = config.with_name("whole")
        began = time.monotonic()
        opened: list[float] = []
        with start(self, self.folder) as (process, output):
            while process.poll() is None:
                if not opened and "parameters" in output.read_text(encoding="utf-8"):
                    opened.append(time.monotonic() - began)
                time.sleep(0.002)
        assert process.returncode == 0, output.read_text(encoding="utf-8")
        self.opens_after, self.ends_after = opened[0], time.monotonic() - began
        self.records, self.bits = content(self.folder)

    def run(self, folder: Path) -> str:
        """Lets the run in `folder` come to its end, and returns its output."""
        with start(self, folder) as (process, output):
            code = process.wait(_LONGEST)
        text = output.read_text(encoding="utf-8")
        assert code == 0, text
        return text


class start:
    """Starts the command as a user would, with its output in a file; kills it if it still lives at the end."""

    def __init__(self, whole: Whole, folder: Path) -> None:
        self._output = folder.with_suffix(".out")
        command = [sys.executable, "-m", "stellarbyte", "pretrain", str(whole.config), f"--output_dir={folder}"]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        with self._output.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [*command, *whole.overrides], env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> tuple[subprocess.Popen[bytes], Path]:
        return self._process, self._output

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def content(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """(the records of metrics.jsonl without the clock's figures, the bits of the weights)."""
    from test_jax.runs import bits, records

    return records(folder), bits(folder)


def end_it(whole: Whole, folder: Path, kind: str, phase: str, generator: random.Random) -> Ending:
    """Starts or goes on with the run in `folder`, and ends it by signals of this kind in this phase, if it gets there.

    A storm is twenty signals of all kinds but SIGKILL within a third of a second.
    """
    before = newest(folder)
    began = time.monotonic()
    with start(whole, folder) as (process, output):
        _await(_moment(whole, folder, output, phase, generator, began), process)
        seconds = time.monotonic() - began
        sent = []
        for _ in range(20 if kind == "storm" else 1):
            number = generator.choice(POLITE) if kind == "storm" else signal.Signals[kind]
            if process.poll() is None:
                process.send_signal(number)
                sent.append(number)
            if kind == "storm":
                time.sleep(generator.uniform(0, 0.03))
        code = process.wait(_LONGEST)
    text = output.read_text(encoding="utf-8")
    return Ending(kind, phase, code, seconds, text, _fault(whole, folder, code, sent, text, before))


def _await(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LONGEST
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.001)


def _moment(
    whole: Whole, folder: Path, output: Path, phase: str, generator: random.Random, began: float
) -> Callable[[], bool]:
    """A function that is true from a random moment of the phase on."""
    share = generator.random()
    if phase == "import":
        return lambda: time.monotonic() - began > share * whole.opens_after
    if phase == "start":  # the opening line is out; the step compiles, or is read from the cache
        opened: list[float] = []

        def started() -> bool:
            if not opened and "parameters" in output.read_text(encoding="utf-8"):
                opened.append(time.monotonic())
            return bool(opened) and time.monotonic() - opened[0] > share

        return started
    training = whole.fields["training"]
    first, last = last_record(folder), training["max_steps"]
    wanted = first + 1 + int(share**2 * (last - first))  # mostly early, so that the next one finds a run that goes on
    if phase == "step":
        return lambda: last_record(folder) >= wanted
    if phase == "evaluation":
        wanted = min(-(-wanted // training["eval_steps"]) * training["eval_steps"], last)
        return lambda: last_record(folder) >= wanted
    if phase == "save":
        saves = generator.randint(1, 3)
        seen: set[str] = set()

        def saving() -> bool:
            seen.update(entry.name for entry in _entries(folder / "checkpoints") if not entry.name.isdigit())
            return len(seen) >= saves

        return saving
    return lambda: newest(folder) == last or last_record(folder) == last


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def newest(folder: Path) -> int:
    """The step of the newest checkpoint that is whole; 0 if there is none."""
    return max((int(entry.name) for entry in _entries(folder / "checkpoints") if entry.name.isdigit()), default=0)


def last_record(folder: Path) -> int:
    """The step of the last whole record in metrics.jsonl; 0 if there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2000))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return 0
    steps = [int(found[1]) for line in lines if (found := re.match(r'\{"step": (\d+),.*\}$', line))]
    return max(steps, default=0)


def _fault(whole: Whole, folder: Path, code: int, sent: list[int], text: str, before: int) -> str | None:
    """What is wrong with this ending; None if it is as promised."""
    after, interval = newest(folder), whole.fields["checkpoint"]["save_steps"]
    allowed = {0} | ({-signal.SIGKILL} if signal.SIGKILL in sent else {128 + number for number in sent})
    if not text:  # it came before Python itself was started
        allowed |= {-number for number in sent}
    if code not in allowed:
        return f"exit code {code} after {[signal.Signals(number).name for number in sent]}"
    if NEVER.search(text):
        return "it prints what nobody should see"
    if before and "going on after step" in text and f"going on after step {before}" not in text:
        return f"it does not go on after step {before}, its newest checkpoint"
    if after < before:
        return f"checkpoint {before} is gone"
    told = re.search(r"stopped after step (\d+), saved", text)
    if told is not None and int(told[1]) != after:
        return f"it says that step {told[1]} is saved, and {after} is"
    # One checkpoint may still be being written, and the next one wait for it.
    lost = last_record(folder) // interval * interval - after
    return f"{lost} steps are lost beside those since the last save" if lost > 2 * interval else None


def one_run(whole: Whole, folder: Path, plan: list[tuple[str, str]], seed: int) -> tuple[list[Ending], str | None]:
    """Ends a run in `folder` once for each (kind, phase), then lets it come to its end.

    Returns:
        The endings; and how the finished run differs from the whole one, or None.
    """
    generator = random.Random(seed)
    endings = [end_it(whole, folder, kind, phase, generator) for kind, phase in plan]
    text = whole.run(folder)
    if NEVER.search(text):
        return endings, "the last part prints what nobody should see"
    records, bits = content(folder)
    if records != whole.records:
        return endings, "metrics.jsonl differs"
    if bits != whole.bits:
        return endings, "the weights differ"
    left = [entry.name for entry in _entries(folder / "checkpoints") if not entry.name.isdigit()]
    return endings, f"{left} is left in checkpoints/" if left else None


def plans(runs: int, seed: int) -> Iterator[list[tuple[str, str]]]:
    """One to four endings for each run, of which those at its end come last.

    Over all of them, each kind meets each phase about equally often.
    """
    generator = random.Random(seed)
    deck: list[tuple[str, str]] = []
    for _ in range(runs):
        count = generator.randint(1, 4)
        while len(deck) < count:
            fresh = [(kind, phase) for kind in KINDS for phase in PHASES]
            generator.shuffle(fresh)
            deck += fresh
        yield sorted((deck.pop(0) for _ in range(count)), key=lambda ending: ending[1] == "end")


def torture(
    config: Path, runs: int, seed: int, overrides: list[str], say: Callable[[str], None], workers: int = 2
) -> tuple[list[Ending], list[str]]:
    """Tortures `runs` runs of a config, some at once; their folders are beside the config.

    Returns:
        All endings, and a line for each run that is not as it should be.
    """
    whole = Whole(config, overrides)
    say(f"uninterrupted: {whole.ends_after:.1f} s, of which {whole.opens_after:.1f} s until it begins")
    endings: list[Ending] = []
    faults: list[str] = []
    done = 0
    lock = threading.Lock()

    def work(task: tuple[int, list[tuple[str, str]]]) -> None:
        nonlocal done
        number, plan = task
        folder = config.with_name(f"run{number}")
        found, difference = one_run(whole, folder, plan, seed * 1000 + number)
        bad = [f"{ending.kind} in {ending.phase}: {ending.fault}" for ending in found if ending.fault]
        bad += [difference] if difference else []
        with lock:
            done += 1
            endings.extend(found)
            faults.extend(f"run {number} ({', '.join(map(' in '.join, plan))}): {fault}" for fault in bad)
            say(f"{done}/{runs}  run {number}: {len(found)} endings, {'; '.join(bad) or 'equal'}")
        if not bad:
            shutil.rmtree(folder)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, enumerate(plans(runs, seed))))
    return endings, faults


def make_config(folder: Path) -> Path:
    """A corpus, its tokenizer and shards, and the config of a run with many saves and validations, in `folder`."""
    generator = random.Random(0)
    words = ["star", "byte", "light", "dark", "deep field", "of the", "turns into", "falls through", "silence,"]
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(60):
            file.write(json.dumps({"text": " ".join(generator.choices(words, k=generator.randint(20, 200)))}) + "\n")
    config = {
        "output_dir": str(folder / "run"),
        "data": {
            "sources": [{"path": str(folder / "corpus.jsonl")}],
            "tokenizer": str(folder / "tokenizer"),
            "shards": str(folder / "shards"),
            "sequence_length": 32,
            "validation_fraction": 0.1,
        },
        "model": {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
            "hidden_dropout": 0.1,
        },
        "training": {"max_steps": 240, "batch_size": 4, "eval_steps": 16, "ema_decay": 0.99},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
        "checkpoint": {"save_steps": 12},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    for command in (
        f"tokenizer train --input {folder}/corpus.jsonl --vocab-size 320 --output {folder}/tokenizer",
        f"prepare {path}",
    ):
        subprocess.run([sys.executable, "-m", "stellarbyte", *command.split()], check=True, stdout=subprocess.DEVNULL)
    return path


def main() -> int:
    """Print each run as it ends, a table of all endings, and the whole output of one of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="number of runs (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and signals (default 0)")
    parser.add_argument("--workers", type=int, default=2, help="number of runs at once (default 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("overrides", nargs="*", help="fields of the config, such as --training.optim=muon")
    options, fields = parser.parse_known_args()
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder + "/compiled"

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        config = make_config(Path(folder))
        endings, faults = torture(config, options.runs, options.seed, fields, say, options.workers)
    equal = options.runs - len({fault.split(" (")[0] for fault in faults})
    if options.json:
        table = Counter(f"{ending.kind} in {ending.phase}" for ending in endings)
        print(json.dumps({"runs": options.runs, "equal": equal, "endings": table, "faults": faults}))
    else:
        print(_table(endings))
        for kind in KINDS:
            shown = max((e for e in endings if e.kind == kind), key=lambda e: len(e.output), default=None)
            if shown is not None:
                print(f"\n{kind} after {shown.seconds:.2f} s, exit code {shown.code}; all that it printed:")
                print("".join(f"    {line}\n" for line in shown.output.splitlines()), end="")
        print(f"\n{equal} of {options.runs} runs equal the one that nothing ended.")
        print("".join(f"{fault}\n" for fault in faults), end="")
    return 1 if faults else 0


def _table(endings: list[Ending]) -> str:
    """How often each kind of signal came in each phase; in brackets, how often the run had ended before."""
    lines = [f"{'':<10}" + "".join(f"{phase:>12}" for phase in PHASES)]
    for kind in KINDS:
        cells = []
        for phase in PHASES:
            codes = [ending.code for ending in endings if (ending.kind, ending.phase) == (kind, phase)]
            cells.append(f"{len(codes)} ({codes.count(0)})" if codes else "-")
        lines.append(f"{kind:<10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
