"""XPos and RoPE against their formulas."""

import math

import numpy as np
import pytest
import torch

from stellarbyte_torch import ByteConfig, ByteForCausalLM
from stellarbyte_torch.configuration_stellarbyte import XPOS_SMALLEST_ZETA
from stellarbyte_torch.modeling_stellarbyte import ByteRotaryEmbedding, rotate

from .tiny import POSITIONS, TINY, relative_error, tiny_model, tokens

HEAD_DIM = 16
LENGTH = 24


def rotary(**changes) -> ByteRotaryEmbedding:
    return ByteRotaryEmbedding(ByteConfig(**{**TINY, "head_dim": HEAD_DIM, **changes}))


def vectors(seed: int) -> torch.Tensor:
    return torch.randn(1, 1, LENGTH, HEAD_DIM, generator=torch.Generator().manual_seed(seed))


def scores(embedding: ByteRotaryEmbedding, position_ids: torch.Tensor) -> torch.Tensor:
    """Scores of random queries and keys at these positions, float64 [T, S]."""
    tables = embedding(position_ids, position_ids[None])
    query = rotate(vectors(1), tables[:2])[0, 0].double()
    key = rotate(vectors(2), tables[-2:])[0, 0].double()
    return query @ key.T


def paper_scores(base: float, theta: float = 10000.0) -> np.ndarray:
    """XPos as the paper has it, float64 [T, S]: Re(q_n · conj(k_m) · e^(i(n - m)theta_i)) · zeta_i^((n - m) / base)."""
    half = HEAD_DIM // 2
    pair = np.arange(half)
    frequency = theta ** (-2 * pair / HEAD_DIM)
    zeta = (2 * pair / HEAD_DIM + 0.4) / 1.4
    query, key = (vectors(seed)[0, 0].double().numpy() for seed in (1, 2))
    query, key = (x[:, :half] + 1j * x[:, half:] for x in (query, key))
    distance = np.arange(LENGTH)[:, None, None] - np.arange(LENGTH)[None, :, None]
    turn = np.exp(1j * distance * frequency) * zeta ** (distance / base)
    return (query[:, None] * key.conj()[None] * turn).real.sum(-1)


@pytest.mark.parametrize("base", [16.0, 512.0])
def test_xpos_equals_the_papers_formula(base: float) -> None:
    ours = scores(rotary(position_embedding="xpos", xpos_scale_base=base), torch.arange(LENGTH))
    assert relative_error(ours, torch.from_numpy(paper_scores(base))) < 1e-6


def test_rope_is_xpos_without_decay() -> None:
    ours = scores(rotary(position_embedding="rope"), torch.arange(LENGTH))
    assert relative_error(ours, torch.from_numpy(paper_scores(math.inf))) < 1e-6


