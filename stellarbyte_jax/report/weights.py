"""The weights of a run one matrix at a time, as they are and as they were at first, by Hugging Face's names."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.places import Place, place
from stellarbyte.report.stored_arrays import StoredArray
from stellarbyte_jax.checkpoints.folders import checkpoint_steps
from stellarbyte_jax.checkpoints.metadata import RunMetadata
from stellarbyte_jax.checkpoints.opened import open_params
from stellarbyte_jax.checkpoints.whole_model import open_weights
from stellarbyte_jax.config_file import model_config_from_dict

# The names of arrays in a module -> Hugging Face's; others are the same.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def weight_arrays(run_dir: Place) -> tuple[dict[str, StoredArray], dict[str, StoredArray]]:
    """(the weights of a run's newest checkpoint, its first weights), adapters merged; values are read when needed.

    The first weights are those of step 0, of the run in `init_from`, or else what is drawn from the run's seed. They
    are empty where none of these is known: for an imported model, and for adapters.

    Raises:
        UserError: there is no checkpoint, or it cannot be read.
    """
    tree, metadata, step = open_weights(run_dir)
    return _by_name(tree), {} if step == 0 else _first(run_dir, metadata)


def _first(run_dir: Place, metadata: RunMetadata) -> dict[str, StoredArray]:
    config = metadata.config
    if "data" not in config or metadata.base is not None:
        return {}
    try:
        if 0 in checkpoint_steps(run_dir):
            return _by_name(open_params(run_dir, 0)[0])
        if config.get("init_from") is not None:
            # A run that has gone on since is another beginning than this run had.
            there = place(config["init_from"])
            steps = checkpoint_steps(there)
            return _by_name(open_weights(there, steps[0])[0]) if len(steps) == 1 else {}
    except UserError:
        return {}
    from stellarbyte_jax.report.drawn import drawn_params

    model = model_config_from_dict({**metadata.model, **(metadata.uncut or {})}, str(run_dir))
    return _by_name(drawn_params(model, int(config.get("seed", 0))))


def _by_name(tree: Mapping[str, Any]) -> dict[str, StoredArray]:
    found = {}
    for path, array in leaves(tree):
        *modules, leaf = path
        layers = range(array.shape[0]) if modules[:2] == ["model", "layers"] else (None,)
        # PyTorch keeps matrices as [out, in], and a table of embeddings as it is here.
        turned = leaf == "kernel" or "experts" in modules[-1:]
        for layer in layers:
            shape = tuple(array.shape) if layer is None else tuple(array.shape[1:])
            shape = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
            read = functools.partial(_values, array, layer, turned)
            found[array_name(path, layer)] = StoredArray(shape, read)
    return found


def array_name(path: tuple[str, ...], layer: int | None = None) -> str:
    """Hugging Face's name of an array, or of one layer of a stacked one."""
    *modules, leaf = path
    above = modules if layer is None else [*modules[:2], str(layer), *modules[2:]]
    return ".".join((*above, _LEAVES.get(leaf, leaf)))


def _values(array: Any, layer: int | None, turned: bool) -> np.ndarray:
    values = np.asarray(array if layer is None else array[layer]).astype(np.float32, copy=False)
    return np.ascontiguousarray(values.swapaxes(-1, -2)) if turned else values


def leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(the keys that lead to it, the array) of each array of a nested dict."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*above, name))
        else:
            yield (*above, name), value
