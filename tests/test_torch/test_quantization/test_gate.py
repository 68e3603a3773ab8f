"""The gate's figures are those that the definitions give, whatever is computed at once."""

import math

import pytest
import torch

from stellarbyte.errors import UserError
from stellarbyte_torch.quantization import gate
from stellarbyte_torch.quantization.gate import Comparison, compare, held_bytes, reference, run
from stellarbyte_torch.quantization.positions import positions_of

from ..tiny import tiny_model, tokens


@pytest.fixture
def rows():
    return tokens(3, 20)


def changed(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.mul_(1.1)
    return model


@pytest.mark.parametrize("positions", [7, 128])
def test_the_figures_are_those_of_the_logits(rows, monkeypatch, positions) -> None:
    monkeypatch.setattr(gate, "_POSITIONS", positions)
    found = compare(changed(tiny_model()), reference(tiny_model(), rows))
    with torch.no_grad():
        p, q = (model(rows).logits[:, :-1].log_softmax(-1) for model in (tiny_model(), changed(tiny_model())))
    losses = [-x.gather(-1, rows[:, 1:, None]).mean().item() for x in (p, q)]
    assert [found.before, found.after] == pytest.approx(losses, rel=1e-5)
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    mean = p.exp().mean((0, 1))
    assert found.context == pytest.approx((p.exp() * (p - mean.log())).sum(-1).mean().item(), rel=1e-4)
    assert found.top_1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item())
    assert found.positions == 3 * 19
    assert found.increase == pytest.approx(math.exp(losses[1] - losses[0]) - 1, rel=1e-4)


def test_a_model_is_no_way_from_itself(rows) -> None:
    found = compare(tiny_model(), reference(tiny_model(), rows))
    assert (found.kl, found.top_1, found.increase, found.lost) == (0.0, 1.0, 0.0, 0.0)


def test_a_model_that_says_always_the_same_has_nothing_to_lose() -> None:
    assert Comparison(1.0, 1.0, 0.0, 0.0, 1.0, 9).lost == 0.0
    assert Comparison(1.0, 1.0, 1e-9, 0.0, 1.0, 9).lost == 1.0


def test_the_beginning_is_that_of_the_rows(rows) -> None:
    whole = reference(tiny_model(), rows)
    part = reference(tiny_model(), rows[:2, :9])
    beginning = whole.beginning(2, 9)
    assert torch.equal(beginning.rows_NT, part.rows_NT)
    for a, b in zip(beginning.hidden, part.hidden, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_documents_of_a_row_do_not_see_each_other(rows) -> None:
    joined = torch.cat([torch.zeros(1, dtype=torch.int64), rows[0, :8], torch.zeros(1, dtype=torch.int64), rows[1]])
    alone = [reference(tiny_model(), document[None]).hidden[0] for document in (joined[:9], joined[9:])]
    assert torch.equal(positions_of(joined[None], 0), torch.cat([torch.arange(9), torch.arange(21)])[None])
    assert torch.equal(positions_of(joined[None], None), torch.arange(30)[None])
    torch.testing.assert_close(reference(tiny_model(), joined[None]).hidden[0], torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_logits_that_are_not_finite_are_refused(rows) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="logits on the held-out text are not finite: take more bits"):
        compare(broken, reference(tiny_model(), rows))


def test_a_large_loss_is_an_infinite_perplexity() -> None:
    found = Comparison(1.0, 2000.0, 0.0, 1.0, 0.0, 1)
    assert found.perplexities == (math.e, math.inf)
    assert found.increase == math.inf


def test_shared_weights_are_held_once() -> None:
    tied, untied = (held_bytes(tiny_model(tie_word_embeddings=tie)) for tie in (True, False))
    assert untied - tied == 97 * 32 * 4


def test_a_model_runs_beyond_its_first_eos(rows) -> None:
    assert run(tiny_model(), rows[0]).tokens_per_second > 0
