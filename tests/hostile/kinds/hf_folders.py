"""Hugging Face folders whose JSON is damaged, absurd or a trap: config.json, tokenizers and the files beside them."""

import json
import os
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from hostile.case import Case, Cases, Command, World, convert, stellarbyte, torch

CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
GENERATION, EXPORT = "generation_config.json", "stellarbyte_export.json"

# What a file holds instead, whichever it is.
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "null": lambda _: b"null",
    "a list": lambda _: b"[{}]",
    "a number": lambda _: b"1e400",
    "a text": lambda _: b'"stellarbyte"',
    "an empty object": lambda _: b"{}",
    "its first half": lambda text: text[: len(text) // 2],
    "objects 100,000 deep": lambda _: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a key twice": lambda text: text.rstrip()[:-1] + b', "model_type": "llama", "model_type": "llama"}',
    "a number of 50,000 digits": lambda text: text.rstrip()[:-1] + b', "zzz": ' + b"1" * 50_000 + b"}",
    "infinities": lambda text: text.rstrip()[:-1] + b', "zzz": [Infinity, NaN, -Infinity]}',
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "NUL behind it": lambda text: text + b"\0",
    "a lone surrogate": lambda text: text.rstrip()[:-1] + b', "\\ud800": 1}',
    "two objects": lambda text: text + text,
}


def _pipe(path: Path) -> None:
    os.mkfifo(path)


FILES: dict[str, Callable[[Path], Any]] = {
    "a pipe": _pipe,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}
