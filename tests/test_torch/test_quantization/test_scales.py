"""AWQ's and SmoothQuant's formulas, the choice among their scales, and the shrinking of ranges."""

import torch

from stellarbyte_torch.quantization import awq, rtn, smoothquant
from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.clipping import best_shrink
from stellarbyte_torch.quantization.experts import Linear
from stellarbyte_torch.quantization.grid import Grid, rounded_rows
from stellarbyte_torch.quantization.scale_search import ScaleSearch
from stellarbyte_torch.quantization.scaling_table import Reach
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

    for step in range(11):
        assert (errors(best) <= errors(torch.full_like(best, 1 - step / 20)) * (1 + 1e-3) + 1e-4).all()


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
