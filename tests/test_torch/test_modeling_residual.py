"""How branches join the residual stream: the schemes by hand, LayerScale, DropPath, dropouts and initial weights."""

from typing import Any

import pytest
import torch

from .tiny import SWITCHES, relative_error, tiny_model, tokens

SCHEMES = [(residual, parallel) for residual in ("pre_norm", "deepnorm") for parallel in (False, True)]


def jolted(**changes: Any) -> Any:
    """Norms start at 1, where a wrong one would not show."""
    model = tiny_model(**changes)
    for name, parameter in model.named_parameters():
        if "norm" in name or "layer_scale" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def by_hand(layer: Any, x: torch.Tensor, residual: str, parallel: bool, depth: int, tables: Any) -> torch.Tensor:
    def f(h: torch.Tensor) -> torch.Tensor:
        y = layer.self_attn(h, tables)[0]
        return y * layer.self_attn_layer_scale.weight if layer.self_attn_layer_scale is not None else y

    def g(h: torch.Tensor) -> torch.Tensor:
        y = layer.mlp(h)
        return y * layer.mlp_layer_scale.weight if layer.mlp_layer_scale is not None else y

    alpha = (2 * depth) ** 0.25
    if residual == "pre_norm" and parallel:
        h = layer.input_layernorm(x)
        return x + f(h) + g(h)
    if residual == "pre_norm":
        x = x + f(layer.input_layernorm(x))
        return x + g(layer.post_attention_layernorm(x))
    if parallel:
        return layer.post_feedforward_layernorm(alpha * x + f(x) + g(x))
    x = layer.post_attention_layernorm(alpha * x + f(x))
    return layer.post_feedforward_layernorm(alpha * x + g(x))


@pytest.mark.parametrize(
    ("residual", "parallel", "layer_scale"),
    [(residual, parallel, None) for residual, parallel in SCHEMES]
    + [("pre_norm", parallel, 0.3) for parallel in (False, True)],
)
@torch.no_grad()
def test_a_layer_is_its_formula(residual: str, parallel: bool, layer_scale: float | None) -> None:
    model = jolted(residual=residual, parallel_residual=parallel, layer_scale_init=layer_scale, num_hidden_layers=3)
    ids = tokens(2, 10)
    x = model.model.embed_tokens(ids)
    tables = model.model.rotary_emb(x, torch.arange(10)[None])
    for layer in model.model.layers:
        x = by_hand(layer, x, residual, parallel, 3, tables)
    assert relative_error(model(ids).logits, model.lm_head(model.model.norm(x))) < 1e-6
    norms = {name.split(".")[3] for name, _ in model.named_parameters() if "layernorm" in name}
    assert (
        norms
        == {
            ("pre_norm", False): {"input_layernorm", "post_attention_layernorm"},
            ("pre_norm", True): {"input_layernorm"},
            ("deepnorm", False): {"post_attention_layernorm", "post_feedforward_layernorm"},
            ("deepnorm", True): {"post_feedforward_layernorm"},
        }[residual, parallel]
    )


@torch.no_grad()
def test_layer_scale_folds_into_the_output_projections() -> None:
    model = jolted(layer_scale_init=0.5)
    ids = tokens(2, 10)
    expected = model(ids).logits
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(layer.self_attn_layer_scale.weight[:, None])
        layer.mlp.down_proj.weight.mul_(layer.mlp_layer_scale.weight[:, None])
        layer.self_attn_layer_scale = layer.mlp_layer_scale = None
    assert relative_error(model(ids).logits, expected) < 1e-5


def test_nothing_is_dropped_out_of_training() -> None:
    ids = tokens(2, 12)
    dropping, plain = tiny_model(**SWITCHES["dropouts"]), tiny_model()
    assert torch.equal(dropping(ids).logits, plain(ids).logits)
    dropping.train()
    torch.manual_seed(1)
    first = dropping(ids).logits
    assert not torch.equal(dropping(ids).logits, first)
    torch.manual_seed(1)
    assert torch.equal(dropping(ids).logits, first)


