"""Folders of runs, shards and fine-tuning that say of themselves what no run has written."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from hostile.case import Case, Cases, Command, World, convert, stellarbyte, torch

METADATA = "checkpoints/4/metadata/metadata"
Damage = Callable[[Path], Any]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def _signed(content: dict[str, Any]) -> dict[str, Any]:
    """With the checksum that our own files have: a stranger knows how it is made."""
    content.pop("sha256", None)
    return content | {"sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def fields_put(name: str, changes: dict[str, Any], sign: bool = True) -> Damage:
    """Values put into a JSON file, by dotted names; None takes one out."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in changes.items():
            *above, last = path.split("/")
            inner = content
            for key in above:
                inner = inner[int(key) if isinstance(inner, list) else key]
            if value is OUT:
                del inner[last]
            else:
                inner[last] = value
        (folder / name).write_text(json.dumps(_signed(content) if sign else content))

    return damage


OUT: Any = object()


def _bytes(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def _instead(name: str, put: Callable[[Path], Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        put(path)

    return damage


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


DEEP = b"[" * 100_000
NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "brackets": DEEP,
    "no UTF-8": b'{"a": "\xff"}',
    "a number of 50,000 digits": b'{"step": ' + b"1" * 50_000 + b"}",
    "an object": b"{}",
}
PLACES: dict[str, Callable[[Path], Any]] = {
    "a pipe": _pipe,
    "an endless device": _endless,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a terabyte": _terabyte,
}
# Of a pretraining run: what is wrong with its only checkpoint.
CHECKPOINT: dict[str, Damage] = {
    **{f"metadata: {what}": _bytes(METADATA, content) for what, content in NOT_JSON.items()},
    **{f"metadata: {what}": _instead(METADATA, put) for what, put in PLACES.items()},
    **{
        f"metadata: {json.dumps(list(changes))[1:-1]} of {what}": fields_put(METADATA, changes)
        for what, changes in {
            "10^12": {"config/model/hidden_size": 10**12},
            "10^12 layers": {"config/model/num_hidden_layers": 10**12},
            "NaN": {"config/model/rms_norm_eps": float("nan")},
            "a text": {"config/model": "model.yaml"},
            "a list": {"config": []},
            "other words": {"config/model/zzz": 1},
            "another shape": {"config/model/hidden_size": 32},
            "2 kv heads of 4": {"config/model/num_key_value_heads": 4},
            "no object": {"data_position": 5},
            "-5": {"data_position": {"step": -5}},
            "10^30": {"data_position": {"step": 10**30}},
            "text": {"data_position": {"step": "x"}},
            "nothing": {"data_position": {}},
            "-5 rows": {"data_position/rows": -5},
            "10^30 rows": {"data_position/rows": 10**30},
            "no number of amendments": {"data_position/amendments": [1]},
            "names that lead out": {"tokenizer_files": {"../evil.txt": "x"}},
            "no tokenizer": {"tokenizer_files": {"tokenizer.json": "x"}},
            "no files": {"tokenizer_files": {}},
            "numbers": {"tokenizer_files": {"tokenizer.json": 3}},
            "one more file": {"tokenizer_files/evil.py": "import os"},
            "an export's config": {"tokenizer_files/config.json": "{}"},
            "sums of nothing": {"checksums": {}},
            "sums that are texts": {"checksums/params": {"a": "b"}},
            "sums of others": {"checksums/params": {"a": 1}},
            "sums too many": {"checksums/evil": {}},
            "another base": {"base": {"run_dir": "/", "step": 1, "fingerprint": "x"}},
            "data of no form": {"data": {"zzz": 1}},
            "data that are a list": {"data": [1]},
        }.items()
    },
    "metadata: a changed number": fields_put(METADATA, {"config/model/rms_norm_eps": 0.1}, sign=False),
    "metadata: without its checksum": lambda folder: (folder / METADATA).write_text(
        json.dumps({k: v for k, v in json.loads((folder / METADATA).read_text()).items() if k != "sha256"})
    ),
    **{
        f"{name}: {what}": damage(f"checkpoints/4/{name}")
        for name in ("_CHECKPOINT_METADATA", "params/_METADATA", "params/_sharding", "params/manifest.ocdbt")
        for what, damage in {
            "brackets": lambda path: _bytes(path, DEEP),
            "null": lambda path: _bytes(path, b"null"),
            "noise": lambda path: _bytes(path, bytes(range(256)) * 10),
            "a pipe": lambda path: _instead(path, _pipe),
            "an endless device": lambda path: _instead(path, _endless),
            "gone": lambda path: _instead(path, lambda _: None),
        }.items()
    },
    "array metadata of 10^12 numbers": lambda folder: _grow_arrays(folder / "checkpoints/4/params"),
    "array metadata in brackets": _bytes("checkpoints/4/params/array_metadatas/process_0", DEEP),
    "array metadata from a pipe": _instead("checkpoints/4/params/array_metadatas/process_0", _pipe),
    "parameters gone": _instead("checkpoints/4/params", lambda _: None),
    "parameters a file": _instead("checkpoints/4/params", Path.touch),
    "parameters a link to themselves": _instead("checkpoints/4/params", lambda path: path.symlink_to("params")),
    "checkpoints a file": _instead("checkpoints", Path.touch),
    "checkpoints a pipe": _instead("checkpoints", _pipe),
    "checkpoints a link to themselves": _instead("checkpoints", lambda path: path.symlink_to("checkpoints")),
    "checkpoints gone": _instead("checkpoints", lambda _: None),
    "checkpoints empty": _instead("checkpoints", Path.mkdir),
}
# What lies beside its sound checkpoints.
BESIDE: dict[str, Damage] = {
    "an empty checkpoint of step 9": lambda folder: (folder / "checkpoints/9").mkdir(),
    "an empty checkpoint of step 10^17": lambda folder: (folder / f"checkpoints/{10**17}").mkdir(),
    "a checkpoint of step 10^30": lambda folder: (folder / f"checkpoints/{10**30}").mkdir(),
    "a checkpoint of step 007": lambda folder: (folder / "checkpoints/007").mkdir(),
    "a checkpoint of step -1": lambda folder: (folder / "checkpoints/-1").mkdir(),
    "a checkpoint of an Arabic step": lambda folder: (folder / "checkpoints/٣").mkdir(),
    "a checkpoint with an escape sequence": lambda folder: (folder / "checkpoints/\x1b[2J").mkdir(),
    "a checkpoint that is not UTF-8": lambda folder: (folder / "checkpoints" / "\udcff").mkdir(),
    "a checkpoint that is a file": lambda folder: (folder / "checkpoints/9").touch(),
    "a checkpoint that is a pipe": lambda folder: _pipe(folder / "checkpoints/9"),
    "a checkpoint that links to itself": lambda folder: (folder / "checkpoints/9").symlink_to("9"),
    "a checkpoint that links to another": lambda folder: (folder / "checkpoints/9").symlink_to("4"),
}
AMENDMENT: dict[str, Any] = {
    **{"number": 1, "step": 2, "date": "2026-11-30", "changes": {}, "rows": 8, "before": {}, "config": {}, "data": None}
}
METRICS: dict[str, Damage] = {
    **{f"metrics: {what}": _bytes("metrics.jsonl", content) for what, content in NOT_JSON.items()},
    **{f"metrics: {what}": _instead("metrics.jsonl", put) for what, put in PLACES.items()},
    "metrics: a line of 300 MB": lambda folder: _sparse_line(folder / "metrics.jsonl"),
    "metrics: steps of no kind": _bytes(
        "metrics.jsonl", b'{"step": 1e400}\n{"step": -1}\n{"step": 100000000000000000000000}\n{"step": true}\n'
    ),
    "metrics: figures of no kind": _bytes(
        "metrics.jsonl", b'{"step": 2, "loss": "x", "validation_loss": [1], "validation_perplexity": {}}\n' * 3
    ),
    "metrics: infinities": _bytes("metrics.jsonl", b'{"step": 4, "loss": NaN, "validation_loss": Infinity}\n'),
    "metrics: figures of 10^400": _bytes("metrics.jsonl", b'{"step": 4, "validation_loss": 1%s}\n' % (b"0" * 400)),
}
AMENDMENTS: dict[str, Damage] = {
    **{f"amendments: {what}": _bytes("amendments.jsonl", content) for what, content in NOT_JSON.items()},
    **{f"amendments: {what}": _instead("amendments.jsonl", put) for what, put in PLACES.items()},
    "amendments: of another form": _bytes("amendments.jsonl", b'{"number": 1, "step": 2}\n'),
    **{
        f"amendments: {what}": _bytes("amendments.jsonl", json.dumps(AMENDMENT | changes).encode() + b"\n")
        for what, changes in {
            "a config of nothing": {"config": {}},
            "of step 10^30": {"step": 10**30},
            "of step -1": {"step": -1},
            "changes of no form": {"changes": {"training.max_steps": 3}},
            "of data of no form": {"data": {"zzz": 1}},
        }.items()
    },
}
CONFIG: dict[str, Damage] = {
    **{f"config.yaml: {what}": _bytes("config.yaml", content) for what, content in NOT_JSON.items()},
    **{f"config.yaml: {what}": _instead("config.yaml", put) for what, put in PLACES.items()},
}  # fmt: skip
# Of token shards: what is wrong with their folder.
_MANIFEST = "manifest.json"
SHARDS: dict[str, Damage] = {
    **{f"manifest: {what}": _bytes(_MANIFEST, content) for what, content in NOT_JSON.items()},
    **{f"manifest: {what}": _instead(_MANIFEST, put) for what, put in PLACES.items()},
    **{
        f"manifest: {next(iter(changes))} of {what}": fields_put(_MANIFEST, changes)
        for what, changes in {
            "10^15": {"splits/train/tokens": 10**15},
            "10^15 documents": {"splits/train/documents": 10**15},
            "one too many": {"splits/train/tokens": 768},
            "-1": {"splits/validation/tokens": -1},
            "0": {"splits/train/tokens": 0},
            "0 bytes": {"splits/validation/bytes": 0},
            "other names": {"splits": {"test": {"tokens": 1, "documents": 1, "bytes": 1}}},
            "1.5": {"splits/train/documents": 1.5},
            "objects": {"recipe/dtype": "object"},
            "eight bytes": {"recipe/dtype": "float64"},
            "code": {"recipe/dtype": "__import__('os')"},
            "10^12": {"recipe/tokens_per_shard": 10**12},
            "0 a shard": {"recipe/tokens_per_shard": 0},
            "1 a shard": {"recipe/tokens_per_shard": 1},
            "10^9": {"recipe/vocab_size": 10**9},
            "a negative token": {"recipe/bos_token_id": -1},
            "another version": {"recipe/format_version": 99},
            "no list": {"recipe/source_files": 3},
            "a file that leads out": {"recipe/source_files/0/path": "/etc/\0passwd"},
            "text": {"checksums": "x"},
            "no hexadecimal": {"checksums/train-00000.npy": "zz"},
            "too short": {"checksums/train-00000.npy": "00"},
            "names that lead out": {"checksums": {"../evil": "00000000"}},
            "nothing": {"checksums": None},
            "a deep list": {"first_bad_records": [[[["x"]]]]},
            "10^30": {"bad_record_count": 10**30},
        }.items()
    },
    **{f"train-00000.npy: {what}": _instead("train-00000.npy", put) for what, put in PLACES.items()},
    "train-00000.npy: Python in its header": _bytes(
        "train-00000.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 117 + b"\n" + bytes(1534)
    ),
    "train-00000.npy: pickled objects": lambda folder: (folder / "train-00000.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (767,), }".ljust(127) + b"\n"
        + pickle.dumps(_Evil())
    ),
    "train-00000.npy: other tokens": lambda folder: _flip(folder / "train-00000.npy", 200),
    "train-documents.npy: a flipped bit": lambda folder: _flip(folder / "train-documents.npy", 130),
    "validation-00000.npy: a flipped bit": lambda folder: _flip(folder / "validation-00000.npy", 140),
    "the folder is a file": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "the folder is a pipe": lambda folder: (shutil.rmtree(folder), _pipe(folder)),
    "the folder links to itself": lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
}  # fmt: skip
# Of shards that are not finished: what they note of how far they are.
UNFINISHED: dict[str, Damage] = {
    **{f"position: {what}": _bytes("position.json", content) for what, content in NOT_JSON.items()},
    **{f"position: {what}": _instead("position.json", put) for what, put in PLACES.items()},
    **{f"recipe: {what}": _bytes("recipe.json", content) for what, content in NOT_JSON.items()},
    **{f"recipe: {what}": _instead("recipe.json", put) for what, put in PLACES.items()},
}
# Of a fine-tuning run: what is wrong with its folder.
_LAST = "checkpoints/checkpoint-2"
TUNED: dict[str, Damage] = {
    **{f"summary: {what}": _bytes("summary.json", content) for what, content in NOT_JSON.items()},
    **{f"summary: {what}": _instead("summary.json", put) for what, put in PLACES.items()},
    "summary: figures of no kind": _bytes("summary.json", b'{"finished": true, "train_loss": [1], "steps": "x"}'),
    **{f"metrics: {what}": _bytes("metrics.jsonl", content) for what, content in NOT_JSON.items()},
    **{f"metrics: {what}": _instead("metrics.jsonl", put) for what, put in PLACES.items()},
    "metrics: figures of no kind": _bytes("metrics.jsonl", b'{"step": 1, "eval_loss": "x", "loss": {}}\n'),
    **{f"fingerprint: {what}": _bytes("samples.sha256", content) for what, content in NOT_JSON.items()},
    **{f"fingerprint: {what}": _instead("samples.sha256", put) for what, put in PLACES.items()},
    **{f"notes: {what}": _bytes(f"{_LAST}/stellarbyte_files.json", content) for what, content in NOT_JSON.items()},
    **{f"notes: {what}": _instead(f"{_LAST}/stellarbyte_files.json", put) for what, put in PLACES.items()},
    **{
        f"{name}: {what}": lambda folder, name=name, content=content: _forge(folder / _LAST, name, content)
        for name, contents in {
            "trainer_state.json": {
                **NOT_JSON,
                "a step of text": b'{"global_step": "2"}',
                "a step of 10^30": b'{"global_step": 2, "max_steps": 1%s}' % (b"0" * 30),
                "a best model outside": b'{"global_step": 2, "best_model_checkpoint": "/etc", "best_global_step": 1}',
                "history of no kind": b'{"global_step": 2, "log_history": [[1]], "epoch": "x"}',
            },
            "optimizer.pt": {"a pickle": pickle.dumps(_Evil()), "nothing": b"", "noise": bytes(range(256))},
            "scheduler.pt": {"a pickle": pickle.dumps(_Evil()), "nothing": b"", "noise": bytes(range(256))},
            "rng_state.pth": {"a pickle": pickle.dumps(_Evil()), "nothing": b"", "noise": bytes(range(256))},
            "adapter_model.safetensors": {"nothing": b"", "noise": bytes(range(256))},
            "adapter_config.json": NOT_JSON,
        }.items()
        for what, content in contents.items()
    },
    "a checkpoint of step 007": lambda folder: (folder / "checkpoints/checkpoint-007").mkdir(),
    "a checkpoint of step 10^30": lambda folder: (folder / f"checkpoints/checkpoint-{10**30}").mkdir(),
    "a checkpoint of step 9, empty": lambda folder: (folder / "checkpoints/checkpoint-9").mkdir(),
    "a checkpoint that is a pipe": lambda folder: _pipe(folder / "checkpoints/checkpoint-9"),
    "a checkpoint that is a link": lambda folder: (folder / "checkpoints/checkpoint-9").symlink_to("checkpoint-9"),
    "a checkpoint with an escape sequence": lambda folder: (folder / "checkpoints/checkpoint-\x1b[2J").mkdir(),
    "checkpoints a file": _instead("checkpoints", Path.touch),
    "checkpoints a link to themselves": _instead("checkpoints", lambda path: path.symlink_to("checkpoints")),
    "config.yaml: another run's": _bytes("config.yaml", b"model: other\noutput_dir: x\ndata: {sources: [{path: x}]}\n"),
    **{f"config.yaml: {what}": _bytes("config.yaml", content) for what, content in NOT_JSON.items()},
    **{f"config.yaml: {what}": _instead("config.yaml", put) for what, put in PLACES.items()},
}  # fmt: skip


def _grow_arrays(item: Path) -> None:
    path = item / "array_metadatas" / "process_0"
    content = json.loads(path.read_text())

    def grown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: grown(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [10**12 if type(inner) is int else grown(inner) for inner in value]
        return value

    path.write_text(json.dumps(grown(content)))


def _sparse_line(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.write(b'{"step": 3, "x": "')
        file.truncate(file.tell() + 300_000_000)
        file.seek(0, 2)
        file.write(b'"}\n')


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def _forge(checkpoint: Path, name: str, content: bytes) -> None:
    """Another file, noted as if it had always been there."""
    (checkpoint / name).write_bytes(content)
    notes = json.loads((checkpoint / "stellarbyte_files.json").read_text())
    notes["files"][name] = hashlib.sha256(content).hexdigest()
    (checkpoint / "stellarbyte_files.json").write_text(json.dumps(notes))


READERS: dict[str, Callable[[World, Path], Command]] = {
    "evaluate": lambda _, run: stellarbyte("evaluate", run),
    "generate": lambda _, run: stellarbyte("generate", run, "--prompt", "star", "--max-new-tokens", "4"),
    "to-hf": lambda _, run: convert("to-hf", run, "exported"),
    "pretrain": lambda world, run: stellarbyte("pretrain", world.run_yaml(), f"--output_dir={run}"),
    "start from": lambda world, run: stellarbyte(
        "pretrain", world.run_yaml(), f"--init_from={run}", "--output_dir=new"
    ),
    "prune": lambda _, run: stellarbyte("prune", run, "pruned", "--keep", "90%"),
    "lora on": lambda world, run: stellarbyte(
        "pretrain", world.base / "lora.yaml", f"--init_from={run}", "--output_dir=new"
    ),
}


def _run(world: World, command: str, damage: Damage, alone: bool = False) -> Command:
    run = world.copy("run")
    if alone:
        shutil.rmtree(run / "checkpoints/2")
    damage(run)
    return READERS[command](world, run)


def _shards(world: World, command: str, damage: Damage) -> Command:
    shards = world.copy("shards")
    damage(shards)
    if command == "evaluate":
        return stellarbyte("evaluate", world.base / "run", "--data.shards", shards)
    return stellarbyte(command, world.run_yaml(), f"--data.shards={shards}")


def _unfinished(world: World, damage: Damage) -> Command:
    shards = world.copy("shards")
    recipe = json.loads((shards / _MANIFEST).read_text())["recipe"]
    (shards / _MANIFEST).unlink()
    (shards / "recipe.json").write_text(json.dumps(recipe))
    split = {"tokens": 24, "documents": 1, "bytes": 99}
    position = {"position": {"file": 0, "document": 1}, "splits": {"train": split, "validation": split}}
    (shards / "position.json").write_text(json.dumps(position))
    damage(shards)
    return stellarbyte("prepare", world.run_yaml(), f"--data.shards={shards}")


def _tuned(world: World, damage: Damage) -> Command:
    """The run is not done: the adapter is made anew from its newest checkpoint."""
    tuned = world.copy("tuned")
    shutil.rmtree(tuned / "adapter")
    damage(tuned)
    return torch("finetune", world.finetune_yaml())


def _done(world: World, damage: Damage) -> Command:
    damage(world.copy("tuned"))
    return torch("finetune", world.finetune_yaml())


def cases() -> Cases:
    """Each damage for one of the commands that read the file, in turn."""
    pretraining = (
        (CHECKPOINT, True, ("evaluate", "generate", "to-hf", "pretrain", "start from", "prune", "lora on")),
        (BESIDE, False, ("to-hf", "pretrain", "evaluate", "generate", "start from")),
        (METRICS, False, ("pretrain", "to-hf")),
        (AMENDMENTS, False, ("pretrain",)),
        (CONFIG, False, ("lora on",)),
    )
    for damages, alone, commands in pretraining:
        for (what, damage), command in zip(damages.items(), cycle(commands), strict=False):
            yield _case(f"run, {what} ({command})", partial(_run, command=command, damage=damage, alone=alone))
    turns = cycle(("pretrain", "evaluate"))
    for what, damage in SHARDS.items():
        command = (
            next(turns) if "manifest" in what or "folder" in what else "evaluate" if "valid" in what else "pretrain"
        )
        yield _case(f"shards, {what} ({command})", partial(_shards, command=command, damage=damage))
    for what, damage in UNFINISHED.items():
        yield _case(f"unfinished shards, {what} (prepare)", partial(_unfinished, damage=damage))
    for what, damage in TUNED.items():
        yield _case(f"fine-tuning, {what}", partial(_done if what.startswith("summary") else _tuned, damage=damage))


# Beginning of what is wrong -> why a command goes on all the same; a later one that fits counts.
_OLDER = "it is set aside and told, and an older one counts"
_NO_NAME = "no run gives a checkpoint that name"
_ANEW = "it is told, and all is made anew"
_NO_RECORD = "lines that are no records are dropped"
ACCEPTED: dict[str, str] = {
    'run, metadata: "data_position"': "a step says by itself where the data go on",
    "run, metadata: without its checksum": "it is told that damage could not be seen",
    "run, _CHECKPOINT_METADATA": "Orbax's notes on a checkpoint, which reading it does not need",
    "run, params/_sharding: gone": "how arrays lay is not how they have to lie",
    "run, array metadata": "notes that reading the arrays does not need",
    "run, an empty checkpoint": _OLDER,
    "run, checkpoints empty (pretrain)": "a run that has saved nothing begins",
    "run, checkpoints gone (pretrain)": "a run that has saved nothing begins",
    "run, a checkpoint": _NO_NAME,
    "run, a checkpoint that links to itself": "it is nowhere",
    "run, a checkpoint that links to another": "it is that one under two names",
    "run, metrics": _NO_RECORD,
    "run, amendments: a link to itself": "it is nowhere",
    "run, amendments: nothing": "without a line there is no amendment",
    "shards, manifest: splits/train/documents of 10^15 documents (evaluate)": "validating reads no training text",
    "shards, manifest: splits/validation/bytes of 0 bytes": "other data than the run's, as is told",
    "shards, manifest: checksums/train-00000.npy of too short (evaluate)": "validating reads no training text",
    "shards, manifest: checksums of nothing": "an earlier version wrote none, as is told",
    "unfinished shards": _ANEW,
    "fine-tuning, summary": _ANEW,
    "fine-tuning, metrics": _NO_RECORD,
    "fine-tuning, notes": _OLDER,
    "fine-tuning, trainer_state.json": _OLDER,
    "fine-tuning, rng_state.pth": "a run that has had its last step draws nothing more",
    "fine-tuning, adapter_config.json": "the run's own config says what the adapter is",
    "fine-tuning, a checkpoint": _NO_NAME,
    "fine-tuning, a checkpoint of step 9": _OLDER,
}


def _case(name: str, make: Callable[[World], Command]) -> Case:
    accepted = [reason for beginning, reason in ACCEPTED.items() if name.startswith(beginning)]
    return Case("runs", name, make, accepted[-1] if accepted else "", either=True, absent=("pwned", "tuned/pwned"))
