"""Finds the model that a user names: a run, a Hugging Face folder, a config of ours, or a config.json alone."""

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from stellarbyte.architecture import ByteConfig
from stellarbyte.config.kind import kind_of
from stellarbyte.config.nodes import read_yaml
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError, shown
from stellarbyte.info import fact_texts, folder_kind, info
from stellarbyte.places import Place, local
from stellarbyte.reading import read_json_object
from stellarbyte.report.model_folder import StoredTensors
from stellarbyte.report.subject import StoredTensor, Subject, Training

OURS = "stellarbyte"
_BYTES = 4  # a run's parameters are float32
# How the classes of models end that fill gaps in a text.
_ENCODERS = ("ForMaskedLM", "ForPreTraining")
_YAML = (".yaml", ".yml")


def find_subject(path: Place) -> Subject:
    """The model that `path` is, or is the config of.

    Raises:
        UserError: there is no such model, or one of its files cannot be read or contradicts another.
    """
    if path.is_dir():
        kind = folder_kind(path)
        if kind == "run":
            return _run(path)
        if kind == "model":
            return _model(path)
        raise UserError(f"{path} is {_others(path, kind)}")
    if not path.exists():
        raise UserError(f"{path} is not there: name a run, a Hugging Face folder, a config of ours or a config.json")
    if path.suffix in _YAML:
        return _config(local(path, "MODEL", "a config is read from this machine: copy it here"))
    if path.suffix == ".json":
        return _bare(path, read_json_object(path), {})
    advice = "name its folder, with config.json in it" if path.suffix == ".safetensors" else "name a folder or a config"
    raise UserError(f"{path} is no run, no Hugging Face folder and no config: {advice}")


def _others(path: Place, kind: str) -> str:
    if kind == "fine-tuning run":
        results = [str(path / name) for name in ("model", "adapter") if (path / name).is_dir()]
        return "a fine-tuning run: " + (f"name what it has made, {results[0]}" if results else "it has made no model")
    if kind == "adapter":
        return "an adapter: merge it into its base with `stellarbyte merge`, and name the result"
    return f"no model but {'token shards' if kind == 'shards' else 'a tokenizer'}: name a run or a Hugging Face folder"


def _run(path: Place) -> Subject:
    """A run of pretraining, whose tensors follow from its config; its newest checkpoint has to hold the same."""
    files = import_module("stellarbyte_jax.run_folder").model_files(path)
    whole, cut = (file.is_file() for file in files)
    loading = import_module("stellarbyte_jax.config_file")
    if not whole and not cut:
        raise UserError(f"{path} is a run without config.yaml and model.yaml: its structure is not known")
    run = loading.load_run_config(files[0]) if whole else None
    config = run.model if run is not None and not cut else loading.load_model_config(files[1])
    steps = [entry.name for entry in (path / "checkpoints").iterdir()] if (path / "checkpoints").is_dir() else []
    newest = max((int(step) for step in steps if step.isdecimal()), default=None)
    facts = fact_texts({name: fact for name, fact in info(path).items() if name != "parameters"})
    found = _of_config("run", path, config, facts, _BYTES if newest is not None else 0)
    if run is not None:
        found = _trained_by(found, run)
    if newest is not None:
        _check_checkpoint(path / "checkpoints" / str(newest), config, found)
    return found


def _model(path: Place) -> Subject:
    """A Hugging Face folder, by the headers of its files; by config.json alone where it has no weights."""
    fields = read_json_object(path / "config.json")
    _check_decoder(path, fields)
    facts = fact_texts({name: fact for name, fact in info(path).items() if name != "parameters"})
    stored = StoredTensors(path, fields)
    if not stored.files:
        found = _bare(path, fields, facts)
        remark = f"{path} holds no weights in safetensors files: all is counted by its config.json"
        return replace(found, remarks=(remark, *found.remarks))
    config: ByteConfig | None = None
    misfit: str | None = None
    try:
        config = _described(fields, str(path / "config.json"))
    except UserError as error:
        misfit = f"the memory of training is not foreseen, because {error}"
    return Subject(
        kind="model",
        path=path,
        model_type=_model_type(fields),
        fields=_flat(fields),
        config=config,
        tensors=stored.parameters,
        facts=facts,
        buffers=stored.buffers,
        misfit=misfit,
    )


def _check_decoder(path: Place, fields: Mapping[str, Any]) -> None:
    """Raises UserError if a model has an encoder or is one, in which tokens see what follows."""
    names = fields.get("architectures")
    kinds = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    if fields.get("is_encoder_decoder") is True or (kinds and all(kind.endswith(_ENCODERS) for kind in kinds)):
        raise UserError(
            f"{path} holds an encoder (model_type {shown(fields.get('model_type'))}), whose tokens see what follows: "
            "name a causal language model"
        )


