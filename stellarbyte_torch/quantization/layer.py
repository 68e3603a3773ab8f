"""Quantises one decoder layer: which rows its linear layers read, what is folded before, and what comes of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stellarbyte_torch.quantization import awq, gptq, rtn, smoothquant
from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.experts import ROUTER, Hear, Linear, is_router, linears_of
from stellarbyte_torch.quantization.folding import fold
from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.scale_search import ScaleSearch
from stellarbyte_torch.quantization.scaling_table import reaches
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics

CALIBRATORS: dict[str, Calibrator] = {
    **{"rtn": rtn.CALIBRATOR, "gptq": gptq.CALIBRATOR, "awq": awq.CALIBRATOR},
    **{"smoothquant": smoothquant.CALIBRATOR, "int8-dynamic": rtn.CALIBRATOR},
}

# Bytes of Σ x xᵀ that are held at once; a layer of many experts takes several passes over the rows.
_BUDGET = 256 << 20

# Runs the calibration rows through the layer as it is now, until all of the named inputs have been heard.
Run = Callable[[Hear, frozenset[str]], None]


@dataclass(frozen=True)
class Found:
    """What a linear layer has become; the errors are those of `LinearError`."""

    weight: QuantizedWeight
    error: float
    rounding_error: float
    rows: int
    kept_rounding: bool


@dataclass(frozen=True)
class _Group:
    """Linear layers that read the same rows. depth: how many linear layers of the decoder layer stand before them."""

    names: tuple[str, ...]
    depth: int
    inputs: int


class LayerQuantizer:
    """The work on one decoder layer. Afterwards the layer itself computes with what its weights have become.

    dtype: the dtype of the folder's weights. keep_every: as in `Statistics`; it counts if activations are rounded.
    """

    def __init__(
        self,
        layer: nn.Module,
        config: Any,
        settings: QuantizationSettings,
        dtype: torch.dtype,
        keep_every: int,
        run: Run,
    ) -> None:
        self._layer, self._config, self._settings, self._dtype, self._run = layer, config, settings, dtype, run
        self._keep_every = keep_every if settings.rounds_activations else None
        self._calibrator = CALIBRATORS[settings.method]
        self._linears = linears_of(layer)
        self._rounding: dict[str, float] = {}  # the relative errors of plain rounding of the original weights
        self._scaled: set[str] = set()
        self._row_scales: dict[str, Tensor] = {}

    def quantized(self) -> dict[str, Found]:
        """What each linear layer has become, but for a router."""
        found: dict[str, Found] = {}
        for groups in self._stages():
            chunks = list(_chunks(groups))
            statistics = self._folded(chunks) if self._calibrator.scales is not None else None
            for chunk in chunks:
                current = self._collected(chunk) if statistics is None else statistics
                found |= {name: self._one(name, own) for name, own in current.items() if not is_router(name)}
        return {name: found[name] for name in self._linears if name in found}

    def _stages(self) -> list[list[_Group]]:
        """The groups that are calibrated at the same time, one after another."""
        groups = _groups(self._linears, with_router=self._calibrator.scales is not None)
        if not self._calibrator.in_turn:
            return [groups]
        depths = sorted({group.depth for group in groups})
        return [[group for group in groups if group.depth == depth] for depth in depths]

    def _collected(self, groups: Sequence[_Group]) -> dict[str, Statistics]:
        """The statistics of each linear layer; those of a group share them."""
        device = next(iter(self._linears.values())).weight.device
        heard = {group.names[0]: Statistics(group.inputs, device, self._keep_every) for group in groups}
        self._run(lambda name, x: heard[name].add(x) if name in heard else None, frozenset(heard))
        return {name: heard[group.names[0]] for group in groups for name in group.names}

    def _folded(self, chunks: Sequence[Sequence[_Group]]) -> dict[str, Statistics] | None:
        """Folds the best scales; returns the statistics of the folded layer, or None if they do not fit in memory."""
        searches = [
            ScaleSearch(reach, self._layer, self._linears, self._calibrator, self._dtype)
            for reach in reaches(self._layer, self._config)
        ]
        statistics: dict[str, Statistics] = {}
        for chunk in chunks:
            statistics = self._collected(chunk)
            self._rounding |= {name: self._rounding_error(name, own) for name, own in statistics.items()}
            for search in searches:
                search.judge(statistics, self._settings.grid)
        if self._calibrator.quantized is not rtn.quantized:  # by which the scales were judged
            for chunk in chunks:
                statistics = statistics if len(chunks) == 1 else self._collected(chunk)
                for search in searches:
                    search.compare(statistics, self._settings)
        for search in searches:
            scale, reach = search.best(), search.reach
            if scale is None:
                continue
            fold(reach, scale, self._layer, self._linears)
            self._scaled |= set(reach.consumers)
            if reach.source in self._linears:
                self._row_scales[reach.source] = scale[:, None]
            divided: dict[Statistics, Statistics] = {}
            for name in reach.consumers:
                own = statistics.get(name)
                if own is not None:
                    if own not in divided:
                        divided[own] = own.divided(reach.on_inputs(scale))
                    statistics[name] = divided[own]
        return statistics if len(chunks) == 1 else None

    def _rounding_error(self, name: str, statistics: Statistics) -> float:
        weight_OI = self._linears[name].weight
        rounded_OI = self._settings.grid.rounded(weight_OI, self._dtype).dequantized(torch.float32)
        return _ratio(statistics.difference(weight_OI, rounded_OI), statistics.magnitude(weight_OI))

    def _one(self, name: str, statistics: Statistics) -> Found:
        """Quantises one linear layer in its place."""
        weight_OI = self._linears[name].weight
        found = quantized_linear(weight_OI, statistics, self._settings, self._dtype, self._row_scales.get(name))
        weight_OI.copy_(found.weight.dequantized(torch.float32))
        if statistics.rows and name in self._rounding:
            found = replace(found, rounding_error=self._rounding[name])
        return replace(found, kept_rounding=found.kept_rounding and name not in self._scaled)


def quantized_linear(
    weight_OI: Tensor,
    statistics: Statistics,
    settings: QuantizationSettings,
    dtype: torch.dtype,
    row_scale: Tensor | None = None,
) -> Found:
    """Quantises one weight by the method; plain rounding is kept if it has no larger error.

    row_scale: what the rows were divided by for the layer behind, [O, 1]; they count as before in the errors.
    """
    calibrator = CALIBRATORS[settings.method]

    def rescaled(rows_OI: Tensor) -> Tensor:
        return rows_OI if row_scale is None else rows_OI * row_scale

    def error(quantised: QuantizedWeight) -> float:
        return statistics.difference(rescaled(weight_OI), rescaled(quantised.dequantized(torch.float32)))

    magnitude = statistics.magnitude(rescaled(weight_OI))
    plain = settings.grid.rounded(weight_OI, dtype)
    plain_error = _ratio(error(plain), magnitude)
    if calibrator.quantized is rtn.quantized:
        return Found(plain, plain_error, plain_error, statistics.rows, calibrator.scales is not None)
    chosen = calibrator.quantized(weight_OI, statistics, settings, dtype)
    chosen_error = _ratio(error(chosen), magnitude)
    if plain_error <= chosen_error:
        return Found(plain, plain_error, plain_error, statistics.rows, kept_rounding=True)
    return Found(chosen, chosen_error, plain_error, statistics.rows, kept_rounding=False)


def _ratio(difference: float, magnitude: float) -> float:
    return difference / magnitude if magnitude else 0.0


# What reads the same rows, with the depth at which it stands; a star stands for the number of an expert.
_TOGETHER: tuple[tuple[tuple[str, ...], int], ...] = (
    (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), 0),
    (("self_attn.o_proj",), 1),
    ((ROUTER,), 2),
    (("mlp.gate_proj", "mlp.up_proj"), 2),
    (("mlp.down_proj",), 3),
    (("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"), 2),
    (("mlp.shared_experts.down_proj",), 3),
)
_TOGETHER_IN_EXPERT = ((("gate_proj", "up_proj"), 2), (("down_proj",), 3))


def _groups(linears: Mapping[str, Linear], *, with_router: bool) -> list[_Group]:
    """The groups in the order of the table above, then expert after expert."""
    found = [
        (names, depth) for names, depth in _TOGETHER if names[0] in linears and (with_router or names[0] != ROUTER)
    ]
    number = 0
    while f"mlp.experts.{number}.gate_proj" in linears:
        for parts, depth in _TOGETHER_IN_EXPERT:
            found.append((tuple(f"mlp.experts.{number}.{part}" for part in parts), depth))
        number += 1
    return [_Group(names, depth, linears[names[0]].weight.shape[1]) for names, depth in found]


def _chunks(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """The groups in parts whose sums fit into the budget; a part has one group at least."""
    part: list[_Group] = []
    size = 0
    for group in groups:
        own = 4 * group.inputs**2
        if part and size + own > _BUDGET:
            yield part
            part, size = [], 0
        part.append(group)
        size += own
    if part:
        yield part