COMMANDS: dict[str, Callable[[Path], Command]] = {
    "from-hf": lambda folder: convert("from-hf", folder, "imported"),
    "generate": lambda folder: torch("generate", folder, "--prompt", "star", "--max-new-tokens", "4"),
    "chat": lambda folder: torch("chat", folder, "--max-new-tokens", "4", stdin=b"star\n"),
    "to-hf": lambda folder: convert("to-hf", folder.parent / "run", folder),
    "verify": lambda folder: convert("verify", folder.parent / "run", folder),
    "data preview": lambda folder: torch("data", "preview", folder.parent / "finetune.yaml", f"--model={folder}"),
    "finetune": lambda folder: torch("finetune", folder.parent / "finetune.yaml", f"--model={folder}"),
    "merge": lambda folder: torch("merge", folder, folder.parent / "adapter", "merged"),
    "prepare": lambda folder: stellarbyte(
        "prepare", folder.parent / "run.yaml", "--data.shards=shards", f"--data.tokenizer={folder}"
    ),
}
# Who reads a file.
READERS: dict[str, tuple[str, ...]] = {
    CONFIG: ("from-hf", "generate", "chat", "merge", "finetune", "verify"),
    TOKENIZER: ("from-hf", "generate", "prepare", "chat", "data preview", "finetune"),
    SETTINGS: ("generate", "chat", "data preview", "from-hf", "prepare"),
    GENERATION: ("chat", "generate", "verify", "finetune"),
    EXPORT: ("to-hf", "to-hf", "to-hf", "verify", "to-hf", "from-hf"),
}
CONFIG_FIELDS: list[dict[str, Any]] = [
    *({name: 10**12} for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")),
    *({name: 10**12} for name in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")),
    {"num_labels": 10**12},
    *({name: "320"} for name in ("vocab_size", "rms_norm_eps", "bos_token_id")),
    *({name: [4]} for name in ("hidden_size", "num_hidden_layers", "initializer_range", "pad_token_id")),
    *({name: True} for name in ("num_hidden_layers", "rms_norm_eps", "num_experts")),
    *({name: None} for name in ("vocab_size", "hidden_size", "model_type", "rms_norm_eps", "residual", "dtype")),
    *({name: -1} for name in ("vocab_size", "num_hidden_layers", "bos_token_id", "eos_token_id", "sliding_window")),
    *({name: 16.0} for name in ("hidden_size", "max_position_embeddings")),
    {"num_hidden_layers": 10_000},
    {"vocab_size": 10**400},
    {"model_type": "llama"},
    {"model_type": "../../etc/passwd"},
    {"model_type": ["stellarbyte"]},
    {"model_type": "gpt2", "n_layer": 10**9},
    {"model_type": "t5", "num_layers": 10**12},
    {"architectures": "ByteForCausalLM"},
    {"architectures": [["x"]]},
    {"auto_map": {"AutoConfig": "../../evil.Config", "AutoModelForCausalLM": "evil/repo--modeling.Evil"}},
    {"auto_map": 3},
    {"dtype": "float128"},
    {"dtype": "int8"},
    {"dtype": 3},
    {"dtype": {"": "float32"}},
    {"torch_dtype": "complex64"},
    {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
    {"rope_scaling": [1]},
    {"rope_parameters": {"rope_type": "default", "factor": 1e308}},
    {"rope_parameters": "xpos"},
    {"layer_types": ["full_attention"] * 100_000},
    {"pruned_heads": {"0": [0, 1, 2, 3]}},
    {"pruned_heads": [[10**12], []]},
    {"quantization_config": {}},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"quantization_config": {"quant_method": "evil"}},
    {"quantization_config": [1]},
    {"transformers_version": 3},
    {"transformers_version": "99999.0"},
    {"_attn_implementation": "evil/kernels"},
    {"attn_implementation": {"": "flash_attention_2"}},
    {"id2label": "x"},
    {"label2id": [1]},
    {"tie_word_embeddings": "yes"},
    {"tie_word_embeddings": True},
    {"eos_token_id": [1, [2]]},
    {"eos_token_id": []},
    {"bos_token_id": 10**12},
    {"pad_token_id": 320},
    {"use_cache": "x"},
    {"is_encoder_decoder": True},
    {"chunk_size_feed_forward": 10**12},
    {"return_dict": False},
    {"output_attentions": True},
    {"torchscript": True},
    {"from_pretrained": 1},
    {"self": 1},
    {"__class__": "x"},
    {"vocab_size ": 320},
    {"x" * 100_000: 1},
    {"residual": "deepnorm"},
    {"hidden_act": "__import__('os').system('touch pwned')"},
    {"xpos_scale_base": 0.001},
    {"position_embedding": "rope"},
]  # fmt: skip
_PATTERN = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
TOKENIZER_FIELDS: list[dict[str, Any]] = [
    {"model": None},
    {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    {"model.vocab.<|zzz|>": 4_294_967_295},
    {"model.vocab.<|zzz|>": 10**12},
    {"model.vocab.<|zzz|>": -1},
    {"model.vocab.<|zzz|>": 0},
    {"model.vocab.zzz": 2**31},
    {"model.vocab.<|zzz|>": 1.5},
    {"model.merges": [["no", "where"]]},
    {"model.merges": "x"},
    {"model.unk_token": "nowhere"},
    {"model.dropout": 0.999},
    {"model.dropout": 7},
    {"model.continuing_subword_prefix": "x" * 1000},
    {"model.byte_fallback": 3},
    {"added_tokens": []},
    {"added_tokens": [{"id": 10**12, "content": "x", "special": True}]},
    {"added_tokens": [{"id": 0, "content": ""}]},
    {"added_tokens": 3},
    {"added_tokens.0.content": ""},
    {"added_tokens.0.content": "a" * 1_000_000},
    {"added_tokens.0.id": 7},
    {"added_tokens.0.special": False},
    {"added_tokens.0.lstrip": True, "added_tokens.0.rstrip": True},
    {"padding": {"strategy": {"Fixed": 10**12}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "<|PAD|>"}},
    {"padding": {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": 10**10, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "<|PAD|>"}},
    {"truncation": {"max_length": 0, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}},
    {"truncation": {"max_length": 1, "stride": 5, "strategy": "OnlySecond", "direction": "Right"}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "x" * 100_000}},
    {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
    {"normalizer": {"type": "Prepend", "prepend": "x" * 50_000_000}},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "."},
                    "content": "xxxxxxxxxx"}] * 10}},
    {"normalizer": {"type": "Evil"}},
    {"pre_tokenizer": None},
    {"pre_tokenizer": _PATTERN},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [_PATTERN, {"type": "ByteLevel", "add_prefix_space": False,
                       "trim_offsets": True, "use_regex": False}]}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Removed", "invert": False}},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "zzz", "type_id": 0}}],
                        "pair": [], "special_tokens": {}}},
    {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}},
    {"post_processor": {"type": "TemplateProcessing",
                        "single": [{"SpecialToken": {"id": "e", "type_id": 0}}],
                        "pair": [], "special_tokens": {"e": {"id": "e", "ids": [10**9], "tokens": ["e"]}}}},
    {"decoder": None},
    {"decoder": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}},
    {"decoder": {"type": "Strip", "content": "x", "start": 10**12, "stop": 0}},
    {"version": "99.0"},
]  # fmt: skip
SETTINGS_FIELDS: list[dict[str, Any]] = [
    {"tokenizer_class": "Evil"},
    {"tokenizer_class": "BertTokenizer"},
    {"tokenizer_class": ["x"]},
    {"auto_map": {"AutoTokenizer": ["evil/repo--tok.Evil", None]}},
    {"model_max_length": -1},
    {"model_max_length": "x"},
    {"model_max_length": 0},
    {"bos_token": 3},
    {"bos_token": {"content": ["x"]}},
    {"bos_token": None},
    {"eos_token": "not in the vocabulary"},
    {"padding_side": "up"},
    {"added_tokens_decoder": {"x": {}}},
    {"added_tokens_decoder": {"5": {"content": "a", "special": True}}},
    {"added_tokens_decoder": 3},
    {"extra_special_tokens": 3},
    {"extra_special_tokens": ["x"] * 100_000},
    {"additional_special_tokens": "x"},
    {"chat_template": 3},
    {"chat_template": [{"name": "default", "template": "{{ 1/0 }}"}]},
    {"chat_template": {"default": "x"}},
    {"fix_mistral_regex": True},
    {"clean_up_tokenization_spaces": "x"},
    {"split_special_tokens": 3},
    {"tokenizer_file": "/etc/passwd"},
    {"name_or_path": "evil/repo"},
    {"backend": "evil"},
]
GENERATION_FIELDS: list[dict[str, Any]] = [
    {"eos_token_id": "x"},
    {"eos_token_id": [[1]]},
    {"eos_token_id": 10**12},
    {"bos_token_id": -5},
    {"max_length": -1},
    {"max_new_tokens": 10**12},
    {"temperature": "hot"},
    {"num_beams": 1_000_000},
    {"num_return_sequences": 1_000_000},
    {"suppress_tokens": [10**12]},
    {"bad_words_ids": [[]]},
    {"custom_generate": "evil/repo"},
    {"cache_implementation": "offloaded_evil"},
    {"watermarking_config": {"x": 1}},
    {"assistant_early_exit": 10**6},
    {"prompt_lookup_num_tokens": 10**9},
    {"stop_strings": [""]},
    {"compile_config": {"x": 1}},
    {"transformers_version": [1]},
    {"do_sample": "x", "top_k": -1},
]
_UNKNOWN = "Transformers keeps fields that it does not know, and nobody reads them"
_OURS = "the forms of output that we read we ask for ourselves"
_NOTES = "an export's notes are no part of the model: without them nothing is said of changes"
_DEFAULTS = "how to generate by default is not asked here"
_BATCHES = "how others fill and cut their batches is not asked here"
_NO_CODE = "a folder's own code is not run"
_HANDED_ON = "nothing here reads it; it is handed on, and told as changed since the export"
# (file, beginning of what it holds, command) -> why it is right that the command takes it; "" stands for any.
ACCEPTED: dict[tuple[str, str, str], str] = {
    (CONFIG, "a lone surrogate", "generate"): _UNKNOWN,
    (CONFIG, "infinities", "finetune"): _UNKNOWN,
    (CONFIG, '"from_pretrained"', "generate"): _UNKNOWN,
    (CONFIG, '"vocab_size "', "finetune"): _UNKNOWN,
    (CONFIG, '"dtype": null', "chat"): "the dtype is then that of the weights",
    (CONFIG, '"dtype": "int8"', "finetune"): "the dtype is that of the fine-tuning config",
    (CONFIG, '"dtype": {', "from-hf"): "weights say their own dtype",
    (CONFIG, '"rope_parameters": {"rope_type": "default"', "finetune"): "the default has no factor, and reads none",
    (CONFIG, '"torch_dtype"', "generate"): "dtype stands beside this older name for it",
    (CONFIG, '"architectures"', ""): "model_type says which model it is",
    (CONFIG, '"auto_map"', "generate"): _NO_CODE,
    (CONFIG, '"transformers_version"', ""): "who wrote it is no part of the model",
    (CONFIG, '"label2id"', "from-hf"): "a language model has no labels",
    (CONFIG, '"tie_word_embeddings": true', "chat"): "both are there, so that Transformers does not tie them",
    (CONFIG, '"eos_token_id": []', "finetune"): "the tokenizer says how texts end",
    (CONFIG, '"chunk_size', "merge"): "our feed-forward is not chunked",
    **{(CONFIG, f'"{name}"', ""): _OURS for name in ("return_dict", "output_attentions", "torchscript")},
    (TOKENIZER, '"model": {"type": "WordLevel"', "data preview"): "a tokenizer may know one word, as a preview shows",
    (TOKENIZER, '"model.unk_token"', "generate"): "no byte is unknown",
    (TOKENIZER, '"added_tokens.0.id": 7', "from-hf"): "the vocabulary's own number counts",
    (TOKENIZER, '"added_tokens.0.lstrip"', "prepare"): "special tokens are never looked for in texts",
    (TOKENIZER, '"added_tokens.0.special"', "generate"): "tokenizer_config.json names it as special",
    (TOKENIZER, '"padding"', ""): _BATCHES,
    (TOKENIZER, '"truncation"', ""): _BATCHES,
    (TOKENIZER, '"pre_tokenizer": {"type": "Split"', "data preview"): "it loses blanks, as a preview shows",
    (TOKENIZER, '"post_processor"', ""): "what it puts around a text we put there ourselves",
    (TOKENIZER, '"decoder"', "prepare"): "bytes of tokens are known without it",
    (TOKENIZER, '"decoder": {"type": "Strip"', "data preview"): "what it takes away is for the eye alone",
    (SETTINGS, "an empty object", "generate"): "config.json says how texts begin and end",
    (SETTINGS, "infinities", "generate"): _UNKNOWN,
    (SETTINGS, "", "prepare"): "token shards need tokenizer.json alone",
    (SETTINGS, "a lone surrogate", "from-hf"): _HANDED_ON,
    **{
        (SETTINGS, f'"{name}"', "from-hf"): _HANDED_ON
        for name in ("auto_map", "bos_token", "added_tokens_decoder", "chat_template", "split_special_tokens")
    },
    (SETTINGS, '"tokenizer_class": "Evil"', "generate"): "Transformers takes tokenizer.json by itself then",
    (SETTINGS, '"model_max_length": 0', "chat"): _BATCHES,
    (SETTINGS, '"eos_token": "not in', "generate"): "it becomes a token of its own, for which the model has a row",
    (SETTINGS, '"extra_special_tokens": [', "chat"): "one token, however often it is named",
    (SETTINGS, '"chat_template": {', "generate"): "a prompt has no template",
    (SETTINGS, '"fix_mistral_regex"', "chat"): "Transformers asks this of Mistral's tokenizers alone",
    (SETTINGS, '"clean_up_tok', "data preview"): "we clean up nothing",
    (SETTINGS, '"name_or_path"', "generate"): "the folder that was given counts",
    (SETTINGS, '"backend"', "chat"): _UNKNOWN,
    (GENERATION, "an empty object", "generate"): _DEFAULTS,
    (GENERATION, "infinities", "verify"): _UNKNOWN,
    (GENERATION, "a lone surrogate", "generate"): _UNKNOWN,
    **{
        (GENERATION, f'"{name}"', ""): _DEFAULTS
        for name in (
            *("max_length", "max_new_tokens", "num_beams", "temperature", "suppress_tokens", "custom_generate"),
            *("bad_words_ids", "prompt_lookup_num_tokens", "assistant_early_exit", "stop_strings", "do_sample"),
            *("transformers_version", "num_return_sequences", "cache_implementation", "watermarking_config"),
        )
    },
    (EXPORT, "infinities", "to-hf"): "it still says that an export wrote the folder",
    (EXPORT, "a lone surrogate", "to-hf"): "it still says that an export wrote the folder",
    (EXPORT, "", "from-hf"): _NOTES,
    (EXPORT, "", "verify"): _NOTES,
}


