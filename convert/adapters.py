"""Carries adapters between a run and PEFT's folder, bit for bit."""

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from convert import adapter_config, given_weights, names, shards, staged_folder, weights
from convert import config as hf_config
from convert.adapter_config import Adapted
from convert.given_folder import check_links
from convert.hf_checkpoint import Conversion
from convert.names import HFTensor
from convert.run_checkpoint import Step, step_of
from convert.weights import LazyTensor, Params
from stellarbyte.adapter_base import AdapterBase, check_adapter
from stellarbyte.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_not_pickled
from stellarbyte.errors import UserError
from stellarbyte.file_manifest import check_files
from stellarbyte.files import write_json
from stellarbyte.places import Place
from stellarbyte.staged_folder import staged
from stellarbyte_jax.config import ByteConfig, LoRAConfig
from stellarbyte_jax.config_file import lora_config_from_dict, model_config_from_dict, save_config, to_dict
from stellarbyte_jax.run_folder import check_is_run

_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(model\.layers\.(\d+)\.(.+))\.(lora_[AB])\.weight")


def to_peft(
    run_dir: Place,
    adapter_dir: Path,
    *,
    step: Step | None = None,
    base_model: str | None = None,
    force: bool = False,
    ema: bool = False,
) -> Conversion:
    """Writes a run's adapters as a folder that stock PEFT loads; needs neither torch nor PEFT.

    Args:
        run_dir: the output_dir of a run with `lora`, or a run directory that `from_peft` made.
        adapter_dir: the folder to write. It is written beside its place and renamed; an earlier export is replaced.
        step: the step of the checkpoint, or "best" by the run's validations; the newest by default.
        base_model: the Hugging Face folder or name of the base, where PEFT will look for it.
        force: whether to replace files of the same names in `adapter_dir` that no export wrote.
        ema: whether to export the moving average of the adapters that training.ema_decay keeps.

    Raises:
        UserError: there is no such checkpoint, it is of a whole model, or its adapters are no finite numbers;
            `adapter_dir` holds files that no export wrote; the disk is full.
    """
    # Orbax takes seconds to import; a mistake in the command line should not wait for it.
    from stellarbyte_jax.checkpoints.adapter_trees import check_adapters
    from stellarbyte_jax.checkpoints.checkpoint import load_params

    if base_model is not None and not base_model.strip():
        raise UserError("base_model '' names no model: leave it out, or name where PEFT will look for the base")
    adapter_dir = adapter_dir.resolve()
    keep = staged_folder.check_replaceable(adapter_dir, force)
    adapters, metadata, found = load_params(run_dir, step_of(run_dir, step), ema=ema)
    if metadata.base is None:
        raise UserError(f"{run_dir} holds a whole model and no adapters: export it with `stellarbyte convert to-hf`")
    where = f"the checkpoint of step {found} in {run_dir}"
    config = model_config_from_dict(metadata.model, where)
    lora = lora_config_from_dict(metadata.config["lora"], where)
    kernels = {module: tensors[0].path for module, tensors in _linears(config).items()}
    shapes = names.jax_shapes(config)
    check_adapters(adapters, lora, {module: shapes[path] for module, path in kernels.items()}, where)
    tensors = to_peft_tensors(adapters, config, lora)
    for key, values in tensors.items():
        weights.check_dtype(key, values.dtype, where)
        given_weights.check_finite(key, values, where)
    modules = [module for module in _linears(config) if lora.adapts(module)]
    fields = adapter_config.to_peft(lora, modules, config.num_hidden_layers, base_model)
    with staged(adapter_dir, keep) as folder:
        write_json(folder / ADAPTER_CONFIG, fields, sort_keys=True)
        AdapterBase.of(hf_config.to_hf(config, "float32")).write(folder)
        try:
            save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"{ADAPTER_WEIGHTS} cannot be written to {folder}: {error}") from error
        (folder / ADAPTER_WEIGHTS).chmod(folder.stat().st_mode & 0o666)
        about = {"stellarbyte": version("stellarbyte"), "step": found} | ({"ema": True} if ema else {})
        staged_folder.write_manifest(folder, about, {})
    return _conversion(found, tensors.values())


def from_peft(adapter_dir: Path, run_dir: Place, base_dir: Place) -> Conversion:
    """Makes a run directory, step 0, of an adapter that PEFT saved, on the newest weights of the run in `base_dir`.

    Raises:
        UserError: JAX cannot hold the adapter, or it is for another base; weights are missing, unknown, misshapen or
            broken; `base_dir` is no run of a whole model; `run_dir` exists; the disk is full.
    """
    from stellarbyte_jax.checkpoints.checkpoint import Base, RunMetadata, fingerprint, load_metadata, save_imported
    from stellarbyte_jax.checkpoints.needed import note_needed

    run_dir = run_dir.resolve()
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(f"{run_dir} exists already: name a new run directory")
    check_is_run(base_dir, "--base")
    metadata, step = load_metadata(base_dir)
    if metadata.base is not None:
        raise UserError(f"--base {base_dir} holds adapters itself, on {metadata.base.run_dir}: name a whole model")
    config = model_config_from_dict(metadata.model, f"{base_dir}/checkpoints")
    check_links(adapter_dir)
    check_files(adapter_dir)
    fields = adapter_config.read(adapter_dir)
    check_adapter(adapter_dir, fields, AdapterBase.of(hf_config.to_hf(config, "float32")))
    check_not_pickled(adapter_dir)
    tensors = given_weights.finite(shards.read_file(adapter_dir / ADAPTER_WEIGHTS), str(adapter_dir))
    adapters, lora = from_peft_tensors(tensors, fields, config, str(adapter_dir))
    conversion = _conversion(0, tensors.values())
    base = Base(str(base_dir), step, fingerprint(base_dir, step))
    with staged(run_dir) as folder:
        save_config(config, folder / "model.yaml")
        about = {"model": to_dict(config), "lora": to_dict(lora)}
        save_imported(folder, adapters, RunMetadata(about, metadata.tokenizer_files, base=base))
    note_needed(base_dir, step, run_dir)
    return conversion


