"""Safetensors files and their indices: broken headers, tensors that no model can have, pickles in their place."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hostile.case import Case, Cases, Command, World, convert, torch

WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _header(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _one(
    name: str = "a", dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), data: bytes = bytes(4)
) -> bytes:
    fields = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return _header(json.dumps({name: fields}).encode(), data)


def _two(first: str, ends: tuple[int, int], second: str, others: tuple[int, int], data: int) -> bytes:
    tensors = [
        '"%s":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}' % (name, end - start, start, end)  # noqa: UP031
        for name, (start, end) in ((first, ends), (second, others))
    ]
    return _header(b"{" + ",".join(tensors).encode() + b"}", bytes(data))


# What the file holds instead.
BYTES: dict[str, bytes] = {
    "seven bytes": b"\x01" * 7,
    "a header of nothing": _header(b""),
    "a header of blanks": _header(b" " * 100),
    "a header that is null": _header(b"null"),
    "a header that ends in the middle": _header(b'{"a":{"dtype":"F32","shape":[1]'),
    "a header as long as 2^63": _header(b"{}", length=2**63),
    "a header a byte longer than the file": _header(b"{}", length=3),
    "a header of 30 MB": _header(b'{"a":"' + b"x" * 30_000_000 + b'"}'),
    "a header with its mark of UTF-8": _header(b"\xef\xbb\xbf{}"),
    "a header in UTF-16": _header("{}".encode("utf-16")),
    "a header of 200,000 tensors": _header(
        b"{" + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000)) + b"}"
    ),
    "names that are one when read": _two("a", (0, 1), "\\u0061", (0, 1), 1),
    "notes that are a list": _header(b'{"__metadata__":[1]}'),
    "notes that are deep": _header(b'{"__metadata__":' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}"),
    "a name with NUL": _one("a\0b"),
    "a name that leads out": _one("../../evil"),
    "a name of 10,000 characters": _one("n" * 10_000),
    "a name of nothing": _one(""),
    "a name with an escape sequence": _one("\x1b[2J"),
    "a dtype in small letters": _one(dtype="f32"),
    "a dtype of half a byte": _one(dtype="F4", shape=[8]),
    "a dtype that is null": _one(dtype=None),
    "a dtype that is a list": _one(dtype=["F32"]),
    "a negative size": _one(shape=[-1]),
    "two negative sizes": _one(shape=[-1, -1]),
    "a size with a point": _one(shape=[1.0]),
    "a size that is true": _one(shape=[True]),
    "a size of 2^64": _one(shape=[2**64]),
    "sizes whose product is 2^64 + 1": _one(shape=[2**32, 2**32]),
    "seventeen sizes": _one(shape=[1] * 17),
    "a shape that is a number": _one(shape=1),
    "offsets with points": _one(offsets=[0.0, 4.0]),
    "offsets the wrong way round": _one(offsets=[4, 0]),
    "negative offsets": _one(offsets=[-4, 0]),
    "three offsets": _one(offsets=[0, 2, 4]),
    "offsets behind the end": _one(offsets=[4, 8]),
    "a hole between tensors": _two("a", (0, 1), "b", (2, 3), 3),
    "tensors that overlap by a byte": _two("a", (0, 2), "b", (1, 3), 3),
    "a byte behind the last tensor": _one(data=bytes(5)),
    "a byte too few": _one(data=bytes(3)),
    "no tensors, with notes": _header(b'{"__metadata__":{"format":"pt"}}'),
    "a zip file": b"PK\x03\x04" + bytes(100),
    "a pointer to large storage": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "an error page": b"<!DOCTYPE html><html>404</html>",
    "a pickle": pickle.dumps({"a": _Evil()}),
}  # fmt: skip

Tensors = dict[str, np.ndarray]


def _each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: change(tensor) for key, tensor in tensors.items()}


def _first(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    def of(tensors: Tensors) -> Tensors:
        key = sorted(tensors)[0]
        return {**tensors, key: change(tensors[key])}

    return of


TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "one NaN": _first(lambda tensor: np.where(np.arange(tensor.size).reshape(tensor.shape) == 1, np.nan, tensor)),
    "one infinity": _first(lambda tensor: np.where(np.arange(tensor.size).reshape(tensor.shape) == 0, np.inf, tensor)),
    "numbers of 3e38": _each(lambda tensor: np.full_like(tensor, 3e38)),
    "numbers of 1e25": _each(lambda tensor: tensor * np.float32(1e25)),
    "zeros": _each(np.zeros_like),
    "denormals": _each(lambda tensor: np.full_like(tensor, 1e-42)),
    "doubles": _each(lambda tensor: tensor.astype(np.float64)),
    "whole numbers": _first(lambda tensor: tensor.astype(np.int32)),
    "true and false": _first(lambda tensor: tensor > 0),
    "complex numbers": _first(lambda tensor: tensor.astype(np.complex64)),
    "half of one tensor": _first(lambda tensor: np.ascontiguousarray(tensor[: len(tensor) // 2])),
    "one tensor with another axis": _first(lambda tensor: tensor[None]),
    "one tensor transposed": _first(lambda tensor: np.ascontiguousarray(tensor.T)),
    "one tensor of no size": _first(lambda tensor: tensor[:0]),
    "one tensor as a number": _first(lambda _: np.array(1, np.float32)),
    "one tensor too few": lambda tensors: dict(sorted(tensors.items())[1:]),
    "one tensor too many": lambda tensors: (
        tensors | {"model.layers.99.mlp.up_proj.weight": np.ones((2, 2), np.float32)}
    ),
    "names behind a prefix": lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()},
    "names in capitals": lambda tensors: {key.upper(): tensor for key, tensor in tensors.items()},
}
# Of an index: what weight_map holds, given the sound one.
MAPS: dict[str, Callable[[dict[str, str]], Any]] = {
    "to a file that is not there": lambda found: dict.fromkeys(found, "model-00001-of-00002.safetensors"),
    "to a file outside": lambda found: dict.fromkeys(found, "../../../../etc/passwd"),
    "to a file below": lambda found: dict.fromkeys(found, "a/model.safetensors"),
    "to a name with NUL": lambda found: dict.fromkeys(found, "model\0.safetensors"),
    "to itself": lambda found: dict.fromkeys(found, INDEX),
    "to numbers": lambda found: dict.fromkeys(found, 1),
    "to 50,000 files": lambda _: {f"t{i}": f"model-{i:05d}-of-50000.safetensors" for i in range(50_000)},
    "a list": lambda found: [found],
    "null": lambda _: None,
    "with a tensor too many": lambda found: found | {"extra": "model-00001-of-00001.safetensors"},
    "with a tensor too few": lambda found: dict(sorted(found.items())[1:]),
}


def _put_pipe(path: Path) -> None:
    os.mkfifo(path)


def _put_terabyte(path: Path) -> None:
    text = json.dumps({"a": {"dtype": "U8", "shape": [(1 << 40)], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(_header(text))
    os.truncate(path, 8 + len(text) + (1 << 40))


FILES: dict[str, Callable[[Path], Any]] = {
    "a pipe": _put_pipe,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a tensor of a terabyte": _put_terabyte,
    "nothing": lambda _: None,
    "a pickle beside it": lambda path: (path.parent / "pytorch_model.bin").write_bytes(pickle.dumps({"a": _Evil()})),
    "an adapter's pickle": lambda path: (path.parent / "adapter_model.bin").write_bytes(pickle.dumps({"a": _Evil()})),
}
_SAMPLED = ("--temperature", "1", "--max-new-tokens", "4")
# Who reads a model's weights, and who an adapter's.
MODELS: dict[str, Callable[[World, Path], Command]] = {
    "from-hf": lambda _, hf: convert("from-hf", hf, "imported"),
    "generate": lambda _, hf: torch("generate", hf, "--prompt", "star", *_SAMPLED),
    "chat": lambda _, hf: torch("chat", hf, *_SAMPLED, stdin=b"star\n"),
    "merge": lambda world, hf: torch("merge", hf, world.base / "peft", "merged"),
    "finetune": lambda world, hf: torch("finetune", world.finetune_yaml(), f"--model={hf}"),
    "verify": lambda world, hf: convert("verify", world.base / "run", hf),
}
ADAPTERS: dict[str, Callable[[World, Path], Command]] = {
    "from-peft": lambda world, peft: convert("adapter", "from-peft", peft, "imported", "--base", world.base / "run"),
    "merge with": lambda world, peft: torch("merge", world.base / "hf", peft, "merged"),
    "chat with": lambda world, peft: torch("chat", world.base / "hf", "--adapter", peft, *_SAMPLED, stdin=b"star\n"),
}
_FINITE = "they are finite numbers, whatever they may be good for"
_ZERO = "zeros are numbers, and a model of them speaks at random"
_WIDE = "numbers keep their value, and have room"
ACCEPTED: dict[tuple[str, str], str] = {
    **{("zeros", command): _ZERO for command in (*MODELS, *ADAPTERS)},
    **{("numbers of 3e38", command): _FINITE for command in ("from-hf", "from-peft", "merge")},
    **{("numbers of 1e25", command): _FINITE for command in ("from-hf", "from-peft", "merge")},
    **{("denormals", command): _ZERO for command in (*MODELS, *ADAPTERS)},
    **{("doubles", command): _WIDE for command in (*MODELS, *ADAPTERS)},
}


def _damaged(
    world: World, name: str, reader: Callable[[World, Path], Command], damage: Callable[[Path], Any]
) -> Command:
    folder = world.copy("hf" if name == WHOLE else "peft")
    damage(folder / name)
    for notes in ("stellarbyte_export.json", "stellarbyte_files.json"):  # a stranger would write these anew
        (folder / notes).unlink(missing_ok=True)
    return reader(world, folder)


def _change_tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    return lambda path: save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _replace(put: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        put(path)

    return damage


def _with_index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        shard = "model-00001-of-00001.safetensors"
        sound = dict.fromkeys(load_file(path), shard)
        path.rename(path.with_name(shard))
        shutil.copy(path.with_name(shard), path.parents[1] / WHOLE)
        path.with_name(INDEX).write_text(json.dumps({"metadata": {"total_size": -1}, "weight_map": change(sound)}))

    return damage


def cases() -> Cases:
    """Of models and adapters, each damage for one of the commands that read it; tensors for all of them."""
    damages = {name: (lambda path, content=content: path.write_bytes(content)) for name, content in BYTES.items()}
    damages |= {name: _replace(put) for name, put in FILES.items()}
    for name, readers in ((WHOLE, MODELS), (ADAPTER, ADAPTERS)):
        turns = cycle(readers)
        for what, damage in damages.items():
            yield _case(name, what, next(turns), damage)
        for what, change in TENSORS.items():
            for command in (next(turns), next(turns)):
                yield _case(name, what, command, _change_tensors(change))
    turns = cycle(MODELS)
    for what, change in MAPS.items():
        yield _case(WHOLE, f"an index {what}", next(turns), _with_index(change))


def _case(name: str, what: str, command: str, damage: Callable[[Path], Any]) -> Case:
    reader = {**MODELS, **ADAPTERS}[command]
    return Case(
        "weights",
        f"{name}: {what} ({command})",
        lambda world: _damaged(world, name, reader, damage),
        ACCEPTED.get((what, command), ""),
        either=True,
        codes=(1,) * (command == "verify"),
        absent=("pwned", "hf/pwned"),
    )