def _folder(world: World) -> Path:
    folder = world.copy("hf")
    world.run_yaml()
    world.finetune_yaml()
    (world.folder / "run").symlink_to(world.base / "run")
    (world.folder / "adapter").symlink_to(world.base / "peft")
    return folder


def _with_content(world: World, command: str, name: str, change: Callable[[bytes], bytes]) -> Command:
    folder = _folder(world)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return COMMANDS[command](folder)


def _with_file(world: World, command: str, name: str, put: Callable[[Path], Any]) -> Command:
    folder = _folder(world)
    (folder / name).unlink()
    put(folder / name)
    return COMMANDS[command](folder)


def _with_fields(world: World, command: str, name: str, fields: dict[str, Any]) -> Command:
    folder = _folder(world)
    content = json.loads((folder / name).read_text())
    for path, value in fields.items():
        *above, last = path.split(".") if name == TOKENIZER else [path]
        inner = content
        for key in above:
            inner = inner[int(key) if isinstance(inner, list) else key]
        inner[last] = value
    (folder / name).write_text(json.dumps(content))
    return COMMANDS[command](folder)


def cases() -> Cases:
    """Of every file, each damage for one of the commands that read it."""
    turns = {name: cycle(readers) for name, readers in READERS.items()}
    for name in READERS:
        for what, change in CONTENTS.items():
            yield _case(name, what, next(turns[name]), _with_content, change)
        for what, put in FILES.items():
            yield _case(name, what, next(turns[name]), _with_file, put)
    of_files = {
        CONFIG: CONFIG_FIELDS,
        TOKENIZER: TOKENIZER_FIELDS,
        SETTINGS: SETTINGS_FIELDS,
        GENERATION: GENERATION_FIELDS,
    }
    for name, changes in of_files.items():
        for fields in changes:
            what = json.dumps(fields)[1:-1]
            what = what if len(what) < 90 else f"{what[:70]}… of {len(what)}"
            yield _case(name, what, next(turns[name]), _with_fields, fields)


def _case(name: str, what: str, command: str, make: Callable[..., Command], argument: Any) -> Case:
    fitting = [key for key in ACCEPTED if key[0] == name and what.startswith(key[1]) and key[2] in ("", command)]
    accepted = ACCEPTED[fitting[0]] if fitting else ""

    def made(world: World) -> Command:
        return make(world, command, name, argument)

    return Case(
        "hf",
        f"{name}: {what} ({command})",
        made,
        accepted,
        either=True,
        codes=(1,) * (command == "verify"),
        absent=("pwned",),
    )
