"""Config files that are no YAML, YAML that is a trap, and files that are none."""

import os
import socket
from collections.abc import Callable
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from hostile.case import Case, Cases, Command, World, stellarbyte, torch

JAX, TORCH = ("prepare", "pretrain", "plan"), ("data preview", "finetune")

File = Callable[[World], Path | str | bytes]


def _bomb(levels: int, width: int) -> str:
    names = [f"n{i}" for i in range(levels)]
    lines = [f"{names[0]}: &n0 {{a: 1, b: 2}}"]
    lines += [f"{b}: &{b} {{{', '.join(f'k{i}: *{a}' for i in range(width))}}}" for a, b in pairwise(names)]
    return "\n".join(lines)


# What stands in the file instead of a config, or behind one where it begins with a line end.
TEXTS: dict[str, str | bytes] = {
    "nothing": "",
    "comments of 900 kB": "#" * 900_000,
    "null": "null",
    "a list of configs": "- seed: 1\n- seed: 2\n",
    "a block of text": "|\n  output_dir: x\n",
    "UTF-16 with its mark": "seed: 1\n".encode("utf-16"),
    "UTF-16 without a mark": "seed: 1\n".encode("utf-16-le"),
    "UTF-32": "seed: 1\n".encode("utf-32"),
    "Latin-1 in a comment": "seed: 1 # é\n".encode("latin-1"),
    "a lone surrogate in UTF-8": b"seed: 1 # \xed\xa0\x80\n",
    "a lone surrogate, escaped": '\noutput_dir2: "\\ud800"\n',
    "an unknown escape": '\nseed: "\\q"\n',
    "a quote that never ends": '\nx: "' + "a\n" * 1000,
    "NUL between two fields": "\nseed: 1\0\nx: 2\n",
    "an escape sequence of terminals": "\n\x1b[2Jx: 1\n",
    "a right-to-left override": "\n\u202ex: 1\n",
    "a tab before a field": "\n\tseed: 1\n",
    "brackets of 1 MB": "[" * 1_000_000,
    "dashes of 1 MB": "- " * 500_000,
    "question marks of 1 MB": "? " * 500_000,
    "braces with keys of 1 MB": "{a: " * 250_000,
    "colons of 1 MB": "a:" * 500_000,
    "half a million values": "x: [" + "1," * 500_000 + "]",
    "100,000 fields": "".join(f"a{i}: {i}\n" for i in range(80_000)),
    "100,000 anchors": "x: [" + ",".join(f"&a{i} 1" for i in range(80_000)) + "]",
    "one anchor, 200,000 aliases": "x: &x 1\ny: [" + "*x," * 200_000 + "]",
    "a bomb of mappings": _bomb(12, 10),
    "a bomb of merge keys": "a: &a {x: 1}\n" + "\n".join(
        f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ),
    "a merge key": "\nbase: &base {seed: 1}\n<<: *base\n",
    "an alias of itself in sources": "\nx: &x [{path: *x}]\n",
    "a key of itself": "&k {*k : 1}",
    "an alias as a key": "a: &a b\n*a : 1\n",
    "a list as a key": "\n[a, b]: 1\n",
    "an empty key": '\n"": 1\n',
    "null as a key": "\n~: 1\n",
    "a number as a key": "\n1e400: 1\n",
    "a key of 1,000 characters": "\n" + "k" * 1000 + ": 1\n",
    "a key of 100,000 characters": '\n? "' + "k" * 100_000 + '"\n: 1\n',
    "a key with a line end": '\n"a\\nb": 1\n',
    "a key with an escape sequence": '\n"a\\e[31m": 1\n',
    "a key with a lone surrogate": '\n"\\udfff": 1\n',
    "a field twice, far down": "\noptimizer: {warmup_steps: 1, warmup_steps: 2}\n",
    "two documents": "\n---\nseed: 1\n",
    "words behind the end": "\n...\nseed 1\n",
    "python's objects": "\nx: !!python/object/apply:os.system ['touch pwned']\n",
    "python's tuples": "\nx: !!python/tuple [1, 2]\n",
    "an unknown directive": "%TAG ! tag:evil,2000:\n---\nx: !y 1\n",
    "a tag of 100,000 characters": "\nx: !" + "t" * 100_000 + " 1\n",
    "a tag of escapes": "\nx: !%ff%00 1\n",
    "null with words": "\nx: !!null words\n",
    "a number of 3,999 digits": "\nseed: " + "9" * 3999 + "\n",
    "a number of 900,000 digits": "\nseed: " + "9" * 900_000 + "\n",
    "an exponent of 300 digits": "\nseed: 1e" + "9" * 300 + "\n",
    "a hexadecimal number of 100,000 digits": "\nseed: 0x" + "f" * 100_000 + "\n",
    "a number with underscores": "\nseed: 1_000\n",
    "a number to the base of sixty": "\nseed: 1:30\n",
    "a colon alone": ":",
    "an ampersand alone": "&",
    "a percent sign alone": "%",
    "only the mark of UTF-8": b"\xef\xbb\xbf",
    "random bytes": bytes(range(256)) * 40,
    "gzip": b"\x1f\x8b\x08" + bytes(200),
    "JSON of JSON": '"{\\"seed\\": 1}"',
}  # fmt: skip


