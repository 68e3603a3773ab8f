"""`python -m tests.memory_table`: milliseconds, memory and file size of a memory's operations, by its number of entries.

Texts are made from lists, and vectors are random ones of 256 numbers: what a model takes to make them is not measured.
The entries are written in bulk, as an import does; the operations measured go through the gate. Without --postgres the
rows are of SQLite, from 200,000 entries on with faiss. What is added is deleted again.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.memory import Entry, Memory
from stellarbyte.memory.postgres import PostgresDatabase
from stellarbyte.memory.words import language_of

SIZE = 256
MEASURED = 30
_ONSETS, _RHYMES = (
    "b br c d dr f g gl h k l m n p pl r s st t tr v w z".split(),
    "an ar el en ik il in ol on or um us".split(),
)
WORDS = tuple(one + rhyme + end for one in _ONSETS for rhyme in _RHYMES for end in ("", "a", "et", "ish", "o"))
SIGNS = "山水火木金土日月风云雨雪花草鱼鸟马牛羊虎龙蛇狗猫猪鸡鸭鹅红黄蓝绿黑白东南西北春夏秋冬天地"


class Noise:
    """An embedder whose vectors depend on nothing but a text's bytes."""

    name, hash, size, whitened = "noise", "noise", SIZE, True

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:  # noqa: ARG002
        """The vectors, (len(texts), SIZE)."""
        return np.stack(
            [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(SIZE, np.float32) for text in texts]
        )


def main() -> None:
    """Measures each size in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--postgres", action="store_true", help="in a PostgreSQL server that is started for it")
    parser.add_argument("--store", metavar="STORE", help="a file or URL that stays; what it holds already is not made")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.entries[0])))
        return
    if options.store and len(options.entries) > 1:
        parser.error("--store is of one number of --entries")
    print(
        "Medians in ms, the import in s; in brackets the CPU time of this process and of the server, which other work "
        "on the machine lengthens little."
    )
    print(
        "| entries | add | search, both | by words | by vectors | first search | delete | memory, MiB | store, MiB | import | load |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for entries in options.entries:
        with tempfile.TemporaryDirectory() as folder:
            if options.store:
                row = _in_a_process(options.store, entries)
            elif options.postgres:
                from tests.postgres_server import postgres_server

                with postgres_server() as url:
                    row = _in_a_process(url, entries)
            else:
                row = _in_a_process(str(Path(folder) / "m.db"), entries)
        names = ("add", "hybrid", "words", "vectors", "first", "delete")
        times = " | ".join(_cell(*row[name]) for name in names)
        rest = f"{row['memory']:,.0f} | {row['store']:,.0f} | {_cell(*row['import'])} | {row['load']:.0f}"
        print(f"| {entries:,} | {times} | {rest} |", flush=True)


def _cell(wall: float, own: float, server: float) -> str:
    return f"{wall:,.1f} ({own:,.1f}{f' + {server:,.1f}' if server else ''})"


def _in_a_process(place: str, entries: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.memory_table", "--one", place, "--entries", str(entries)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def measure(place: str, entries: int) -> dict[str, Any]:
    """The figures of a store that is filled and measured in this process."""
    random_ = random.Random(f"other texts than the {entries} that are there")
    with Memory(place, embedder=Noise()) as memory:
        missing, server = entries - len(memory), _server(memory)
        imported = _milliseconds(lambda: _fill(memory, missing, random.Random(entries)), server, 1)
        found: dict[str, Any] = {"import": [milliseconds / 1e3 for milliseconds in imported]}
        memory._store.connection.run("UPDATE totals SET vector_weight = NULL")  # the first search is the store's first
    with Memory(place, embedder=Noise()) as memory:
        before, server = _resident(), _server(memory)
        found["first"] = _milliseconds(lambda: memory.search(_text(random_)), server, 1)
        for how in ("hybrid", "words", "vectors"):
            found[how] = _milliseconds(lambda how=how: memory.search(_question(random_), how=how), server)  # type: ignore[misc]
        added: list[int] = []
        found["add"] = _milliseconds(lambda: added.append(memory.add(_text(random_)).entry or 0), server)
        found["delete"] = _milliseconds(lambda: memory.delete([added.pop()]), server)
        found["load"] = os.getloadavg()[0]
        found["memory"] = _resident() - before
        found["store"] = memory._store.connection.size() / 2**20
    return found


def _fill(memory: Memory, entries: int, random_: random.Random) -> None:
    store, now = memory._store, time.time()
    assert store.nearest is not None
    for first in range(0, entries, 10_000):
        texts = [_text(random_) for _ in range(first, min(first + 10_000, entries))]
        vectors = map(store.nearest.to_column, Noise().embed(texts))
        made = [Entry(0, text, "table", "", "note", language_of(text), now, now, None, 0, 1, None) for text in texts]
        with store.connection.writing():
            store.tables.vectors.write_new("", zip(store.tables.insert_all("", made), vectors, strict=True))
    store.connection.settle()


def _text(random_: random.Random) -> str:
    if random_.random() < 0.3:
        return "".join(random_.choices(SIGNS, k=random_.randint(8, 24)))
    weights = _ZIPF
    return "My " + " ".join(random_.choices(WORDS, weights, k=random_.randint(5, 16)))


def _question(random_: random.Random) -> str:
    return "What is the " + " ".join(random_.choices(WORDS, _ZIPF, k=4))


_ZIPF = [1 / place for place in range(1, len(WORDS) + 1)]


def _milliseconds(call: Callable[[], object], server: int | None, times: int = MEASURED) -> tuple[float, ...]:
    """The median of the time that a call takes, and the means of the CPU time of this process and of the server."""
    taken, cpu, servers = [], time.process_time(), _cpu_of_server(server)
    for _ in range(times):
        begun = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - begun))
    own = 1e3 * (time.process_time() - cpu) / times
    return sorted(taken)[times // 2], own, 1e3 * (_cpu_of_server(server) - servers) / times


def _server(memory: Memory) -> int | None:
    """The process of a PostgreSQL server of this machine; None: the store is a file."""
    if not isinstance(memory._store.connection, PostgresDatabase):
        return None
    ((folder,),) = memory._store.connection.rows("SHOW data_directory")
    return int((Path(folder) / "postmaster.pid").read_text().split()[0])


def _cpu_of_server(server: int | None) -> float:
    """Seconds that a server and its processes, ended ones too, have taken of CPUs."""
    ticks = 0
    for place in Path("/proc").glob("[0-9]*/stat") if server is not None else ():
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == server:
            ticks += sum(map(int, fields[11:13]))
        elif place.parent.name == str(server):
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident() -> float:
    """The process's memory in MiB."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