def _bare(path: Place, fields: Mapping[str, Any], facts: dict[str, str]) -> Subject:
    """A model of a config.json without weights, whose tensors must be known by its family."""
    config = _described(fields, str(path))
    if config is None:
        families = ", ".join(import_module("convert.families.registry").FAMILIES)
        raise UserError(
            f"{path} is of model_type {shown(fields.get('model_type'))}, whose tensors are not known without its "
            f"weights: name a folder with safetensors files, or a config of {OURS}, {families}"
        )
    return _of_config("config", path, config, facts, 0, _model_type(fields))


def _config(path: Path) -> Subject:
    """The config of a run of pretraining, or of a model alone."""
    loading = import_module("stellarbyte_jax.config_file")
    if "hidden_size" in plain(read_yaml(path)):
        return _of_config("config", path, loading.load_model_config(path), {}, 0)
    if kind_of(path) == "finetuning":
        raise UserError(f"{path} is a config of fine-tuning: name the model that it trains")
    run = loading.load_run_config(path)
    return _trained_by(_of_config("config", path, run.model, {}, 0), run)


def _of_config(
    kind: Any, path: Place, config: ByteConfig, facts: dict[str, str], nbytes: int, model_type: str = OURS
) -> Subject:
    shapes = import_module("convert.described").tensor_shapes(config, model_type)
    return Subject(
        kind=kind,
        path=path,
        model_type=model_type,
        fields=plain(config),
        config=config,
        tensors={name: StoredTensor(shape, "F32", nbytes * math.prod(shape)) for name, shape in shapes.items()},
        facts=facts,
    )


def _trained_by(found: Subject, run: Any) -> Subject:
    """The subject as the run trains it, with the adapters that it adds."""
    rows = run.training.batch_size // run.training.gradient_accumulation_steps
    training = Training(run, rows, run.data.sequence_length, run.training.dtype, run.optimizer.optim)
    if run.lora is None:
        return replace(found, training=training)
    modules = {name.removesuffix(".weight"): tensor for name, tensor in found.tensors.items() if _takes_adapter(name)}
    tensors = {name: replace(tensor, nbytes=0) for name, tensor in found.tensors.items()}
    stored = _BYTES if found.is_stored else 0
    for layer in run.lora.layer_numbers(run.model.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for module, tensor in modules.items():
            inner = module.removeprefix(prefix)
            if module.startswith(prefix) and run.lora.adapts(inner):
                outputs, inputs = tensor.shape
                rank = run.lora.rank(inner)
                tensors[f"{module}.lora_A.weight"] = StoredTensor((rank, inputs), "F32", stored * rank * inputs)
                tensors[f"{module}.lora_B.weight"] = StoredTensor((outputs, rank), "F32", stored * rank * outputs)
    return replace(found, tensors=tensors, training=training, adapters=True)


def _takes_adapter(name: str) -> bool:
    """Whether a parameter of ours is the matrix of a linear module, beside which there may be an adapter."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def _check_checkpoint(checkpoint: Place, config: ByteConfig, found: Subject) -> None:
    """Raises UserError if Orbax lists arrays of other shapes than the config says; it lists none of what is imported.

    Adapters are a run's own, and are not looked at.
    """
    listing = checkpoint / "params" / "_METADATA"
    if found.adapters or not listing.is_file():
        return
    entries = read_json_object(listing).get("tree_metadata")
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {}
    for entry in entries.values() if isinstance(entries, dict) else ():
        try:
            path = tuple(str(each["key"]) for each in entry["key_metadata"])
            shapes[path] = tuple(entry["value_metadata"]["write_shape"])
        except (KeyError, TypeError):
            return  # Orbax tells no shapes of what from-hf saves
    expected = import_module("convert.names").jax_shapes(config)
    for path in sorted(shapes.keys() | expected.keys()):
        if shapes.get(path) != expected.get(path):
            raise UserError(
                f"{checkpoint} holds {'.'.join(path)} of shape {shapes.get(path, 'none')}, where the run's config says "
                f"{expected.get(path, 'none')}: bring back the config.yaml that the run was trained with"
            )


def _described(fields: Mapping[str, Any], where: str) -> ByteConfig | None:
    found: ByteConfig | None = import_module("convert.described").described(fields, where)
    return found


def _model_type(fields: Mapping[str, Any]) -> str:
    return str(fields.get("model_type", "unknown"))


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the language model, which models of several kinds of input have in text_config."""
    text = fields.get("text_config")
    return {**fields, **text} if isinstance(text, dict) else dict(fields)