def to_peft_tensors(adapters: Params, config: ByteConfig, lora: LoRAConfig) -> dict[str, np.ndarray]:
    """PEFT's key -> tensor of each A [R, in] and B [out, R]; channels that the base's layer lacks are left out."""
    arrays = dict(weights.flatten(adapters))
    tensors = {}
    for layer in lora.layer_numbers(config.num_hidden_layers):
        for module, kernels in _linears(config).items():
            if lora.adapts(module):
                kernel = kernels[layer]
                A_DR, B_RF = (arrays[(*kernel.path[:-1], leaf)][layer] for leaf in ("lora_A", "lora_B"))
                for leaf, values in (("lora_A", A_DR[kernel.kept[0]]), ("lora_B", B_RF[:, kernel.kept[1]])):
                    tensors[_key(kernel, leaf)] = np.ascontiguousarray(values.T)
    return tensors


def from_peft_tensors(
    tensors: Mapping[str, LazyTensor], fields: Mapping[str, object], config: ByteConfig, where: str
) -> tuple[Params, LoRAConfig]:
    """(a run's adapters in float32, zero in layers without one; their config), from PEFT's tensors and config.

    Raises:
        UserError: as `from_peft` does.
    """
    linears = _linears(config)
    adapted = _adapted(tensors, linears, config.num_hidden_layers, where)
    lora = adapter_config.from_peft(fields, adapted, list(linears), config.num_hidden_layers, where)

    arrays: dict[names.Path, np.ndarray] = {}
    expected: dict[str, names.Shape] = {}
    shapes = names.jax_shapes(config)
    for module, rank in adapted.ranks.items():
        path = linears[module][0].path
        L, D, F = shapes[path]
        arrays[(*path[:-1], "lora_A")] = np.zeros((L, D, rank), np.float32)
        arrays[(*path[:-1], "lora_B")] = np.zeros((L, rank, F), np.float32)
        for layer in adapted.layers:
            out_features, in_features = linears[module][layer].shape
            expected[_key(linears[module][layer], "lora_A")] = (rank, in_features)
            expected[_key(linears[module][layer], "lora_B")] = (out_features, rank)
    weights.check_names(((key, tensor.shape) for key, tensor in tensors.items()), expected, where)

    for module in adapted.ranks:
        for layer in adapted.layers:
            kernel = linears[module][layer]
            A_DR, B_RF = (arrays[(*kernel.path[:-1], leaf)][layer] for leaf in ("lora_A", "lora_B"))
            A_DR[kernel.kept[0]] = np.asarray(tensors[_key(kernel, "lora_A")]).T
            B_RF[:, kernel.kept[1]] = np.asarray(tensors[_key(kernel, "lora_B")]).T
    return weights.unflatten(arrays), lora


def _adapted(
    tensors: Mapping[str, LazyTensor], linears: Mapping[str, list[HFTensor]], num_layers: int, where: str
) -> Adapted:
    """The layers and modules that the keys name, after checking that all modules have the same layers."""
    layers_of: dict[str, set[int]] = {}
    ranks: dict[str, int] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        module, layer = (match[3], int(match[2])) if match else ("", -1)
        if match is None or module not in linears or layer >= num_layers:
            raise UserError(
                f"{where} holds {key}, which adapters in JAX have no place for: they are lora_A and lora_B of "
                f"{', '.join(linears)} in layers 0 to {num_layers - 1} of the base"
            )
        weights.check_dtype(key, tensor.dtype, where)
        layers_of.setdefault(module, set()).add(layer)
        if match[4] == "lora_A" and tensor.shape:
            ranks.setdefault(module, tensor.shape[0])
    if not layers_of:
        raise UserError(f"{where} holds no adapter at all: save it again")
    (first, layers), *others = layers_of.items()
    for module, its_layers in others:
        if its_layers != layers:
            raise UserError(
                f"{where} adapts {first} in layers {sorted(layers)}, but {module} in {sorted(its_layers)}: adapters in "
                "JAX are in the same layers for all modules"
            )
    for module in layers_of:
        if module not in ranks:
            raise UserError(f"{where} lacks lora_A.weight of {module}: save the adapter again")
    # The order is that of the base, whatever the file's is.
    return Adapted(sorted(layers), {module: ranks[module] for module in linears if module in ranks})


def _linears(config: ByteConfig) -> dict[str, list[HFTensor]]:
    """Dotted name of each adaptable module -> its matrix in each layer; routers are not adaptable."""
    routers = {row.path for row in names.rows(config) if row.axes[-1] == "E"}
    linears: dict[str, list[HFTensor]] = {}
    for tensor in names.hf_tensors(config):
        if tensor.layer is not None and tensor.path[-1] == "kernel" and tensor.path not in routers:
            module = tensor.key.removeprefix(f"model.layers.{tensor.layer}.").removesuffix(".weight")
            linears.setdefault(module, []).append(tensor)
    return linears


def _key(kernel: HFTensor, leaf: str) -> str:
    return f"{_PREFIX}{kernel.key.removesuffix('.weight')}.{leaf}.weight"


def _conversion(step: int, tensors: Iterable[np.ndarray | LazyTensor]) -> Conversion:
    sizes = [(int(np.prod(tensor.shape)), tensor.nbytes) for tensor in tensors]
    return Conversion(step, sum(count for count, _ in sizes), sum(nbytes for _, nbytes in sizes))
