"""Quantised folders that are damaged or say what is not so, floats that cannot be quantised, and unfinished work."""

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from hostile.case import Case, Cases, Command, World, convert, stellarbyte, torch
from hostile.kinds.hf_folders import ACCEPTED as OF_FOLDERS
from hostile.kinds.hf_folders import CONFIG, CONFIG_FIELDS, CONTENTS, FILES
from hostile.kinds.weights import BYTES, WHOLE

REPORT, PARTIAL, NOTES = "quantization.json", ".out.partial", ".unfinished.jsonl"
_OPTIONS = ("--method", "rtn", "--bits", "8", "--group-size", "8", "--samples", "4", "--sequence-length", "24")

# Who reads a quantised folder.
READERS: dict[str, Callable[[World, Path], Command]] = {
    "generate": lambda _, folder: torch("generate", folder, "--prompt", "star", "--max-new-tokens", "4"),
    "verify": lambda world, folder: convert("verify", world.base / "hf", folder),
    "info": lambda _, folder: stellarbyte("info", folder),
    "finetune": lambda world, folder: torch("finetune", world.finetune_yaml(), f"--model={folder}"),
    "quantize": lambda world, folder: _quantize(world, folder),
}
# What config.json says of the codes instead, below quantization_config.
QUANTIZATION: dict[str, Any] = {
    "config_groups": [None, {}, [], "x", {"group_0": None}, {"group_0": {}}, {"group_0": {"targets": ["Linear"]}}],
    "config_groups.group_0.targets": [None, "Linear", [], [3], ["re:(a+)+$"], ["re:(("], ["Nothing"], ["x"] * 20_000],
    "config_groups.group_0.weights": [None, {}, 3, {"num_bits": 8}],
    "config_groups.group_0.weights.num_bits": [0, 3, 64, "8", -1, 10**12, None],
    "config_groups.group_0.weights.group_size": [0, -1, 7, 10**12, "8", None],
    "config_groups.group_0.weights.strategy": ["tensor", "magic", 3, None],
    "config_groups.group_0.weights.symmetric": [False, "x"],
    "config_groups.group_0.weights.actorder": ["group", "magic"],
    "config_groups.group_0.input_activations": [{"num_bits": 8}, 3, {"num_bits": 8, "dynamic": False}],
    "format": ["int-quantized", "magic", None, 3, "float-quantized"],
    "ignore": [None, "lm_head", [3], ["re:(a+)+$"], ["re:(("], [], ["model.layers.0.mlp.up_proj"]],
    "quant_method": [None, "gptq", "evil", 3, ["x"]],
    "quantization_status": ["frozen", "magic", 3],
    "kv_cache_scheme": [3, {"num_bits": 8}],
    "sparsity_config": [3, {"format": "evil"}],
    "version": [3, "99"],
    "dequantize": [True, "x"],
}
# What quantization.json holds, by the path in it.
REPORTED: dict[str, list[Any]] = {
    "probe": [None, [], {}, 3],
    "probe.rows": [None, [], [[]], "x", [[1]], [[10**30, 1]], [[-1, 2, 3]], [[1.5, 2]], [[319, 320, 9]]],
    "probe.kl": ["x", -1, 1e308, None],
    "probe.tolerance": [2, -1, "x", 1e308],
    "held_out": [None, [], {"perplexity_before": "x"}],
    "weights": [3, {"all": "x"}],
    "how": [3, None, ["x"]],
    "verdict": [3, None],
}
# Transformers warns of such ids before anything is refused.
_TOLD = ("stellarbyte: transformers: Model config: ",)
# What is wrong, as an expression -> why it is right that the command takes it; the first that fits counts.
ACCEPTED: dict[str, str] = {
    r"^unfinished: ": "notes that are none are no work that was done, and it begins anew",
    r'^floats, "eos_token_id": -1': "quantising ends no text",
    r'^floats, "pad_token_id": 320': "quantising pads no rows",
    r'^floats, "x{70}': "Transformers keeps fields that it does not know",
    r"^floats, config.json: (infinities|a lone surrogate)": "Transformers keeps fields that it does not know",
    r"^[a-z_.0]+(:| is) .*\(info\)$": "info tells of the format and the verdict alone, and computes nothing",
    r"^format: .*\(generate\)$": "compressed-tensors goes by the format that each group of layers has",
    r"^sparsity_config: ": "no library reads it any more, and sparse weights have tensors of names that are refused",
    r"^version: ": "it tells what wrote the folder, and nobody goes by it",
    r"^dequantize: ": "Transformers then makes the floats itself, which are the same",
}


