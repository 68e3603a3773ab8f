"""AWQ's and SmoothQuant's formulas, the choice among their scales, and the shrinking of ranges."""

import pytest
import torch

from stellarbyte_torch.quantization import awq, rtn, smoothquant
from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.clipping import best_shrink, shrinks
from stellarbyte_torch.quantization.experts import Linear
from stellarbyte_torch.quantization.grid import Grid, rounded_rows
from stellarbyte_torch.quantization.scale_search import ScaleSearch
from stellarbyte_torch.quantization.scaling_table import Reach
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics

GENERATOR = torch.Generator().manual_seed(7)
X = torch.randn(64, 16, generator=GENERATOR) * torch.logspace(-1, 1, 16)
WEIGHTS = [torch.randn(12, 16, generator=GENERATOR), torch.randn(8, 16, generator=GENERATOR)]
REACH = Reach("norm", ("a", "b"))


def statistics_of(x: torch.Tensor, keep_every: int | None = None) -> Statistics:
    statistics = Statistics(x.shape[1], torch.device("cpu"), keep_every)
    for part in x.split(20):
        statistics.add(part[None])
    return statistics


def test_the_error_of_all_rows_is_known_from_their_sums() -> None:
    weight, statistics = WEIGHTS[0], statistics_of(X)
    changed = Grid(3, 8, symmetric=True).rounded(weight, torch.float32).dequantized()
    exact = (X @ (changed - weight).T).norm().item()
    assert abs(statistics.difference(weight, changed) / exact - 1) < 1e-4
    assert abs(statistics.magnitude(weight) / (X @ weight.T).norm().item() - 1) < 1e-4
    scale = torch.rand(16, generator=GENERATOR) + 0.5
    divided = statistics.divided(scale)
    assert abs(divided.difference(weight * scale, changed * scale) / exact - 1) < 1e-4
    assert torch.allclose(divided.mean_I, (X / scale).abs().mean(0), rtol=1e-5)
    assert torch.allclose(divided.largest_I, (X / scale).abs().amax(0))


def test_rounded_activations_count_in_the_error() -> None:
    weight, statistics = WEIGHTS[0], statistics_of(X, keep_every=1)
    changed = Grid(8, None, symmetric=True).rounded(weight, torch.float32).dequantized()
    exact = (rounded_rows(X) @ changed.T - X @ weight.T).norm().item()
    assert abs(statistics.difference(weight, changed) / exact - 1) < 1e-5
    scale = torch.rand(16, generator=GENERATOR) + 0.5
    scaled = (rounded_rows(X / scale) @ (changed * scale).T - X @ weight.T).norm().item()
    assert abs(statistics.divided(scale).difference(weight * scale, changed * scale) / scaled - 1) < 1e-4


def test_smoothquants_formula() -> None:
    found = dict(zip(smoothquant.ALPHAS, smoothquant.scales(REACH, statistics_of(X), WEIGHTS), strict=True))
    largest = torch.cat(WEIGHTS).abs().amax(0)
    for alpha, scale in found.items():
        assert torch.allclose(scale, X.abs().amax(0) ** alpha / largest ** (1 - alpha))
    # The strongest channels lose the most.
    assert (X / found[0.5]).abs().amax(0).std() < X.abs().amax(0).std()


def test_awqs_formula() -> None:
    found = dict(zip(awq.ALPHAS, awq.scales(REACH, statistics_of(X), WEIGHTS), strict=True))
    for alpha, scale in found.items():
        wished = X.abs().mean(0) ** alpha
        assert torch.allclose(scale / scale[0], wished / wished[0], rtol=1e-4)
        assert abs((scale.amax() * scale.amin()).item() - 1) < 1e-4


def test_heads_that_share_values_share_a_scale() -> None:
    reach = Reach("v", ("o",), spread=torch.tensor([0, 1, 0, 1, 2, 3]))
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert reach.on_source(values, "mean").tolist() == [2.0, 3.0, 5.0, 6.0]
    assert reach.on_source(values, "amax").tolist() == [3.0, 4.0, 5.0, 6.0]
    assert reach.on_inputs(torch.tensor([7.0, 8.0, 9.0, 0.5])).tolist() == [7.0, 8.0, 7.0, 8.0, 9.0, 0.5]


def test_the_shrink_is_the_best_of_all_for_each_group_alone() -> None:
    grid, weight, statistics = Grid(3, 8, symmetric=False), WEIGHTS[0], statistics_of(X)
    weight = weight**3  # a few outliers
    best = best_shrink(weight, statistics, grid, torch.float32)
    assert best.unique().numel() > 1

    def errors(shrink: torch.Tensor) -> torch.Tensor:
        change = grid.rounded(weight, torch.float32, shrink).dequantized() - weight
        outputs = torch.einsum("mcg,ocg->moc", X.unflatten(1, (2, 8)), change.unflatten(1, (2, 8)))
        return outputs.square().sum(0)

    for part in shrinks(3):
        assert (errors(best) <= errors(torch.full_like(best, part)) * (1 + 1e-3) + 1e-4).all()