def _fifo(world: World) -> Path:
    os.mkfifo(world.folder / "c.yaml")
    return world.folder / "c.yaml"


def _link(target: str) -> File:
    def make(world: World) -> Path:
        (world.folder / "c.yaml").symlink_to(target)
        return world.folder / "c.yaml"

    return make


def _socket(world: World) -> Path:
    socket.socket(socket.AF_UNIX).bind("c.yaml")
    return world.folder / "c.yaml"


def _large(world: World) -> Path:
    path = world.file("c.yaml", "seed: 1\n")
    os.truncate(path, 1 << 40)
    return path


def _locked(world: World) -> Path:
    path = world.file("c.yaml", "seed: 1\n")
    path.chmod(0)
    return path


FILES: dict[str, File] = {
    "a folder": lambda world: world.folder,
    "a pipe": _fifo,
    "a socket": _socket,
    "a link to itself": _link("c.yaml"),
    "a link to nothing": _link("nowhere"),
    "a link to /dev/zero": _link("/dev/zero"),
    "/dev/null": lambda _: "/dev/null",
    "/dev/stdin": lambda _: "/dev/stdin",
    "/proc/self/mem": lambda _: "/proc/self/mem",
    "/proc/self/environ": lambda _: "/proc/self/environ",
    "a terabyte of nothing": _large,
    "an unreadable file": _locked,
    "no name": lambda _: "",
    "a name of 300 characters": lambda _: "n" * 300,
    "a name of 100,000 characters": lambda _: "n" * 100_000,
    "a name with a line end": lambda _: "a\nb.yaml",
    "a name with an escape sequence": lambda _: "\x1b]0;x\x07.yaml",
    "a name that is not UTF-8": lambda _: b"\xff\xfe.yaml",
    "a file with a line end in its name": lambda world: world.file("a\nb.yaml", "seed: [\n"),
    "a file whose name is not UTF-8": lambda world: world.file(b"\xff.yaml", "seed: x\n"),
}  # fmt: skip


def _read(command: str, path: Path | str | bytes, **options: Any) -> Command:
    if command == "plan":
        return stellarbyte("plan", path, "--topology", "h100:1x1", **options)
    if command in ("prepare", "pretrain"):
        return stellarbyte(command, path, **options)
    return torch(*command.split(), path, **options)


def _text(world: World, command: str, text: str | bytes) -> Command:
    if isinstance(text, bytes) or not text.startswith("\n"):
        return _read(command, world.file("c.yaml", text))
    return _read(command, world.run_yaml(text) if command in JAX else world.finetune_yaml(text))


def cases() -> Cases:
    """Of both wings, each with one of its commands that read a config."""
    jax, showroom = cycle(JAX), cycle(TORCH)
    for name, text in TEXTS.items():
        for command in (next(jax), next(showroom)):
            make = partial(_text, command=command, text=text)
            yield Case("yaml", f"{name} ({command})", make, says="yaml", absent=("pwned",))
    for name, file in FILES.items():
        for command in (next(jax), next(showroom)):

            def make(
                world: World, command: str = command, file: File = file, locked: bool = "unread" in name
            ) -> Command:
                return _read(command, file(world), nobody=locked)

            yield Case("yaml", f"{name} ({command})", make)