def _quantize(world: World, folder: Path) -> Command:
    return stellarbyte("quantize", folder, "out", *_OPTIONS, "--data", world.base / "corpus.jsonl")


def _put(content: Any, path: str, value: Any) -> None:
    *above, last = path.split(".")
    for key in above:
        content = content[key]
    content[last] = value


def _with_json(world: World, command: str, name: str, path: str, value: Any) -> Command:
    folder = world.copy("q")
    content = json.loads((folder / name).read_text())
    _put(content, path, value)
    (folder / name).write_text(json.dumps(content))
    return READERS[command](world, folder)


def _with_report(world: World, command: str, change: Callable[[bytes], bytes]) -> Command:
    folder = world.copy("q")
    (folder / REPORT).write_bytes(change((folder / REPORT).read_bytes()))
    return READERS[command](world, folder)


def _with_weights(world: World, command: str, content: bytes) -> Command:
    folder = world.copy("q")
    sorted(folder.glob("*.safetensors"))[1].write_bytes(content)
    return READERS[command](world, folder)


def _of_floats(world: World, change: Callable[[Path], Any]) -> Command:
    folder = world.copy("hf")
    change(folder)
    return _quantize(world, folder)


def _fields(folder: Path, fields: dict[str, Any]) -> None:
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**content, **fields}))


def _bytes(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))


def _file(folder: Path, name: str, put: Callable[[Path], Any]) -> None:
    (folder / name).unlink()
    put(folder / name)


def _unfinished(world: World, content: bytes) -> Command:
    (world.folder / PARTIAL).mkdir()
    (world.folder / PARTIAL / NOTES).write_bytes(content)
    (world.folder / PARTIAL / "layer 0.safetensors").write_bytes(b"x")
    return _quantize(world, world.base / "hf")


def cases() -> Cases:
    """Of each file, each damage for one of the commands that read it."""
    turns = cycle(("generate", "finetune", "verify", "info"))
    for path, values in QUANTIZATION.items():
        for value in values:
            where = f"quantization_config.{path}"
            yield _case(f"{path}: {_shown(value)}", next(turns), _with_json, CONFIG, where, value)
    turns = cycle(("verify", "info"))
    for path, values in REPORTED.items():
        for value in values:
            yield _case(f"{path} is {_shown(value)}", next(turns), _with_json, REPORT, path, value)
    for what, change in CONTENTS.items():
        yield _case(f"report: {what}", next(turns), _with_report, change)
    turns = cycle(("generate", "verify", "finetune"))
    for what, content in BYTES.items():
        yield _case(f"codes: {what}", next(turns), _with_weights, content)
    floats: dict[str, Callable[[Path], Any]] = {
        **{json.dumps(fields)[1:-1][:80]: partial(_fields, fields=fields) for fields in CONFIG_FIELDS},
        **{f"{CONFIG}: {what}": partial(_bytes, name=CONFIG, change=change) for what, change in CONTENTS.items()},
        **{f"{CONFIG}: {what}": partial(_file, name=CONFIG, put=put) for what, put in FILES.items()},
        **{f"{WHOLE}: {what}": partial(_bytes, name=WHOLE, change=lambda _, c=c: c) for what, c in BYTES.items()},
    }
    for what, damage in floats.items():
        yield _named(f"floats, {what} (quantize)", partial(_of_floats, change=damage))
    for what, content in {
        "nothing": b"",
        "noise": bytes(range(256)),
        "another task": b'{"task": "other"}\n{"name": "layer 0", "value": {}}\n',
        "no task": b"[]\n[]\n",
        "deep lists": b"[" * 100_000 + b"\n",
    }.items():
        yield _named(f"unfinished: {what} (quantize)", partial(_unfinished, content=content))


def _case(what: str, command: str, make: Callable[..., Command], *arguments: Any) -> Case:
    return _named(f"{what} ({command})", lambda world: make(world, command, *arguments), verifies=command == "verify")


def _named(name: str, make: Callable[[World], Command], *, verifies: bool = False) -> Case:
    reason = next((reason for pattern, reason in ACCEPTED.items() if re.search(pattern, name)), "")
    field = name.removeprefix("floats, ")
    if field != name and not reason:  # accepted of any folder, and so of one that is quantised
        fitting = (
            why for (file, what, _), why in OF_FOLDERS.items() if file == CONFIG and what and field.startswith(what)
        )
        reason = next(fitting, "")
    # With a head of its own beside a config that ties it, another model comes out, which the gate refuses.
    fails = '"tie_word_embeddings": true' in name
    return Case(
        "quantised", name, make, reason, either=True, codes=(1,) * (verifies or fails), absent=("pwned",), told=_TOLD
    )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:40]}… of {len(text)}"
