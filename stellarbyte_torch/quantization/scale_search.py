"""Chooses the scale that is folded between a source and its consumers: of several the one of the smallest error."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.experts import Linear, is_router
from stellarbyte_torch.quantization.folding import exact
from stellarbyte_torch.quantization.grid import Grid
from stellarbyte_torch.quantization.scaling_table import Reach
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics


class ScaleSearch:
    """The search for one reach of a decoder layer; its consumers are judged in one or several calls.

    A scale that makes any consumer worse than plain rounding does is out, whatever it does for the others. The scales
    are judged by plain rounding, which is quick; the best is then compared with no scale once more, by the method.
    """

    def __init__(
        self, reach: Reach, layer: nn.Module, linears: Mapping[str, Linear], calibrator: Calibrator, dtype: torch.dtype
    ) -> None:
        self.reach = reach
        self._layer, self._linears, self._dtype = layer, linears, dtype
        self._calibrator = calibrator
        self._scales: list[Tensor] = []
        self._loss, self._is_allowed = [0.0], [True]  # the first is that of no scale
        self._by_method = [0.0, 0.0]  # the losses without a scale, and with the best

    def judge(self, statistics: Mapping[str, Statistics], grid: Grid) -> None:
        """Adds up the errors of those consumers whose statistics are given; the first consumer's come in first."""
        if not self._scales:
            if self.reach.consumers[0] not in statistics:
                return  # they come in a later call, and so do those of all other consumers
            self._begin(statistics[self.reach.consumers[0]])
        for name in self.reach.consumers:
            if name not in statistics or is_router(name) or statistics[name].rows == 0:
                continue
            weight_OI, own = self._linears[name].weight, statistics[name]
            rounded = own.difference(weight_OI, grid.rounded(weight_OI, self._dtype).dequantized(torch.float32))
            self._loss[0] += rounded**2
            for number, scale in enumerate(self._scales, 1):
                if not self._is_allowed[number]:
                    continue
                scale_I = self.reach.on_inputs(scale)
                scaled_OI = weight_OI * scale_I
                quantised_OI = grid.rounded(scaled_OI, self._dtype).dequantized(torch.float32)
                found = own.divided(scale_I).difference(scaled_OI, quantised_OI)
                self._loss[number] += found**2
                self._is_allowed[number] = found <= rounded

    def compare(self, statistics: Mapping[str, Statistics], settings: QuantizationSettings) -> None:
        """Adds up errors by the method itself; the same calls as of `judge`, after all of those."""
        scale = self._best_by_rounding()
        if scale is None:
            return
        scale_I = self.reach.on_inputs(scale)
        for name in self.reach.consumers:
            if name not in statistics or is_router(name) or statistics[name].rows == 0:
                continue
            weight_OI, own = self._linears[name].weight, statistics[name]
            ways = ((weight_OI, own), (weight_OI * scale_I, own.divided(scale_I)))
            for number, (each_OI, theirs) in enumerate(ways):
                found = self._calibrator.quantized(each_OI, theirs, settings, self._dtype)
                self._by_method[number] += theirs.difference(each_OI, found.dequantized(torch.float32)) ** 2

    def best(self) -> Tensor | None:
        """The best scale of the source's channels; None if none is better than no scale."""
        without, scaled = self._by_method
        return self._best_by_rounding() if scaled <= without else None

    def _best_by_rounding(self) -> Tensor | None:
        """The scale that is the best by plain rounding."""
        allowed = [number for number, is_allowed in enumerate(self._is_allowed) if is_allowed]
        best = min(allowed, key=lambda number: self._loss[number])
        return None if best == 0 else self._scales[best - 1]

    def _begin(self, statistics: Statistics) -> None:
        assert self._calibrator.scales is not None
        if statistics.rows == 0:
            return
        weights = [self._linears[name].weight for name in self.reach.consumers if not is_router(name)]
        wished = self._calibrator.scales(self.reach, statistics, weights)
        self._scales = [exact(self.reach, scale, self._layer, self._linears, self._dtype) for scale in wished]
        self._loss += [0.0] * len(wished)
        self._is_allowed += [True] * len(wished)
