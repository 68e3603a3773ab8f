"""Describes a folder in a few lines: a run, a model, an adapter, token shards or a tokenizer."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from stellarbyte.config.nodes import read_yaml
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError
from stellarbyte.metrics_file import records
from stellarbyte.places import Place
from stellarbyte.quantised import is_quantised
from stellarbyte.reading import read_json, read_json_object
from stellarbyte.report.model_folder import StoredTensors
from stellarbyte.safetensors_header import WEIGHTS, read_header, weight_files

Facts = dict[str, Any]
Kind = Literal["run", "fine-tuning run", "model", "adapter", "shards", "tokenizer"]


def info(path: Place) -> Facts:
    """Facts about the folder from its small files and the headers of its weights; `kind` comes first.

    Raises:
        UserError: there is no such folder, it is none of these kinds, or one of the files cannot be read.
    """
    return _description(path)(path)


def folder_kind(path: Place) -> Kind:
    """The kind of folder. Raises UserError where `info` does."""
    describe = _description(path)
    if describe is _run and not _read_run(path).is_pretraining:
        return "fine-tuning run"
    return _NAMES[describe]


def _description(path: Place) -> Callable[[Place], Facts]:
    if not path.is_dir():
        raise UserError(f"{path} is {'a file' if path.exists() else 'not there'}: name a folder")
    for name, describe in _KINDS.items():
        if (path / name).exists():
            return describe
    raise UserError(
        f"{path} is no run, model, adapter, token shards or tokenizer of ours: it holds none of {', '.join(_KINDS)}"
    )


def info_text(facts: Mapping[str, Any]) -> str:
    """The facts as lines, with their names in one column."""
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name:{width}}{text}" for name, text in fact_texts(facts).items())


def fact_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts in words: name -> text."""
    return {name.replace("_", " "): _shown(value) for name, value in facts.items()}


class _Run(NamedTuple):
    """The config of a pretraining or fine-tuning run, and the steps of a pretraining run's checkpoints."""

    config: dict[str, Any]
    steps: list[int]

    @property
    def is_pretraining(self) -> bool:
        """Whether it is the JAX wing's, and no fine-tuning run."""
        return bool(self.steps) or "data" not in self.config or isinstance(self.config.get("model"), dict)


def _read_run(path: Place) -> _Run:
    steps = sorted(int(name) for name in _names(path / "checkpoints") if name.isdecimal())
    if (path / "config.yaml").exists():
        return _Run(plain(read_yaml(path / "config.yaml")), steps)
    if steps:  # from-hf makes a run without config.yaml
        metadata = path / "checkpoints" / str(steps[-1]) / "metadata" / "metadata"
        return _Run(_section(read_json_object(metadata), "config"), steps)
    raise UserError(f"{path} is a run without config.yaml and without checkpoints: nothing is known of it")


def _run(path: Place) -> Facts:
    """Facts about a pretraining or fine-tuning run: what it trains, its progress, and what it has saved."""
    run = _read_run(path)
    config, steps = run
    if run.is_pretraining:
        newest = path / "checkpoints" / str(max(steps, default=0))
        facts: Facts = {"kind": "pretraining run" if config.get("lora") is None else "pretraining run of adapters"}
        model = _architecture(_section(config, "model"))
        if _section(_section(config, "training"), "prune"):
            model = f"{model}; {_pruning(path, _section(config, 'training')['prune'])}"
        facts |= {"model": model}
        facts |= _orbax_parameters(newest) if steps else {}
        distill = _section(_section(config, "training"), "distill")
        facts |= {"taught_by": distill.get("teacher")} if distill else {}
        facts |= {"data": _section(config, "data")["shards"]} if "shards" in _section(config, "data") else {}
    else:
        steps = sorted(int(n.rpartition("-")[2]) for n in _names(path / "checkpoints") if _is_trainers(n))
        facts = {"kind": "fine-tuning run", "base": config.get("model")}
        sources = _section(config, "data").get("sources")
        facts["data"] = [str(source.get("path")) for source in sources or () if isinstance(source, dict)]
    facts |= (
        {"steps_wanted": training["max_steps"]} if "max_steps" in (training := _section(config, "training")) else {}
    )
    facts |= _latest(path / "metrics.jsonl")
    facts |= {"checkpoints": steps}
    facts |= {"amendments": found} if (found := _amendments(path / "amendments.jsonl")) else {}
    results = [name for name in ("adapter", "model", "hf") if (path / name).is_dir()]
    return facts | ({"result": [f"{path}/{name}" for name in results]} if results else {})


