"""Hostile and absurd input for every command, and how each ends: `python -m tests.hostile_table` prints the counts.

--kind K: of this kind alone, given as often as wanted. --sample N: so many of each kind, always the same ones.
--show: every ending.
The exit code is 1 where one ends as none may: in a traceback, a hang, out of memory, with a wrong exit code …
"""

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
# What a command imports, so that none of the forked children has to.
_MODULES = (
    *("pyarrow.parquet", "orbax.checkpoint", "grain", "optax", "peft", "rich.progress", "zstandard", "yaml"),
    *("stellarbyte_jax.commands", "stellarbyte_jax.training.pretrain", "stellarbyte_jax.pruning.prune"),
    *("stellarbyte_jax.training.evaluation", "stellarbyte_jax.data.prepare", "stellarbyte_jax.planning.plan"),
    *(
        "stellarbyte_jax.inference.speculative",
        "stellarbyte_jax.inference.text",
        "stellarbyte_jax.inference.chat",
        "stellarbyte_jax.training.load",
    ),
    *("stellarbyte_torch.finetune.run",),
    *("stellarbyte.chat.terminal", "stellarbyte_torch.chat.session"),
    *(
        "stellarbyte_torch.lora.merging",
        "convert.certificate",
        "convert.adapters",
        "convert.hf_checkpoint",
        "convert.quantizing.making",
        "convert.cli",
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Run the cases; returns 1 where one ended as none may."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile_table", description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", metavar="K")
    parser.add_argument("--only", metavar="WORD", help="cases whose name holds it")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--show", action="store_true")
    parser.add_argument(
        "--sound", type=Path, metavar="DIR", help="keep what the cases are made of there, for the next time"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    options = parser.parse_args(arguments)
    _import_all()
    from hostile.kinds import KINDS, all_cases

    if unknown := set(options.kind or ()) - set(KINDS):
        parser.error(f"no kind {', '.join(unknown)}: there are {', '.join(KINDS)}")
    cases = [case for case in all_cases() if case.kind in (options.kind or KINDS) and (options.only or "") in case.name]
    if options.sample is not None:
        cases = _drawn(cases, options.sample)
    # Below /tmp rather than in the user's own TMPDIR: a user without rights has to come there.
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o755)
    try:
        return _table(cases, folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drawn(cases: list[Any], count: int) -> list[Any]:
    """So many cases of each kind, drawn by a fixed seed."""
    draw = random.Random(0)
    kinds = dict.fromkeys(case.kind for case in cases)
    of_kinds = [[case for case in cases if case.kind == kind] for kind in kinds]
    return [case for of_kind in of_kinds for case in draw.sample(of_kind, min(count, len(of_kind)))]


def _table(cases: list[Any], folder: Path, options: argparse.Namespace) -> int:
    from hostile.sound import make_sound
    from hostile.verdict import BAD, GOOD, judge

    base = options.sound or folder / "base"
    if not (base / "q").exists():
        make_sound(base, folder / "making")
    before = _fingerprint(base)
    counts: dict[str, Counter[str]] = {case.kind: Counter() for case in cases}
    bad = []
    for case, ending, place in _endings(cases, base, folder, options.jobs):
        outcome, said = judge(case, ending, place)
        if case.then is not None and outcome in GOOD and ending.code != 0:
            outcome, said = _afterwards(case, base, place) or (outcome, said)
        now = _fingerprint(base)
        if changed := {name for name, _ in before.items() ^ now.items()}:
            outcome, said = (
                "left behind",
                f"{min(changed)} of what others share was changed by this one or by another at its time: {said}",
            )
        before = now
        counts[case.kind][outcome] += 1
        if outcome in BAD:
            bad.append((case, outcome, said))
        if options.show or outcome in BAD:
            print(f"{case.kind:10} {outcome:13} {ending.seconds:5.1f} s  {case.name}: {said}", flush=True)
        with contextlib.suppress(OSError):
            shutil.rmtree(place)
    total = sum(counts.values(), Counter())
    columns = [name for name in (*GOOD, *BAD) if total[name] or name in GOOD or name in BAD[:4]]
    print("\n| kind | cases | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 2))
    for kind, row in [*counts.items(), ("all", total)]:
        print(f"| {kind} | {row.total()} | " + " | ".join(str(row[name]) for name in columns) + " |")
    return 1 if bad else 0


def _afterwards(case: Any, base: Path, place: Path) -> tuple[str, str] | None:
    """What is wrong with the command that has to work on what a case has left."""
    from hostile.forked import Child
    from hostile.verdict import ACCEPTED, judge

    later = dataclasses.replace(
        case, make=case.then, accepted="it works afterwards", either=False, codes=(), mute=False
    )
    child = Child(later, base, place / "then", inside=place / "in")
    while (ending := child.ending()) is None:
        time.sleep(0.01)
    outcome, said = judge(later, ending, place)
    return None if outcome == ACCEPTED else ("left behind", f"what comes afterwards: {outcome}: {said}")


def _endings(cases: list[Any], base: Path, folder: Path, jobs: int) -> Iterator[tuple[Any, Any, Path]]:
    """Each case with its ending and the folder of its files, in the order in which they end."""
    from hostile.forked import Child

    waiting, running = list(enumerate(cases)), []
    while waiting or running:
        while waiting and len(running) < jobs:
            number, case = waiting.pop(0)
            running.append(Child(case, base, folder / "cases" / f"{number:04d}"))
        for child in list(running):
            if (ending := child.ending()) is not None:
                running.remove(child)
                yield child.case, ending, child.folder
        time.sleep(0.005)


def _fingerprint(base: Path) -> dict[str, tuple[int, int]]:
    # Locks come and go, and an adapter that is made marks the run that it stands on.
    files = (path for path in base.rglob("*") if not path.name.endswith(".lock") and "needed_by" not in path.parts)
    return {str(path): (0, 0) if path.is_dir() else (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files}


def _import_all() -> None:
    """Everything that commands import, in one thread and before JAX starts: what is forked then is whole."""
    sys.path.insert(0, str(TESTS))
    os.environ |= {
        "OPENBLAS_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GLIBC_TUNABLES": "",
        "TOKENIZERS_PARALLELISM": "0",
    }
    import conftest  # noqa: F401 - it tells JAX of the CPU

    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    # Of a fork: that JAX has threads, which it has not yet.
    warnings.filterwarnings("ignore", category=RuntimeWarning, message=r".*fork")
    import importlib
    import logging

    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    for name in _MODULES:
        importlib.import_module(name)
    logging.root.handlers.clear()  # by absl, which comes with JAX and which the PyTorch wing never imports


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
