"""Looks at each matrix of a model for the heat map of layers and matrices, one tensor in memory at a time."""

import math
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.progress import progress
from stellarbyte.quantised import is_quantised
from stellarbyte.report.matrix_facts import (
    DEFINITIONS,
    DISTANCE_OF_DISTRIBUTION,
    DISTANCE_OF_WEIGHTS,
    Facts,
    facts,
    mean,
)
from stellarbyte.report.measurements import MatrixFacts, Weights
from stellarbyte.report.names import named, stem_of_scale
from stellarbyte.report.stored_arrays import StoredArray, folder_arrays
from stellarbyte.report.subject import Subject

# Larger models take more than some seconds.
MOST_NUMBERS = 300_000_000

WITHOUT_JAX = (
    "the weights of a run are read by JAX's libraries, which are not installed: pip install 'stellarbyte[jax]'"
)

# The projections that end a branch, which start smaller (Radford et al. 2019), and those that DeepNorm scales.
_OUTPUTS = ("o_proj", "down_proj")
_DEEPNORM = ("v_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


def weights_of(subject: Subject, everything: bool | None = None) -> Weights | None:
    """The facts of each matrix of a model; None of a config, which has no weights.

    everything: whether to look at them however many they are, or not at all; None does so up to MOST_NUMBERS.

    Raises:
        UserError: weights are missing or damaged.
        ModuleNotFoundError: they are asked for, and the libraries that read a run's are not installed.
    """
    if not subject.is_stored or everything is False:
        return None
    size = sum(math.prod(tensor.shape) for tensor in subject.tensors.values())
    if everything is None and size > MOST_NUMBERS:
        return Weights(
            (), dict(DEFINITIONS), remark=f"{size:,} numbers take a while to look at: --weights does it all the same"
        )
    first: Mapping[str, StoredArray] = {}
    if subject.kind == "run":
        try:
            arrays, first = import_module("stellarbyte_jax.cli").weight_arrays(subject.path)
        except ModuleNotFoundError:
            if everything:
                raise
            return Weights((), {}, remark=WITHOUT_JAX)
    else:
        assert isinstance(subject.path, Path)
        arrays = _floats(folder_arrays(subject.path), subject)
    with progress("looking at weights") as update:
        matrices = look(arrays, first, lambda inner: first_stddev(subject.fields, inner), update)
    known = any(facts.init_distance is not None for facts in matrices)
    init = None if not known else "weights" if first else "distribution"
    definitions = dict(DEFINITIONS)
    if init is not None:
        definitions["init_distance"] = DISTANCE_OF_WEIGHTS if first else DISTANCE_OF_DISTRIBUTION
    remark = None
    if is_quantised(subject.fields):
        remark = "of quantised weights the codes are not looked at: name the folder of floats that they were made from"
    return Weights(tuple(matrices), definitions, init, remark)


def _floats(arrays: Mapping[str, StoredArray], subject: Subject) -> dict[str, StoredArray]:
    """The arrays without codes and what belongs to these: scales, zero points, numbers of a byte or less."""
    codes = {name for name, tensor in subject.tensors.items() if tensor.nbytes < 2 * math.prod(tensor.shape)}
    of_codes = codes if is_quantised(subject.fields) else ()
    return {name: array for name, array in arrays.items() if stem_of_scale(name) is None and name not in of_codes}


def look(
    arrays: Mapping[str, StoredArray],
    first: Mapping[str, StoredArray],
    stddev: Callable[[str], float | None],
    update: Callable[[int, int], None] = lambda _done, _whole: None,
) -> list[MatrixFacts]:
    """The facts of all matrices among some arrays, by layer.

    first: the arrays as they were at first, as far as they are known; an array of another shape is none of these.
    stddev: gives the deviation that a matrix was drawn with at first, by its name within the layer.
    """
    parts: dict[tuple[int | None, str], list[tuple[tuple[int, ...], Facts]]] = {}
    wanted = {name: array for name, array in arrays.items() if _is_matrix(array.shape)}
    for done, (name, array) in enumerate(wanted.items()):
        update(done, len(wanted))
        found, beginning = named(name), first.get(name)
        if beginning is not None and beginning.shape != array.shape:
            beginning = None
        inner = found.inner.removesuffix(".weight")
        then = None if beginning is None else beginning.read()
        drawn = stddev(inner) if then is None and not first else None
        for matrix, before in _matrices(array.read(), then):
            key = found.layer, inner
            parts.setdefault(key, []).append((matrix.shape, facts(matrix, before, drawn)))
    update(len(wanted), len(wanted))
    ordered = sorted(parts.items(), key=lambda item: -1 if item[0][0] is None else item[0][0])
    return [
        MatrixFacts(layer, inner, several[0][0], **vars(mean([each for _, each in several])))
        for (layer, inner), several in ordered
    ]


def first_stddev(fields: Mapping[str, Any], inner: str) -> float | None:
    """The deviation that a matrix is drawn with by a model's fields, by its name within the layer; None: not known."""
    stddev = fields.get("initializer_range")
    if not isinstance(stddev, int | float) or stddev <= 0:
        return None
    if fields.get("model_type", "stellarbyte") != "stellarbyte":
        return float(stddev)
    last, depth = inner.rpartition(".")[2], int(fields.get("num_hidden_layers") or 1)
    if fields.get("residual") == "deepnorm":
        return float(stddev) * ((8 * depth) ** -0.25 if last in _DEEPNORM else 1.0)
    return float(stddev) / ((2 * depth) ** 0.5 if last in _OUTPUTS else 1.0)


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape[-2:]) > 1 and math.prod(shape) > 0


def _matrices(values: np.ndarray, first: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The matrix, or those of all experts."""
    if values.ndim == 2:
        yield values, first
        return
    for expert in range(len(values)):
        yield values[expert], None if first is None else first[expert]
