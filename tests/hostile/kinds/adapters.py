"""Adapters of strangers, PEFT folders and runs of adapters, in every command that reads one."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from hostile.case import Case, Cases, Command, World, convert, stellarbyte, torch
from hostile.kinds.runs import METADATA, OUT, fields_put

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Damage = Callable[[Path], Any]
Reader = Callable[[World, Path], Command]

# What a config holds instead.
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "null": lambda _: b"null",
    "a list": lambda _: b"[{}]",
    "an empty object": lambda _: b"{}",
    "a text": lambda _: b'"LORA"',
    "its first half": lambda text: text[: len(text) // 2],
    "objects 100,000 deep": lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "lists 100,000 deep in a field": lambda text: _with_more(text, b'"rank_pattern": ' + b"[" * 100_000),
    "no UTF-8": lambda text: text.replace(b"down_proj", b"down\xffproj"),
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "a number of 20,000 digits": lambda text: text.replace(b'"r": 2', b'"r": ' + b"9" * 20_000),
    "r twice": lambda text: _with_more(text, b'"r": 2}'),
    "a lone surrogate as a key": lambda text: _with_more(text, b'"\\ud800": 1}'),
    "an escape sequence as a key": lambda text: _with_more(text, b'"\\u001b[2J": 1}'),
    "300 MB of blanks behind it": lambda text: text + b" " * 300_000_000,
}
# Values of its fields.
FIELDS: list[dict[str, Any]] = [
    *({"r": value} for value in (0, -1, 10**12, 2**63, 1.5, "2", None, True, [2], float("nan"), 3)),
    *({"lora_alpha": value} for value in (None, 0, float("nan"), float("-inf"), 1e400, "8", [8], -8, 10**400, 1e38)),
    *({"lora_dropout": value} for value in (1, -0.1, 2, "x", None, float("nan"))),
    *({"target_modules": value} for value in (None, [], "", "((", "(a+)+$", "(.*)*.*q_proj", ["nowhere"], [1],
        {"a": 1})),
    *({"target_modules": value} for value in ("all-linear", ".*", "q_proj", ["q_proj"], ["x" * 100_000],
        "x" * 100_000)),
    {"target_modules": ["q_proj", "lm_head", "down_proj"]},
    {"target_modules": [f"m{i}" for i in range(100_000)]},
    *({"exclude_modules": value} for value in ("((", "(a+)+$", ["q_proj"], ["nowhere"], 3, ".*", "")),
    *({"rank_pattern": value} for value in ({"((": 2}, {"(a+)+$": 2}, {"q_proj": 10**12}, {"q_proj": 0},
        {"nowhere": 4})),
    *({"rank_pattern": value} for value in ([], "x", {"q_proj": None}, {"": 2}, {"q_proj": 2.5}, {"(q": 1})),
    {"rank_pattern": {f"m{i}": 2 for i in range(100_000)}},
    *({"alpha_pattern": value} for value in ({"((": 2}, {"q_proj": None}, {"q_proj": float("nan")}, {"q_proj": "8"})),
    *({"alpha_pattern": value} for value in ({"layers.0.*q_proj": 3}, {"nowhere": 4}, {"(.*)*.*.*!": 4}, 7,
        {"q_proj": 0})),
    *({"layers_to_transform": value} for value in ([99], [-1], "x", [10**12], 0, [0, 0], [1.5], list(range(100_000)),
        [])),
    {"layers_pattern": "((", "layers_to_transform": [0]},
    {"layers_pattern": "(a+)+$", "layers_to_transform": [0]},
    {"layers_pattern": "blocks", "layers_to_transform": [0]},
    *({"modules_to_save": value} for value in (["nowhere"], "lm_head", [""], [["lm_head"]], ["lm_head"], {"a": 1},
        ["model"])),
    *({"bias": value} for value in ("all", "lora_only", "many", True, None, 3)),
    *({"init_lora_weights": value} for value in ("pissa", "loftq", "nothing", "pissa_niter_1000000000", None, [])),
    *({"peft_type": value} for value in ("IA3", "lora", None, 3, "PROMPT_TUNING", ["LORA"], "ADALORA")),
    *({"task_type": value} for value in ("SEQ_CLS", "nothing", None, 3)),
    *({"base_model_name_or_path": value} for value in ("evil/repo", "/dev/zero", 3, ["x"], "\0", "x" * 100_000)),
    *({name: True} for name in ("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "use_rslora")),
    *({name: "yes"} for name in ("use_dora", "fan_in_fan_out", "use_rslora", "inference_mode")),
    *({"trainable_token_indices": value} for value in ([10**12], [-1], "x", {"nowhere": [1]}, [0, 0],
        {"embed_tokens": "x"})),
    *({"target_parameters": value} for value in (["nowhere"], "x", ["mlp.down_proj.weight"], [3])),
    *({"auto_mapping": value} for value in ({"base_model_class": "Evil", "parent_library": "os"}, "x")),
    *({"megatron_config": value} for value in ({"x": 1}, "x")),
    {"megatron_core": "os.path", "megatron_config": {"tensor_model_parallel_size": 8}},
    *({"loftq_config": value} for value in ({"loftq_bits": 4}, "x", {"nothing": 1})),
    {"eva_config": {"x": 1}},
    {"corda_config": {"cache_file": "/etc/passwd"}},
    {"revision": "../../evil"},
    {"peft_version": "99.0"},
    {"runtime_config": {"ephemeral_gpu_offload": True}},
    {"alora_invocation_tokens": [1, 2]},
    {"arrow_config": {"top_k": 3}},
    {"activation": "relu"},
    {"zzz": 1},
    {"layer_replication": [[0, 10**9]]},
    {"layer_replication": [[0, 2], [0, 2]]},
    {"layer_replication": "x"},
]  # fmt: skip


def _with_more(text: bytes, more: bytes) -> bytes:
    return text.rstrip()[:-1] + b", " + more


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _doubled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With each tensor under a second name, that of PEFT's adapters in memory."""
    return tensors | {key.replace(".weight", ".default.weight"): tensor for key, tensor in tensors.items()}


