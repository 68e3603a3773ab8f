"""Opens the model that a folder should be: a checkpoint of a run, or another folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from convert import config as hf_config
from convert import export_files, layer_scale, run_checkpoint, staged_folder, weights
from convert.families import config_json
from convert.families.family import Family
from convert.families.fit import check_fits, exported
from convert.run_checkpoint import Step
from convert.verifying.checks import Check
from convert.verifying.folders import Folder, Used, sizes_of
from convert.verifying.rows import Sizes
from convert.verifying.side import Pins, Side
from convert.verifying.texts import FolderTexts, RunTexts, Texts
from convert.weights import LazyTensor
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError, shown
from stellarbyte.files import sha256_of_json
from stellarbyte.places import Place
from stellarbyte.reading import read_json_object
from stellarbyte_jax.config_file import differing_fields, to_dict

# The tensors of a run of no more than this stay in memory, so that it is read once.
_SMALL = 64 << 20

# A text that both tokenizers encode as users do, with bos before it.
_PROBE = "Once upon a time there was a star."


@dataclass(frozen=True)
class Subject:
    """The model that is right: what is compared with the folder, and how.

    name, other: what it and the folder are called in sentences. tensors: what the folder is to hold; None if the two
    have other keys, so that only their behaviour is compared. side: makes the model that answers. differentiated: makes
    the one whose gradients are those of the folder's tensors. about: what the certificate says of it.
    """

    name: str
    other: str
    sizes: Sizes
    token_id: Callable[[str], int | None]
    tensors: Mapping[str, LazyTensor] | None
    side: Callable[[Used], Side]
    differentiated: Callable[[Used], Side] | None
    texts: Callable[[], Texts]
    config_check: Check
    files: Callable[[], Sequence[Check]]
    about: Mapping[str, Any] = field(default_factory=dict)
    routed: bool = False


def open_run(run_dir: Place, step: Step | None, folder: Folder) -> Subject:
    """The checkpoint of a run that a folder should be: by default, of the step that the folder names.

    An export with LayerScale folded in is to hold the run's folded weights, and to compute what the run does as it is.

    Raises:
        UserError: there is no such run or step, or the folder's model is of another family.
    """
    from convert.verifying.jax_side import JaxSide

    if folder.config is None:
        hf_config.read_hf(folder.path)  # says in a sentence what is in the way
        raise UserError(f"{folder.path} holds a {folder.model_type}, which no run can be: give an export of the run")
    manifest = staged_folder.read_manifest(folder.path) or {}
    ema, exported_step = manifest.get("ema") is True, manifest.get("step")
    if step is None and type(exported_step) is int:
        step = exported_step
    checkpoint = run_checkpoint.load(run_dir, step, ema=ema)
    config, params, dtype = checkpoint.config, checkpoint.params, folder.dtype
    folded = layer_scale.is_folded(config, folder.config)
    expected = layer_scale.without_layer_scale(config) if folded else config
    in_folder = expected if folder.family is None else as_family(expected, folder.family, dtype)
    derived = (layer_scale.to_hf_folded if folded else weights.to_hf)(params, config, dtype)
    exported_side = derived if sum(t.nbytes for t in derived.values()) > _SMALL else Pins(derived, _SMALL).tensors
    as_it_is = weights.to_hf(params, config, "float32") if folded and dtype == "float32" else None

    def side(used: Used) -> Side:
        # A narrower export is compared with the run's weights as they are rounded there.
        return JaxSide(expected, exported_side, used) if as_it_is is None else JaxSide(config, as_it_is, used)

    def files() -> list[Check]:
        differences = export_files.differences(replace(checkpoint, config=in_folder), folder.path, _PROBE)
        return [Check("small files", "tokenizer, chat template and generation settings", differences=differences)]

    return Subject(
        name="the run",
        other="the export",
        sizes=sizes_of(config),
        token_id=lambda name: getattr(config, name),
        tensors=derived,
        side=side,
        differentiated=None if as_it_is is None else lambda used: JaxSide(expected, exported_side, used),
        texts=lambda: RunTexts(checkpoint.tokenizer_files),
        config_check=_config_check(in_folder, folder),
        files=files,
        about={
            "run": str(run_dir),
            "step": checkpoint.step,
            "dtype": dtype,
            "as": None if folder.family is None else folder.family.model_type,
            "layer_scale_folded": folded,
            "ema": ema,
            "config_sha256": {"the run": sha256_of_json(to_dict(config)), "the export": folder.config_hash},
        },
        routed=config.num_experts > 0,
    )


def open_other(first: Folder, folder: Folder) -> Subject:
    """A folder that another folder should be equal to; both are computed in PyTorch.

    If our words do not suffice for two of different types, only what they compute and their tokenizers are compared.
    """
    in_our_words = first.config is not None and folder.config is not None
    same_keys = in_our_words or first.tensors.keys() == folder.tensors.keys()
    return Subject(
        name="the first folder",
        other="the second",
        sizes=first.sizes,
        token_id=first.token_id,
        tensors=first.tensors if same_keys or first.model_type == folder.model_type else None,
        side=first.side,
        differentiated=None,
        texts=lambda: FolderTexts(first.path),
        config_check=_configs_of(first, folder),
        files=lambda: [_generation_settings(first, folder)],
        about={
            "first": str(first.path),
            "config_sha256": {"the first folder": first.config_hash, "the second": folder.config_hash},
        },
        routed="num_experts" in first.fields or "num_local_experts" in first.fields,
    )


def as_family(config: ByteConfig, family: Family, dtype: str) -> ByteConfig:
    """The config of a model that has gone through a family's config.json, which leaves out what concerns training.

    Raises:
        UserError: the model is none of the family.
    """
    check_fits(family, config, "the model")
    ids = {name: getattr(config, name) for name in config_json.IDS}
    return config_json.from_hf(family, config_json.to_hf(family, exported(config), dtype), ids, "its config.json")


def _config_check(expected: ByteConfig, folder: Folder) -> Check:
    assert folder.config is not None
    differences = [
        f"{name} is {ours!r} in the run, but {theirs!r} in the export"
        for name, ours, theirs in differing_fields(expected, folder.config)
    ]
    return Check("config", _shown_hash(folder), differences=differences)


# What a config.json says of the files and programs, and not of the model.
_NO_ARCHITECTURE = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}


def _configs_of(first: Folder, second: Folder) -> Check:
    if first.config is not None and second.config is not None:
        configs = [first.config, second.config]
        if first.family is not second.family:  # a stock config says nothing of training
            family = second.family or first.family
            assert family is not None
            try:
                configs = [as_family(config, family, "float32") for config in configs]
            except UserError as error:
                return Check("config", differences=[str(error)])
        found = differing_fields(*configs)
    elif first.model_type == second.model_type:
        a, b = first.loaded_fields(), second.loaded_fields()
        names = sorted((a.keys() | b.keys()) - _NO_ARCHITECTURE)
        found = [(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)]
    else:
        types = f"{first.model_type} and {second.model_type}"
        return Check("config", skipped=f"they are of different types, {types}: only what they compute is compared")
    differences = [
        f"{name} is {shown(ours)} in the first folder, but {shown(theirs)} in the second"
        for name, ours, theirs in found
    ]
    return Check("config", _shown_hash(second), differences=differences)


def _shown_hash(folder: Folder) -> str:
    return f"sha256 {folder.config_hash}"


def _generation_settings(first: Folder, second: Folder) -> Check:
    """Compares how both generate by default; what a folder leaves out is the other's business."""
    paths = [folder.path / hf_config.GENERATION_CONFIG for folder in (first, second)]
    if not all(path.is_file() for path in paths):
        return Check("generation settings", skipped="not both folders have a generation_config.json")
    a, b = (read_json_object(path) for path in paths)
    differences = [
        f"{name} is {shown(a[name])} in the first folder's generation_config.json, but {shown(b[name])} in the second's"
        for name in sorted(a.keys() & b.keys())
        if not name.startswith("_") and name != "transformers_version" and a[name] != b[name]
    ]
    return Check("generation settings", "the same", differences=differences)