@pytest.mark.parametrize(("bits", "codes"), [(2, 1), (3, 2), (4, 4), (8, 4)])
def test_ranges_are_shrunk_by_a_few_codes(bits: int, codes: int) -> None:
    tried = shrinks(bits)
    assert (tried[0], len(set(tried))) == (1.0, 11)
    assert (1 - min(tried)) * 2 ** (bits - 1) == pytest.approx(codes)


def test_with_8_bits_of_several_roundings_the_best_is_taken() -> None:
    weight, statistics, grid = WEIGHTS[0], statistics_of(X / 10 + 1), Grid(8, None, symmetric=True)
    chosen = grid.rounded(weight, torch.float32, best_shrink(weight, statistics, grid, torch.float32)).dequantized()
    plain = grid.rounded(weight, torch.float32).dequantized()
    assert statistics.difference(weight, chosen) < 0.8 * statistics.difference(weight, plain)


def test_a_scale_that_harms_one_consumer_is_out_though_the_sum_is_smaller() -> None:
    generator, grid = torch.Generator().manual_seed(0), Grid(3, 8, symmetric=True)
    layer = torch.nn.ModuleDict({"norm": torch.nn.Linear(16, 1)})
    harmful = 0
    for _ in range(20):
        weights = {"a": torch.randn(12, 16, generator=generator), "b": torch.randn(8, 16, generator=generator) / 2}
        linears = {name: Linear(name, weight) for name, weight in weights.items()}
        tried = [torch.exp(torch.randn(16, generator=generator) / 4) for _ in range(6)]
        calibrator = Calibrator(rtn.quantized, lambda *_, tried=tried: tried)
        search = ScaleSearch(REACH, layer, linears, calibrator, torch.float32)
        statistics = statistics_of(X)
        for name in weights:  # in two calls, as with many experts
            search.judge({name: statistics}, grid)

        def error(name: str, scale: torch.Tensor, weights: dict[str, torch.Tensor] = weights) -> float:
            changed = grid.rounded(weights[name] * scale, torch.float32).dequantized() / scale
            return (X @ (changed - weights[name]).T).norm().item()

        plain = {name: error(name, torch.ones(16)) for name in weights}
        sums = [sum(error(name, scale) ** 2 for name in weights) for scale in tried]
        allowed = [all(error(name, scale) <= plain[name] for name in weights) for scale in tried]
        smallest = min(range(6), key=sums.__getitem__)
        harmful += not allowed[smallest] and sums[smallest] < sum(value**2 for value in plain.values())
        best = min((number for number in range(6) if allowed[number]), key=sums.__getitem__, default=None)
        assert (search.best() is None) == (best is None)
        assert best is None or search.best() is tried[best]
    assert harmful


def test_a_scale_that_is_no_better_once_ranges_are_shrunk_is_dropped() -> None:
    generator, settings = torch.Generator().manual_seed(0), QuantizationSettings("awq", 3, 8)
    layer, statistics = torch.nn.ModuleDict({"norm": torch.nn.Linear(16, 1)}), statistics_of(X)
    dropped, kept = 0, 0
    for _ in range(20):
        weights = {name: torch.randn(12, 16, generator=generator) for name in REACH.consumers}
        linears = {name: Linear(name, weight) for name, weight in weights.items()}
        scale = torch.exp(torch.randn(16, generator=generator) / 4)
        search = ScaleSearch(
            REACH, layer, linears, Calibrator(awq.quantized, lambda *_, scale=scale: [scale]), torch.float32
        )
        search.judge(dict.fromkeys(weights, statistics), settings.grid)
        by_rounding = search.best()
        for name in weights:  # in two calls, as with many experts
            search.compare({name: statistics}, settings)
        if by_rounding is None:
            assert search.best() is None
            continue

        def loss(scale: torch.Tensor, weights: dict[str, torch.Tensor] = weights) -> float:
            own = statistics.divided(scale)
            found = ((awq.quantized(w * scale, own, settings, torch.float32), w * scale) for w in weights.values())
            return sum(own.difference(w, each.dequantized()) ** 2 for each, w in found)

        is_better = loss(scale) <= loss(torch.ones(16))
        assert (search.best() is not None) == is_better
        kept, dropped = kept + is_better, dropped + (not is_better)
    assert kept
    assert dropped
