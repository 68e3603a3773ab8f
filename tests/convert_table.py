"""Time and memory of conversions beside `cp` of the same bytes: `python -m tests.convert_table` prints the table.

--config FILE: the model's YAML. --folder DIR: where to work, on the disk that is measured; it is emptied afterwards.
--shard SIZE: the exports' --max-shard-size, given as often as wanted. --cold: read from the disk, not from memory.
--dtype NAME: the exports' dtype. "CPU" is the seconds of all cores that a command used; "on disk" is the seconds until
all of it is on the disk.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from convert import names, run_checkpoint, weights
from convert.run_checkpoint import RunCheckpoint
from stellarbyte_jax.config_file import load_model_config
from stellarbyte_jax.data.tokenizer_training import train_tokenizer

_TEXT = "the star that was a byte, and the byte that was a star: def star(byte): return byte * 2\n"


def main(arguments: Sequence[str]) -> int:
    """Makes a run of random weights, and converts it there and back."""
    parser = argparse.ArgumentParser(prog="python -m tests.convert_table", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/model/1b.yaml"), metavar="FILE")
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--shard", action="append", metavar="SIZE")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--dtype", default="float32", metavar="NAME")
    parser.add_argument("--keep", action="store_true", help="leave the run in --folder")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="convert-table-"))
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    if not run.exists():
        _make_run(run, options.config)
    print("| | seconds | CPU | on disk | MB/s | of cp | peak memory, MB |\n| --- | --- | --- | --- | --- | --- | --- |")
    try:
        for shard in options.shard or ["5GB", "500MB"]:
            _table(run, folder, shard, options.dtype, options.cold)
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    return 0


def _table(run: Path, folder: Path, shard: str, dtype: str, cold: bool) -> None:
    hf, back, copy = folder / "hf", folder / "back", folder / "copy"
    convert = [sys.executable, "-m", "stellarbyte", "convert"]
    to_hf = [*convert, "to-hf", str(run), str(hf), "--max-shard-size", shard, "--dtype", dtype]
    commands = [
        ("cp of the run", ["cp", "-r", str(run), str(copy)], run),
        (f"to-hf, {dtype}, files of {shard}", to_hf, run),
        ("cp of the export", ["cp", "-r", str(hf), str(copy)], hf),
        (f"from-hf, files of {shard}", [*convert, "from-hf", str(hf), str(back)], hf),
    ]
    copied = 0.0
    for what, command, source in commands:
        nbytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        _to_memory(source, cold=cold)
        _have_memory(folder / "scratch", nbytes)
        begin, used = time.perf_counter(), _cpu_seconds()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = 0
        while child.poll() is None:
            peak = _peak(child.pid) or peak
            time.sleep(0.02)
        seconds, used = time.perf_counter() - begin, _cpu_seconds() - used
        os.sync()
        on_disk = time.perf_counter() - begin
        assert child.returncode == 0, command
        rate = nbytes / seconds / 1e6
        copied = rate if command[0] == "cp" else copied
        ratio = "" if command[0] == "cp" else f"{rate / copied:.2f}"
        figures = f"{seconds:.1f} | {used:.1f} | {on_disk:.1f} | {rate:.0f} | {ratio} | {peak / 1e6:.0f}"
        print(f"| {what} | {figures} |", flush=True)
        shutil.rmtree(copy, ignore_errors=True)
    shutil.rmtree(hf)
    shutil.rmtree(back)


def _cpu_seconds() -> float:
    """The seconds that all processes before have used of the cores."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _peak(pid: int) -> int:
    """The most bytes that a process has held; its rusage would count what its parent held before it."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def _to_memory(folder: Path, *, cold: bool) -> None:
    """Has the system hold all files of a folder in memory, or none."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                if cold:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while file.read(1 << 24):
                        pass


def _have_memory(scratch: Path, nbytes: int) -> None:
    """Writes and removes a file, so that the system has memory for another one.

    What a virtual machine frees may go back to its host, and is slow to come again: the command that happens to get it
    would pay for that.
    """
    piece = os.urandom(1 << 24)
    with scratch.open("wb", buffering=0) as file:
        for _ in range(0, nbytes, len(piece)):
            file.write(piece)
        os.fsync(file.fileno())
    scratch.unlink()


def _make_run(run: Path, config_file: Path) -> None:
    config = load_model_config(config_file)
    draw = np.random.default_rng(0)

    def array(shape: tuple[int, ...]) -> weights.LazyArray:
        def read(layer: int | None) -> np.ndarray:
            return 0.02 * draw.standard_normal(shape if layer is None else shape[1:], np.float32)

        return weights.LazyArray(shape, np.dtype(np.float32), read)

    params = weights.unflatten({path: array(shape) for path, shape in names.jax_shapes(config).items()})
    with tempfile.TemporaryDirectory() as tokenizer:
        files = train_tokenizer([_TEXT] * 20, 300, Path(tokenizer), report=lambda _: None).files
    run.mkdir(parents=True)
    run_checkpoint.save(run, RunCheckpoint(params, config, files, step=0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