def _change(pick: Callable[[str], bool], change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    return lambda tensors: {key: change(value) if pick(key) else value for key, value in tensors.items()}


def _is_a(key: str) -> bool:
    return "lora_A" in key


# What its tensors are: sizes and names, beside what kind `weights` damages.
TENSORS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "each under two names": _doubled,
    "A alone": lambda tensors: {key: value for key, value in tensors.items() if _is_a(key)},
    "B alone": lambda tensors: {key: value for key, value in tensors.items() if not _is_a(key)},
    "A of rank 3, B of rank 2": _change(_is_a, lambda value: np.ones((3, value.shape[1]), np.float32)),
    "A of a rank of 0": _change(_is_a, lambda value: value[:0]),
    "all of rank 0": lambda tensors: {k: v[:0] if _is_a(k) else v[:, :0] for k, v in tensors.items()},
    "A for another width": _change(_is_a, lambda value: np.ones((2, value.shape[1] + 1), np.float32)),
    "A of three axes": _change(_is_a, lambda value: value[:, None]),
    "A and B changed for each other": lambda tensors: {
        key.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B"): value
        for key, value in tensors.items()
    },
    "one layer alone": lambda tensors: {key: value for key, value in tensors.items() if ".layers.0." in key},
    "a layer that is not there": lambda tensors: {k.replace(".layers.1.", ".layers.7."): v for k, v in tensors.items()},
    "a layer of 20 digits": lambda tensors: {k.replace(".layers.1.", f".layers.{10**19}."): v for k,
        v in tensors.items()},
    "a layer in Arabic digits": lambda tensors: {k.replace(".layers.1.", ".layers.\u0661."): v for k,
        v in tensors.items()},
    "names without PEFT's prefix": lambda tensors: {k.removeprefix("base_model.model."): v for k, v in tensors.items()},
    "names of a wrapped model": lambda tensors: {f"base_model.model.{key}": value for key, value in tensors.items()},
    "a head beside it": lambda tensors: tensors | {"base_model.model.lm_head.weight": np.ones((320, 16), np.float32)},
    "an embedding beside it": lambda t: t | {"base_model.model.model.embed_tokens.weight": np.ones((9, 16),
        np.float32)},
    "a magnitude of DoRA": lambda tensors: (
        tensors | {f"{key.rpartition('.lora_A')[0]}.lora_magnitude_vector": np.ones(16,
            np.float32) for key in tensors if _is_a(key)}
    ),
    "adapters of an embedding": lambda tensors: tensors | {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 320), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((16, 2), np.float32),
    },
    "weights of the base": lambda t: {k.split(".lora_")[0] + ".weight": np.ones((16, 16), np.float32) for k in t},
    "eight-bit numbers": _change(_is_a, lambda value: value.astype(np.int8)),
    "half of a precision": lambda tensors: {key: value.astype(np.float16) for key, value in tensors.items()},
    "a NaN in A": _change(_is_a, lambda value: np.full_like(value, np.nan)),
    "numbers whose product is infinite": lambda tensors: {k: np.full_like(v, 3e38) for k, v in tensors.items()},
}  # fmt: skip
# What lies in the folder.
FOLDERS: dict[str, Damage] = {
    "is empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "is a file": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "is a pipe": lambda folder: (shutil.rmtree(folder), _pipe(folder)),
    "is a link to itself": lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
    "is a link": lambda folder: (folder.rename(folder.with_name("else")), folder.symlink_to("else")),
    "is not there": shutil.rmtree,
    "has no config": lambda folder: (folder / CONFIG).unlink(),
    "has no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "has a config that is a pipe": lambda folder: ((folder / CONFIG).unlink(), _pipe(folder / CONFIG)),
    "has a config that is endless": lambda folder: ((folder / CONFIG).unlink(),
        (folder / CONFIG).symlink_to("/dev/zero")),
    "has a config that is a folder": lambda folder: ((folder / CONFIG).unlink(), (folder / CONFIG).mkdir()),
    "has a config of a terabyte": lambda folder: os.truncate(folder / CONFIG, 1 << 40),
    "has weights that link to nothing": lambda folder: ((folder / WEIGHTS).unlink(),
        (folder / WEIGHTS).symlink_to("x")),
    "has weights that link elsewhere": lambda folder: (
        (folder / WEIGHTS).rename(folder.with_name("w")), (folder / WEIGHTS).symlink_to("../w"),
    ),
    "has the pickle alone": lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"),
    "has weights called model.safetensors": lambda folder: (folder / WEIGHTS).rename(folder / "model.safetensors"),
    "has an index of shards": lambda folder: (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {}}'),
    "has its adapter a folder below": lambda folder: (
        (folder / "default").mkdir(), [(folder / name).rename(folder / "default" / name) for name in (CONFIG, WEIGHTS)],
    ),
    "has a base of null": lambda folder: (folder / "stellarbyte_base.json").write_text("null"),
    "has a base of another form": lambda folder: (folder / "stellarbyte_base.json").write_text('{"a": [1]}'),
    "has a base that is endless": lambda folder: (
        (folder / "stellarbyte_base.json").unlink(), (folder / "stellarbyte_base.json").symlink_to("/dev/zero"),
    ),
    "has a base of 10^400": lambda folder: (folder / "stellarbyte_base.json").write_text(
        json.dumps(_grown(json.loads((folder / "stellarbyte_base.json").read_text())))
    ),
    "has a manifest of files that are not there": lambda folder: (folder / "stellarbyte_files.json").write_text(
        '{"files": {"x": "00"}}'
    ),
    "has a manifest of names that lead out": lambda folder: (folder / "stellarbyte_files.json").write_text(
        '{"files": {"../../../../etc/passwd": "00"}}'
    ),
    "has a manifest that is a list": lambda folder: (folder / "stellarbyte_files.json").write_text("[]"),
    "has a manifest of numbers": lambda folder: (folder / "stellarbyte_files.json").write_text(
        json.dumps({"files": {WEIGHTS: 3}})
    ),
    "has a tokenizer of null": lambda folder: (folder / "tokenizer.json").write_text("null"),
    "has a tokenizer that is a pipe": lambda folder: _pipe(folder / "tokenizer.json"),
    "has a template that divides by zero": lambda folder: (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}"),
}  # fmt: skip