def test_dropouts_survive_gradient_checkpointing() -> None:
    ids, gradients = tokens(2, 12), []
    for checkpointing in (False, True):
        model = tiny_model(**SWITCHES["dropouts"]).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model(ids, labels=ids).loss.backward()
        gradients.append(model.model.layers[0].mlp.down_proj.weight.grad)
    assert torch.equal(*gradients)


def test_drop_path_takes_whole_rows_at_a_rate_that_rises_with_depth() -> None:
    model = tiny_model(num_hidden_layers=4, drop_path_rate=0.6).train()
    rows = 4000
    y = torch.randn(rows, 3, 32)
    for index, layer in enumerate(model.model.layers):
        rate = 0.6 * index / 3
        dropped = layer.branch(y, None)
        gone = (dropped == 0).all(dim=(1, 2))
        # Of a binomial share the standard deviation is at most 0.5 / sqrt(rows); five of them.
        assert gone.float().mean().item() == pytest.approx(rate, abs=2.5 / rows**0.5)
        torch.testing.assert_close(dropped[~gone], y[~gone] / (1 - rate))
    assert tiny_model(num_hidden_layers=1, drop_path_rate=0.6).model.layers[0].drop_path_rate == 0


def test_the_two_branches_draw_apart() -> None:
    model = tiny_model(num_hidden_layers=2, drop_path_rate=0.5).train()
    layer = model.model.layers[1]
    seen: list[torch.Tensor] = []
    branch = layer.branch

    def spy(output: torch.Tensor, scale: Any) -> torch.Tensor:
        result = branch(output, scale)
        seen.append((result == 0).all(dim=(1, 2)))
        return result

    layer.branch = spy
    model(tokens(64, 4))
    attention, feed_forward = seen
    assert (attention & ~feed_forward).sum() > 0
    assert (feed_forward & ~attention).sum() > 0


@pytest.mark.parametrize("name", ["hidden_dropout", "residual_dropout"])
def test_dropout_zeroes_and_rescales(name: str) -> None:
    model = tiny_model(**{name: 0.25}, num_hidden_layers=1).train()
    kept: list[torch.Tensor] = []
    if name == "hidden_dropout":
        model.model.layers[0].register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        before = model.model.embed_tokens(tokens(8, 50))
        model(tokens(8, 50))
    else:
        before = torch.randn(8, 50, 32)
        kept.append(model.model.layers[0].branch(before, None))
    gone = kept[0] == 0
    assert gone.float().mean().item() == pytest.approx(0.25, abs=2.5 / gone.numel() ** 0.5)
    torch.testing.assert_close(kept[0][~gone], before[~gone] / 0.75)


@pytest.mark.parametrize("residual", ["pre_norm", "deepnorm"])
@pytest.mark.parametrize("experts", [0, 4])
def test_initial_weights_follow_the_scheme(residual: str, experts: int) -> None:
    model = tiny_model(
        **{"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 2},
        **{"initializer_range": 0.02, "residual": residual, "num_experts": experts},
        **{"num_shared_experts": int(experts > 0), "attention_bias": True, "qk_norm": True},
    )
    beta = 64**-0.25 if residual == "deepnorm" else 1.0
    output = beta if residual == "deepnorm" else 16**-0.5
    gains = {"v_proj": beta, "gate_proj": beta, "up_proj": beta, "gate_up_proj": beta}
    gains |= {"o_proj": output, "down_proj": output}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif parts[-1] == "bias":
            assert (parameter == 0).all(), name
        else:
            gain = gains.get(parts[-2] if parts[-1] == "weight" else parts[-1], 1.0)
            assert parameter.std().item() == pytest.approx(0.02 * gain, rel=0.1 if parameter.numel() < 2000 else 0.05)


def test_layer_scale_starts_where_it_is_told() -> None:
    model = tiny_model(layer_scale_init=0.25)
    for layer in model.model.layers:
        assert (layer.self_attn_layer_scale.weight == 0.25).all()
        assert (layer.mlp_layer_scale.weight == 0.25).all()