def test_xpos_starts_where_the_paper_does() -> None:
    zeta = rotary(position_embedding="xpos", xpos_learnable=True).zeta
    assert isinstance(zeta, torch.nn.Parameter)
    assert zeta.shape == (HEAD_DIM // 2,)
    assert zeta[0].item() == pytest.approx(XPOS_SMALLEST_ZETA)
    torch.testing.assert_close(zeta.detach(), (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM + 0.4) / 1.4)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("shift", [1, 10, 100, 1000, 10_000])
def test_scores_do_not_feel_a_shift_of_every_position(position: str, shift: int) -> None:
    """Only n - m counts. What remains is float32: the angle of a pair, position · frequency, is itself rounded by up to
    2^-24 of its size, once for the query and once for the key, and so is XPos's exponent. (The frequency's own rounding
    is common to both and drops out.) So a score may move by twice that, summed over its pairs; 2^-20 is for the
    arithmetic after the angles."""
    embedding = rotary(**POSITIONS[position], xpos_scale_base=512.0)
    with torch.no_grad():
        before = scores(embedding, torch.arange(LENGTH))
        after = scores(embedding, torch.arange(LENGTH) + shift)
    frequency = embedding.inv_freq.double()
    exponent = -(torch.from_numpy((np.arange(0, HEAD_DIM, 2) / HEAD_DIM + 0.4) / 1.4)).log() / 512
    rounding = 2 * 2.0**-24 * (shift + LENGTH) * (frequency + exponent) + 2.0**-20
    growth = (LENGTH * exponent).exp()  # of the keys of the future; those of the past decay
    query, key = (vectors(seed)[0, 0].double().unflatten(-1, (2, -1)).norm(dim=-2) for seed in (1, 2))
    tolerance = (query * rounding * growth) @ key.T
    assert ((after - before).abs() <= tolerance).all()
    assert tolerance.max() < 1e-2 * before.abs().max()


def test_logits_do_not_feel_a_shift_either() -> None:
    model = tiny_model(xpos_scale_base=512.0)
    ids = tokens(2, LENGTH)
    before = model(ids, position_ids=torch.arange(LENGTH)[None]).logits
    # The same rounding of the angles, position · 2^-24, on its way through the layers.
    for shift, tolerance in ((1, 1e-5), (100, 1e-5), (10_000, 1e-3)):
        after = model(ids, position_ids=torch.arange(LENGTH)[None] + shift).logits
        assert relative_error(after, before) < tolerance, shift


def test_the_extreme_factors_stay_finite() -> None:
    embedding = rotary(position_embedding="xpos", max_position_embeddings=32768, xpos_scale_base=512.0)
    positions = torch.tensor([0, 32767])
    for table in embedding(positions, positions[None]):
        assert torch.isfinite(table).all()
    model = tiny_model("eager", max_position_embeddings=32768, xpos_scale_base=512.0, num_hidden_layers=1)
    logits = model(tokens(1, 2), position_ids=positions[None], attention_mask=torch.ones(1, 2)).logits
    assert torch.isfinite(logits).all()


def test_learnable_zeta_is_kept_inside_its_bounds_but_can_return() -> None:
    embedding = rotary(position_embedding="xpos", xpos_learnable=True)
    with torch.no_grad():
        embedding.zeta[0], embedding.zeta[1] = 0.01, 3.0
    bounded = embedding.bounded_zeta()
    assert bounded[0].item() == pytest.approx(XPOS_SMALLEST_ZETA)
    assert bounded[1].item() == pytest.approx(1.0)
    scores(embedding, torch.arange(LENGTH)).tril().square().sum().backward()
    assert (embedding.zeta.grad != 0).all()


def test_learnable_zeta_gets_the_gradient_of_the_decay() -> None:
    embedding = rotary(position_embedding="xpos", xpos_learnable=True)
    positions = torch.arange(LENGTH)
    weight = torch.randn(LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)).double()
    (scores(embedding, positions) * weight).sum().backward()
    step = 1e-3
    for pair in range(1, HEAD_DIM // 2):  # pair 0 sits on its bound, where a step down changes nothing
        values = []
        for sign in (1, -1):
            moved = rotary(position_embedding="xpos", xpos_learnable=True)
            with torch.no_grad():
                moved.zeta[pair] += sign * step
                values.append((scores(moved, positions) * weight).sum().item())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(
            embedding.zeta.grad[pair].item(), rel=2e-2, abs=1e-2
        )


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_stay_float32_in_a_bfloat16_model(position: str, tmp_path) -> None:
    original = tiny_model(**POSITIONS[position])
    if original.config.xpos_learnable:
        with torch.no_grad():
            original.model.rotary_emb.zeta.add_(0.001)  # not representable in bfloat16
    original.save_pretrained(tmp_path)
    loaded = ByteForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    converted = tiny_model(**POSITIONS[position])
    converted.load_state_dict(original.state_dict())
    converted.to(torch.bfloat16)
    for model in (loaded, converted):
        assert model.dtype is torch.bfloat16
        assert model.model.layers[0].self_attn.q_proj.weight.dtype is torch.bfloat16
        for expected, actual in zip(
            (
                original.model.rotary_emb.inv_freq,
                *original.model.rotary_emb(torch.zeros(1), torch.arange(50)[None])[-2:],
            ),
            (model.model.rotary_emb.inv_freq, *model.model.rotary_emb(torch.zeros(1), torch.arange(50)[None])[-2:]),
            strict=True,
        ):
            assert actual.dtype is torch.float32
            assert torch.equal(actual, expected)


def test_loading_in_float16_checks_the_range(tmp_path) -> None:
    tiny_model(max_position_embeddings=256, xpos_scale_base=16.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"xpos_scale_base 16.0 lets XPos leave the range of float16"):
        ByteForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