def _grown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _grown(inner) for key, inner in value.items()}
    return 10**400 if type(value) is int else value


_SAMPLED = ("--temperature", "1", "--max-new-tokens", "4")
READERS: dict[str, Reader] = {
    "merge": lambda world, peft: torch("merge", world.base / "hf", peft, "merged"),
    "chat": lambda world, peft: torch("chat", world.base / "hf", "--adapter", peft, *_SAMPLED, stdin=b"star\n"),
    "from-peft": lambda world, peft: convert("adapter", "from-peft", peft, "imported", "--base", world.base / "run"),
    "/load": lambda world, peft: torch(
        "chat", world.base / "hf", *_SAMPLED, stdin=b"/load x " + os.fsencode(peft) + b"\nstar\n"
    ),
    "info": lambda _, peft: stellarbyte("info", peft),
}
WORKING = ("merge", "chat", "from-peft")
# Of a run of adapters: what is wrong with its checkpoint, and with its base.
RUN: dict[str, Damage] = {
    **{
        f"{' '.join(changes)} of {what}": fields_put(METADATA.replace("/4/", "/2/"), changes)
        for what, changes in {
            "10^12": {"config/lora/r": 10**12},
            "0": {"config/lora/r": 0},
            "3, where it is 2": {"config/lora/r": 3},
            "null": {"config/lora/lora_alpha": None},
            "NaN": {"config/lora/lora_alpha": float("nan")},
            "nothing": {"config/lora/target_modules": []},
            "a name that fits nothing": {"config/lora/target_modules": ["nowhere"]},
            "one module fewer": {"config/lora/target_modules": ["q_proj"]},
            "one module more": {"config/lora/target_modules": ["q_proj", "k_proj", "down_proj"]},
            "a text": {"config/lora": "x"},
            "a pattern of 10^12": {"config/lora/rank_pattern": {"q_proj": 10**12}},
            "a pattern of null": {"config/lora/alpha_pattern": {"q_proj": None}},
            "layers 0-1000000000000": {"config/lora/layers": "0-1000000000000"},
            "no base": {"base": None},
            "a base that is a text": {"base": "run"},
            "a base at step -1": {"base/step": -1},
            "a base at step 10^30": {"base/step": 10**30},
            "a base in /dev/zero": {"base/run_dir": "/dev/zero"},
            "a base in a name with NUL": {"base/run_dir": "a\0b"},
            "a base in a name of 10^5 characters": {"base/run_dir": "n" * 100_000},
            "a base that is itself": {"base/run_dir": "lora"},
            "another fingerprint": {"base/fingerprint": "0" * 64},
            "a fingerprint that is a number": {"base/fingerprint": 3},
        }.items()
    },
    "no lora in its config": lambda folder: _without_lora(folder),
    "no parameters": lambda folder: shutil.rmtree(folder / "checkpoints/2/params"),
    "parameters of its base": lambda folder: (
        shutil.rmtree(folder / "checkpoints/2/params"),
        shutil.copytree(folder.parent / "base/checkpoints/4/params", folder / "checkpoints/2/params"),
    ),
    "checkpoints that link to themselves": lambda folder: (
        shutil.rmtree(folder / "checkpoints"), (folder / "checkpoints").symlink_to("checkpoints"),
    ),
}  # fmt: skip
RUN_READERS: dict[str, Reader] = {
    "to-peft": lambda _, run: convert("adapter", "to-peft", run, "exported"),
    "evaluate": lambda _, run: stellarbyte("evaluate", run),
    "generate": lambda _, run: stellarbyte("generate", run, "--prompt", "star", "--max-new-tokens", "4"),
    "to-hf": lambda _, run: convert("to-hf", run, "exported"),
    "pretrain": lambda world, run: stellarbyte(
        "pretrain", world.base / "lora.yaml", f"--output_dir={run}", "--training.max_steps=3"
    ),
    "info": lambda _, run: stellarbyte("info", run),
}