def _pruning(path: Place, prune: Mapping[str, Any]) -> str:
    """What becomes of the model of a run that prunes while it trains, or has become of it."""
    if (path / "model.yaml").is_file():
        return f"pruned after step {prune.get('to_step')} to {_architecture(plain(read_yaml(path / 'model.yaml')))}"
    kinds = {"channels": prune.get("keep_channels"), "heads": prune.get("keep_heads")}
    shares = " and ".join(f"{share:.0%} of the {kind}" for kind, share in kinds.items() if isinstance(share, float))
    return f"to be pruned to {shares} from step {prune.get('from_step')} to {prune.get('to_step')}"


def _model(path: Place) -> Facts:
    """Facts about a Hugging Face model: architecture, weights and tokenizer."""
    config = read_json_object(path / "config.json")
    kind = "StellarByte model" if config.get("model_type") == "stellarbyte" else "Hugging Face model"
    facts: Facts = {"kind": kind, "model_type": config.get("model_type"), "model": _architecture(config)}
    facts |= _weights(path, WEIGHTS, config) | _quantisation(path, config)
    facts |= {"context": config.get("max_position_embeddings")} | _vocabulary(path)
    if (path / "stellarbyte_export.json").is_file():
        export = read_json_object(path / "stellarbyte_export.json")
        facts |= {"step": export.get("step"), "written_by": f"stellarbyte {export.get('stellarbyte')}"}
    return facts


def _adapter(path: Place) -> Facts:
    """Facts about an adapter in PEFT's format: its kind, base and size."""
    config = read_json_object(path / "adapter_config.json")
    facts: Facts = {"kind": "adapter", "peft_type": config.get("peft_type")}
    facts |= {"base": config.get("base_model_name_or_path")}
    facts |= {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    targets = config.get("target_modules")
    facts["target_modules"] = sorted(map(str, targets)) if isinstance(targets, list) else targets
    facts |= {"modules_to_save": config["modules_to_save"]} if config.get("modules_to_save") else {}
    return facts | _weights(path, "adapter_model.safetensors")


def _shards(path: Place) -> Facts:
    """Facts about token shards: their sources and their size."""
    manifest = read_json_object(path / "manifest.json")
    recipe, splits = _section(manifest, "recipe"), _section(manifest, "splits")
    facts: Facts = {"kind": f"token shards of {'text' if recipe.get('chat') is None else 'conversations'}"}
    for name in splits:
        counts = _section(splits, name)
        facts[name] = f"{counts.get('tokens'):,} tokens, {counts.get('documents'):,} documents" if counts else None
    sources = recipe.get("source_files")
    facts |= {"source_files": len(sources) if isinstance(sources, list) else None}
    return facts | {"bad_records": manifest.get("bad_record_count"), "tokenizer_sha256": recipe.get("tokenizer_sha256")}


def _tokenizer(path: Place) -> Facts:
    """Facts about a tokenizer."""
    return {"kind": "tokenizer"} | _vocabulary(path)


# The file by which a folder is recognised -> the function that describes it; the more specific files come first.
_KINDS: dict[str, Callable[[Place], Facts]] = {
    "adapter_config.json": _adapter,
    "config.json": _model,
    "config.yaml": _run,
    "checkpoints": _run,
    "manifest.json": _shards,
    "tokenizer.json": _tokenizer,
}
_NAMES: dict[Callable[[Place], Facts], Kind] = {
    _adapter: "adapter",
    _model: "model",
    _run: "run",
    _shards: "shards",
    _tokenizer: "tokenizer",
}


def _architecture(fields: Mapping[str, Any]) -> str | None:
    def size(name: str) -> Any:
        return fields.get(name, "?")

    if "hidden_size" not in fields:
        return None
    text = f"{size('num_hidden_layers')} layers of {size('hidden_size')}, {size('num_attention_heads')} heads"
    if fields.get("num_key_value_heads") not in (None, fields.get("num_attention_heads")):
        text += f" ({fields['num_key_value_heads']} for keys and values)"
    experts = fields.get("num_experts") or fields.get("num_local_experts")
    widths = size("intermediate_size")
    if isinstance(widths, list) and widths:
        widths = f"{min(widths)} to {max(widths)}"
    text += f", {experts} experts" if experts else f", feed-forward {widths}"
    return f"{text}, vocabulary {size('vocab_size')}"


def _weights(path: Place, name: str, model: Mapping[str, Any] | None = None) -> Facts:
    """Numbers, dtypes and bytes of a folder's safetensors files. model: the config.json of a model."""
    files = weight_files(path, name)
    if not files or not files[0].exists():
        return {"weights": "none in safetensors files"}
    if model is None:
        tensors = [tensor for file in files for tensor in read_header(file).values()]
        count = sum(math.prod(tensor.shape) for tensor in tensors)
    else:
        stored = StoredTensors(path, model)
        tensors, count = stored.headers, stored.numbers
    dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors}))
    return {"parameters": count, "weights": f"{dtypes}, {sum(t.end - t.start for t in tensors):,} bytes"}


