"""The work of a pass, by hand."""

import pytest

from stellarbyte.report.architecture import Architecture, Attention, FeedForward, LayerGroup, Weight
from stellarbyte.report.pass_work import pass_work

D, F, V, N, K, H, L, E, TOP = 8, 12, 50, 4, 2, 4, 3, 6, 2


def model(*, tied: bool = False, experts: int = 0, window: int | None = None) -> Architecture:
    attention = Attention(N, K, H, H, window, "rope", False, False)
    weights = [
        Weight("q", (N * H, D), "attention_q"),
        Weight("k", (K * H, D), "attention_k"),
        Weight("v", (K * H, D), "attention_v"),
        Weight("o", (D, N * H), "attention_o"),
        Weight("norm", (D,), "norms"),
        Weight("up", (F, D), "experts" if experts else "feed_forward", copies=3 * max(experts, 1)),
    ]
    network = FeedForward(F, True, "silu", experts, TOP if experts else 0)
    group = LayerGroup(tuple(range(L)), attention, network, tuple(weights), sum(weight.count for weight in weights))
    outside = [Weight("embed", (V, D), "embedding"), Weight("norm", (D,), "norms")]
    outside += [] if tied else [Weight("head", (V, D), "head")]
    return Architecture("llama", V, D, 64, tied, "rms_norm", "pre_norm", False, {}, (group,), tuple(outside))


LAYER = D * H * (2 * N + 2 * K) + 3 * D * F
NORMS = (L + 1) * D


def test_decoding_reads_all_weights_and_the_cache() -> None:
    batch, cached = 5, 20
    flops, nbytes = pass_work(model(), "decode", batch, cached, weight_bytes=4, cache_bytes=2)
    assert flops == pytest.approx(batch * (2 * (L * LAYER + V * D) + L * 4 * N * H * (cached + 1)))
    rows = batch / V * V * D
    assert nbytes == pytest.approx(4 * (L * LAYER + NORMS + V * D + rows) + 2 * batch * L * 2 * K * H * (cached + 1))


def test_a_prompt() -> None:
    batch, length = 2, 10
    flops, nbytes = pass_work(model(tied=True), "prefill", batch, length, weight_bytes=2, cache_bytes=2)
    pairs = length * (length + 1) / 2
    assert flops == pytest.approx(batch * (length * 2 * L * LAYER + 2 * V * D + L * 4 * N * H * pairs))
    assert nbytes == pytest.approx(2 * (L * LAYER + NORMS + V * D) + 2 * batch * L * 2 * K * H * length)


def test_a_window_is_all_that_is_read() -> None:
    _, narrow = pass_work(model(window=4), "decode", 1, 40, 1, 1)
    _, wide = pass_work(model(), "decode", 1, 40, 1, 1)
    assert wide - narrow == pytest.approx(L * 2 * K * H * (41 - 4))


def test_few_tokens_go_to_few_experts() -> None:
    _, one = pass_work(model(experts=E), "decode", 1, 0, 1, 0)
    _, many = pass_work(model(experts=E), "decode", 1000, 0, 1, 0)
    an_expert = 3 * D * F
    assert many - one == pytest.approx(L * (E - TOP) * an_expert + V * D * (1 - 1 / V), rel=1e-6)