def _without_lora(folder: Path) -> None:
    fields_put(METADATA.replace("/4/", "/2/"), {"config/lora": OUT})(folder)


def _damaged(world: World, reader: Reader, damage: Damage, kept: bool = False) -> Command:
    folder = world.copy("peft")
    if not kept:
        for notes in ("stellarbyte_export.json", "stellarbyte_files.json"):  # a stranger would write these anew
            (folder / notes).unlink(missing_ok=True)
    damage(folder)
    return reader(world, folder)


def _run(world: World, reader: Reader, damage: Damage) -> Command:
    folder = world.copy("lora")
    (world.folder / "base").symlink_to(world.base / "run")
    damage(folder)
    return reader(world, folder)


def _content(change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / CONFIG).write_bytes(change((folder / CONFIG).read_bytes()))


def _config_fields(fields: dict[str, Any]) -> Damage:
    return lambda folder: (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | fields))


def _tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Damage:
    def damage(folder: Path) -> None:
        changed = {key: np.ascontiguousarray(value) for key, value in change(load_file(folder / WEIGHTS)).items()}
        save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def cases() -> Cases:
    """Each damage for one or two of the commands that read it, in turn."""
    turns, working = cycle(READERS), cycle(WORKING)
    for what, change in CONTENTS.items():
        for command in dict.fromkeys((next(working), next(turns))):
            yield _case(f"config: {what}", command, partial(_damaged, damage=_content(change)))
    for fields in FIELDS:
        shown = json.dumps(fields)[1:-1]
        shown = shown if len(shown) < 90 else f"{shown[:70]}… of {len(shown)}"
        for command in (next(working), next(working)):
            yield _case(f"config: {shown}", command, partial(_damaged, damage=_config_fields(fields)))
    for what, change in TENSORS.items():
        for command in WORKING:
            yield _case(f"weights: {what}", command, partial(_damaged, damage=_tensors(change)))
    for what, damage in FOLDERS.items():
        for command in (next(turns), next(turns)):
            yield _case(f"the folder {what}", command, partial(_damaged, damage=damage, kept=True))
    turns = cycle(RUN_READERS)
    for what, damage in RUN.items():
        for command in dict.fromkeys(("to-peft", next(turns))):
            yield _case(f"run: {what}", command, partial(_run, damage=damage))


