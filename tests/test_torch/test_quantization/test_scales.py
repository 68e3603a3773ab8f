"""AWQ's and SmoothQuant's formulas, the choice among their scales, and the shrinking of ranges."""

import torch

from stellarbyte_torch.quantization import awq, smoothquant
from stellarbyte_torch.quantization.clipping import best_shrink
from stellarbyte_torch.quantization.grid import Grid, rounded_rows
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