def _quantisation(path: Place, config: Mapping[str, Any]) -> Facts:
    """How a quantised model's weights are stored, and what its gate measured, if `stellarbyte quantize` wrote it."""
    if not is_quantised(config):
        return {}
    method = _section(config, "quantization_config").get("quant_method")
    if not (path / "quantization.json").is_file():
        return {"quantised": str(method)}
    report = read_json_object(path / "quantization.json")
    held_out = _section(report, "held_out")
    facts: Facts = {"quantised": f"{report.get('how')}, {method}", "gate": report.get("verdict")}
    before, after = (held_out.get(f"perplexity_{when}") for when in ("before", "after"))
    if isinstance(before, float) and isinstance(after, float):
        facts["perplexity"] = f"{before:.4f} before, {after:.4f} quantised"
    return facts


def _orbax_parameters(checkpoint: Place) -> Facts:
    if not (checkpoint / "params" / "_METADATA").is_file():
        return {}
    tree = _section(read_json_object(checkpoint / "params" / "_METADATA"), "tree_metadata")
    shapes = [_section(_section(tree, name), "value_metadata").get("write_shape") for name in tree]
    # Orbax records no shapes for what from-hf saves.
    known = [math.prod(shape) for shape in shapes if isinstance(shape, list)]
    return {"parameters": sum(known)} if len(known) == len(shapes) else {}


def _vocabulary(path: Place) -> Facts:
    if not (path / "tokenizer.json").is_file():
        return {"tokenizer": "none"}
    tokenizer = read_json_object(path / "tokenizer.json")
    vocabulary, added = _section(tokenizer, "model").get("vocab"), tokenizer.get("added_tokens")
    words = set(vocabulary) if isinstance(vocabulary, dict) else set(range(len(vocabulary or ())))
    special = [str(token.get("content")) for token in added or () if isinstance(token, dict) and token.get("special")]
    extra = {token.get("content") for token in added or () if isinstance(token, dict)} - words
    config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    template = (path / "chat_template.jinja").is_file() or (isinstance(config, dict) and "chat_template" in config)
    shown = ", ".join(special[:6]) + (" …" if len(special) > 6 else "")
    return {
        "tokenizer": f"{len(words) + len(extra):,} tokens, special: {shown or 'none'}",
        "chat_template": "yes" if template else "no",
    }


def _latest(metrics: Place) -> Facts:
    """The last step and losses in a run's metrics."""
    if not metrics.is_file():
        return {"step": 0}
    facts: Facts = {"step": 0}
    for _, record in records(metrics):
        facts["step"] = record["step"]
        facts |= {name: record[name] for name in ("loss", "validation_loss") if name in record}
    return facts


def _amendments(file: Place) -> list[str]:
    """The changes of the config while the run went on, each in words."""
    found = []
    for _, record in records(file):
        changes = _section(record, "changes").items()
        told = ", ".join(f"{name} {' -> '.join(map(str, pair))}" for name, pair in changes if isinstance(pair, list))
        found.append(f"after step {record['step']} on {str(record.get('date'))[:10]}: {told}")
    return found


def _is_trainers(name: str) -> bool:
    return name.startswith("checkpoint-") and name.rpartition("-")[2].isdecimal()


def _names(folder: Place) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def _section(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = mapping.get(name)
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    if value is None:
        return "not said"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if type(value) is int else str(value)