_SUBTRACTED = "what an adapter has learnt may be subtracted"
_LARGE = "it is a finite number, whatever it may be good for"
_NOTHING = "what fits nothing changes nothing in an adapter that is trained already"
_TASK = "an adapter computes the same for every task"
_GIVEN = "the base that was given counts"
_OTHERS = "PEFT heeds it for other kinds of layers alone"
_BEGAN = "how an adapter began is no part of what it has become"
_NO_CODE = "a name of code is not followed"
# (beginning of what is wrong, command) -> why it is right that the command takes it; "" stands for any.
ACCEPTED: dict[tuple[str, str], str] = {
    ('config: "lora_alpha": -8', ""): _SUBTRACTED,
    ('config: "lora_alpha": 1e+38', ""): _LARGE,
    ('config: "target_modules": null', ""): "the tensors say it",
    ('config: "target_modules": "all-linear"', "from-peft"): "the tensors say it",
    **{
        (f'config: "{field}": {value}', ""): _NOTHING
        for field, value in (
            *(("exclude_modules", value) for value in ('"(a+)+$"', '["nowhere"]', '""')),
            *(("rank_pattern", value) for value in ('{"nowhere"', "[]", '{""', '{"(a+)')),
            *(("alpha_pattern", '{"nowhere"'), ("modules_to_save", '["nowhere"]'), ("layers_to_transform", "[]")),
        )
    },
    ('config: "alpha_pattern": {"layers.0.*q_proj"', "merge"): "an alpha may be one layer's",
    ('config: "layers_to_transform": [0, 1, 2', "from-peft"): "of layers that are not there PEFT adapts none",
    ('config: "bias": null', "from-peft"): "the same as none",
    ('config: "bias": ', "merge"): "the model has no biases, which could be trained",
    ('config: "bias": ', "chat"): "the model has no biases, which could be trained",
    ('config: "init_lora_weights": "pissa"', "merge"): "PEFT, too, takes the first directions out of the base again",
    ('config: "init_lora_weights"', ""): _BEGAN,
    ('config: "task_type"', ""): _TASK,
    ('config: "base_model_name_or_path"', ""): _GIVEN,
    ('config: "revision"', ""): _GIVEN,
    ('config: "use_qalora": true', ""): _OTHERS,
    ('config: "megatron_con', ""): _OTHERS,
    ('config: "megatron_core', ""): _OTHERS,
    ('config: "fan_in_fan_out": true', ""): "PEFT takes it back for layers that are not so, and says it",
    ('config: "use_rslora": true', ""): "a scale as another",
    ('config: "inference_mode": "yes"', "from-peft"): "JAX does not ask for it",
    ('config: "auto_mapping"', ""): _NO_CODE,
    **{(f'config: "{field}_config"', ""): _BEGAN for field in ("loftq", "eva", "corda")},
    ('config: "peft_version"', ""): "who wrote it is no part of the adapter",
    ('config: "runtime_config"', ""): "it is of the machine on which the adapter was saved",
    ('config: "alora_invocation_tokens"', "chat"): "its tokens do not occur, so that the base answers, as in PEFT",
    ("weights: half of a precision", ""): "numbers keep their value, and have room",
    ("weights: numbers whose product", "from-peft"): "each is finite, and JAX holds them apart",
    ("the folder is a link", ""): "a folder may be linked to",
    ("the folder has weights that link elsewhere", ""): "a file may be linked to, as in the Hub's own cache",
    ("the folder has an index of shards", ""): "the whole file beside it is read",
    ("the folder has a tokenizer", "from-peft"): "a run keeps the tokenizer of its base",
    ("the folder has a tokenizer", "/load"): "a chat keeps the tokenizer of its model",
    ("the folder has a tokenizer that is a pipe", "merge"): "what is no file is none, and the base has its own",
    ("the folder has a template", "from-peft"): "a run keeps the tokenizer of its base",
    ("the folder has a template", "chat"): "a chat keeps the tokenizer of its model",
    ("run: ", "info"): "it tells of what is there",
    ("run: base", "to-peft"): "an export does not read the base",
    ("the folder ", "info"): "it tells of what is there",
    ("weights: a head beside it", "merge"): "PEFT saves the head of a vocabulary that has changed, and puts it back",
}


def _case(what: str, command: str, make: Callable[..., Command]) -> Case:
    fitting = [key for key in ACCEPTED if what.startswith(key[0]) and key[1] in ("", command)]
    readers = RUN_READERS if what.startswith("run: ") else READERS
    return Case(
        "adapters",
        f"{what} ({command})",
        partial(make, reader=readers[command]),
        ACCEPTED[fitting[-1]] if fitting else "",
        either=True,
        told=("stellarbyte: peft: ",),
        absent=("pwned",),
    )
