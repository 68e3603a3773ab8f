"""The walk over a folder: every tensor once, no layer worse than plain rounding, resumed as if never interrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from stellarbyte.errors import UserError
from stellarbyte_torch.quantization import layer as layer_module
from stellarbyte_torch.quantization.grid import QuantizedWeight, rounded_rows
from stellarbyte_torch.quantization.quantize import QuantizedBlock, quantize_blocks
from stellarbyte_torch.quantization.settings import Method, QuantizationSettings
from test_convert.stock import stock_model
from test_torch.tiny import SWITCHES, tiny_model
from tiers import short_tier

ROWS = torch.randint(3, 90, (12, 20), generator=torch.Generator().manual_seed(0))
KINDS: dict[str, dict[str, Any]] = {
    "llama-like": {"position_embedding": "rope"},
    "parallel": {"parallel_residual": True, "xpos_learnable": True},
    "deepnorm": {"residual": "deepnorm", "attention_bias": True},
    "everything": SWITCHES["everything"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    models = {name: tiny_model(**fields) for name, fields in KINDS.items()}
    models |= {name: stock_model(name) for name in ("mixtral", "qwen3_moe")}
    models["bfloat16"] = tiny_model(attention_bias=True, num_experts=4, moe_intermediate_size=24).bfloat16()
    for name, model in models.items():
        model.save_pretrained(root / name)
    return {name: root / name for name in models}


def settings_of(method: Method, **fields: Any) -> QuantizationSettings:
    weights_only = method not in ("smoothquant", "int8-dynamic")
    return QuantizationSettings.of(method, **({"group_size": 8} if weights_only else {}), **fields)


def quantised(folder: Path, scratch: Path, settings: QuantizationSettings, **options: Any) -> list[QuantizedBlock]:
    return list(quantize_blocks(folder, settings, ROWS, scratch, **options))


def state_of(blocks: list[QuantizedBlock]) -> dict[str, torch.Tensor]:
    return {
        key: value.dequantized() if isinstance(value, QuantizedWeight) else value
        for block in blocks
        for key, value in block.tensors.items()
    }


def filled(folder: Path, state: dict[str, torch.Tensor]) -> Any:
    """The folder's model with other weights, which come by the names that files have."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = {}
    for key, parameter in model.state_dict().items():
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(key.rpartition(".")[2])
        if parts and parameter.ndim == 3:
            room = key.rpartition(".")[0]
            rows = [[f"{room}.{number}.{part}.weight" for part in parts] for number in range(len(parameter))]
            if model.config.model_type == "mixtral":
                words = {"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
                rows = [[".".join(words.get(word, word) for word in name.split(".")) for name in row] for row in rows]
            wanted[key] = torch.stack([torch.cat([state.pop(name) for name in row]) for row in rows])
        elif model.config.model_type == "mixtral" and key.endswith("mlp.gate.weight"):
            wanted[key] = state.pop(key.replace("mlp", "block_sparse_moe"))
        else:
            wanted[key] = state.pop(key)
    assert not state
    model.load_state_dict(wanted)
    return model.eval()


METHODS: tuple[Method, ...] = ("rtn", "gptq", "awq", "smoothquant", "int8-dynamic")
CASES = [(kind, method) for kind in (*KINDS, "mixtral", "bfloat16") for method in METHODS]


# In the short tier: rtn and smoothquant of the first, gptq of everything, awq of Mixtral and of bfloat16.
@pytest.mark.parametrize(("kind", "method"), short_tier(CASES, 0, 3, 16, 22, 27))
def test_no_layer_is_worse_than_plain_rounding(
    kind: str, method: Method, folders: dict[str, Path], tmp_path: Path
) -> None:
    if kind == "mixtral" and method in ("smoothquant", "int8-dynamic"):
        with pytest.raises(UserError, match=f"method {method} is not for .*: Transformers reads the experts"):
            quantised(folders[kind], tmp_path, settings_of(method))
        return
    blocks = quantised(folders[kind], tmp_path, settings_of(method))
    assert [block.name for block in blocks] == ["embedding", "layer 0", "layer 1", "head"]
    errors = [error for block in blocks for error in block.errors]
    keys = [key for block in blocks for key, value in block.tensors.items() if isinstance(value, QuantizedWeight)]
    assert keys == [f"{error.name}.weight" for error in errors]
    assert all(error.rows > 0 for error in errors)
    for error in errors:
        # An error is a root of differences between sums over all rows, in float32.
        assert error.error <= error.rounding_error * (1 + 1e-4), error.name
    mean, rounding = (sum(getattr(e, name) for e in errors) / len(errors) for name in ("error", "rounding_error"))
    if method in ("gptq", "awq"):
        assert mean < 0.95 * rounding
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", short_tier([*KINDS, "mixtral", "qwen3_moe"], 1, 3, 4))
def test_every_tensor_is_there_and_the_model_nearly_the_same(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    blocks = quantised(folders[kind], tmp_path, settings_of("awq", bits=8))
    model = filled(folders[kind], state_of(blocks))
    original = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32).eval()
    with torch.no_grad():
        expected, found = (each(ROWS, use_cache=False).logits for each in (original, model))
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_the_next_layer_is_calibrated_on_what_the_quantised_ones_put_out(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, hooks and early ends of a layer's computation: the last layer's inputs are the quantised model's own."""
    seen: dict[str, torch.Tensor] = {}
    collected = layer_module.LayerQuantizer._collected

    def noting(self: Any, groups: Any) -> Any:
        statistics = collected(self, groups)
        seen.update({name: each.hessian_II for name, each in statistics.items()})
        return statistics

    monkeypatch.setattr(layer_module.LayerQuantizer, "_collected", noting)
    blocks = quantised(folders["llama-like"], tmp_path, settings_of("gptq"))
    model = filled(folders["llama-like"], state_of(blocks))
    heard: list[torch.Tensor] = []
    last = model.model.layers[1]
    for projection in (last.self_attn.q_proj, last.self_attn.o_proj, last.mlp.gate_proj, last.mlp.down_proj):
        projection.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model(ROWS, use_cache=False)
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    for name, x in zip(names, heard, strict=True):
        assert torch.allclose(seen[name], x.T @ x, rtol=1e-3, atol=1e-3 * seen[name].abs().max().item()), name


RESUMED = [("everything", "awq"), ("mixtral", "gptq"), ("parallel", "smoothquant")]


@pytest.mark.parametrize(("kind", "method"), short_tier(RESUMED, 2))
def test_a_resumed_walk_ends_as_an_uninterrupted_one(
    kind: str, method: Method, folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = settings_of(method)
    whole = quantised(folders[kind], tmp_path, settings)
    for count in (1, 2, 4):
        resume = {block.name: (lambda block=block: block) for block in whole[:count]}
        again = quantised(folders[kind], tmp_path, settings, resume=resume)
        for ours, theirs in zip(whole, again, strict=True):
            assert ours.name == theirs.name
            assert ours.errors == theirs.errors
            for key, value in ours.tensors.items():
                other = theirs.tensors[key]
                if isinstance(value, QuantizedWeight):
                    assert torch.equal(value.codes, other.codes), key
                    assert torch.equal(value.scale, other.scale), key
                else:
                    assert torch.equal(value, other), key


@pytest.mark.parametrize("method", short_tier(["gptq", "awq"], 1))
def test_many_experts_are_calibrated_in_parts(
    method: Method, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantised(folders["mixtral"], tmp_path, settings_of(method))
    monkeypatch.setattr(layer_module, "_BUDGET", 1)
    parts = quantised(folders["mixtral"], tmp_path, settings_of(method))
    for ours, theirs in zip(whole, parts, strict=True):
        for error, other in zip(ours.errors, theirs.errors, strict=True):
            # With gptq an expert's first half is then quantised before another expert is heard, which changes nothing.
            assert other.error <= other.rounding_error * (1 + 1e-4)
            assert abs(error.rounding_error - other.rounding_error) < 0.1 * error.rounding_error


def test_head_and_embedding_by_choice(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = settings_of("gptq", include_head=True, include_embeddings=True)
    blocks = quantised(folders["llama-like"], tmp_path, settings)
    embedding, head = blocks[0], blocks[-1]
    assert isinstance(embedding.tensors["model.embed_tokens.weight"], QuantizedWeight)
    assert isinstance(head.tensors["lm_head.weight"], QuantizedWeight)
    assert [error.name for error in (*embedding.errors, *head.errors)] == ["model.embed_tokens", "lm_head"]
    assert head.errors[0].error < head.errors[0].rounding_error


def test_a_saved_dtype_is_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    blocks = quantised(folders["bfloat16"], tmp_path, settings_of("awq"))
    original = load_file(folders["bfloat16"] / "model.safetensors")
    for block in blocks:
        for key, value in block.tensors.items():
            dtype = value.scale.dtype if isinstance(value, QuantizedWeight) else value.dtype
            assert dtype == torch.bfloat16, key
            if key in original and "norm" not in key and ".gate.weight" not in key and not key.endswith("bias"):
                assert isinstance(value, QuantizedWeight) or torch.equal(value, original[key]), key


def outputs(model: Any, names: list[str], *, rounding: bool) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The (inputs, outputs) of linear layers while the model reads the rows; inputs as they are before rounding."""
    heard: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        heard[name] = (x.flatten(0, 1), y.flatten(0, 1))

    before: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers" in name:
            module.register_forward_pre_hook(lambda _, x, name=name: before.update({name: x[0]}))
            if rounding:
                module.register_forward_pre_hook(lambda _, x: (rounded_rows(x[0]), *x[1:]))
            if name in names:
                module.register_forward_hook(lambda _, _x, y, name=name: note(name, before[name], y))
    with torch.no_grad():
        model(ROWS, use_cache=False)
    return heard


@pytest.mark.parametrize("method", short_tier(METHODS, 2, 3))
def test_errors_are_those_of_the_outputs(method: Method, folders: dict[str, Path], tmp_path: Path) -> None:
    """Of the first layer and of the second; what they read differs by folded scales, but not what they should say."""
    settings = settings_of(method)
    blocks = quantised(folders["llama-like"], tmp_path, settings)
    for number in (0, 1):
        names = [f"model.layers.{number}.self_attn.{part}_proj" for part in "qk"]
        # The layers before are quantised already; this one still is what it was.
        state = load_file(folders["llama-like"] / "model.safetensors")
        state |= state_of([block for block in blocks if block.name in ("layer 0", "head")[:number]])
        before = outputs(filled(folders["llama-like"], state), names, rounding=settings.rounds_activations)
        after = outputs(filled(folders["llama-like"], state_of(blocks)), names, rounding=settings.rounds_activations)
        original = load_file(folders["llama-like"] / "model.safetensors")
        errors = {error.name: error for error in blocks[1 + number].errors}
        for name in names:
            x, y = before[name][0], after[name][1]
            expected = x @ original[f"{name}.weight"].T
            found = ((y - expected).norm() / expected.norm()).item()
            assert abs(errors[name].error / found - 1) < 1e-3, name


def test_a_layer_that_is_calibrated_reads_rounded_activations(folders: dict[str, Path], tmp_path: Path) -> None:
    blocks = quantised(folders["llama-like"], tmp_path, settings_of("int8-dynamic"))
    name = "model.layers.0.self_attn.o_proj"
    state = load_file(folders["llama-like"] / "model.safetensors")
    x = outputs(filled(folders["llama-like"], dict(state)), [name], rounding=True)[name][0]
    changed, original = blocks[1].tensors[f"{name}.weight"].dequantized(), state[f"{name}.weight"]
    expected = x @ original.T
    found = ((rounded_rows(x) @ changed.T - expected).norm() / expected.norm()).item()
    assert abs(blocks[1].errors[3].error / found - 1) < 1e-4


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("llama-like", {"group_size": 128}, "group_size 128 does not divide the 32 inputs of model.layers.0.self_attn"),
        ("llama-like", {"group_size": 32}, "the 48 inputs of model.layers.0.mlp.down_proj: use 16"),
        ("mixtral", {"symmetric": False}, "symmetric false is not for .*mixtral only on symmetric grids"),
        ("mixtral", {"group_size": None}, "group_size null is not for"),
    ],
)
def test_settings_that_do_not_fit(
    kind: str, fields: dict[str, Any], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        quantised(folders[kind], tmp_path, QuantizationSettings.of("gptq", **fields))


def damaged(folder: Path, name: str, change: Any) -> Path:
    model = tiny_model(tie_word_embeddings=name == "tied")
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "change", "fields", "words"),
    [
        ("missing", lambda t: t.pop("model.norm.weight"), {}, "lacks model.norm.weight"),
        ("more", lambda t: t.update(stranger=torch.ones(1)), {}, r"holds \['stranger'\], for which"),
        ("nan", lambda t: t["lm_head.weight"].fill_(torch.nan), {}, "holds lm_head.weight with NaN or infinite"),
        (
            "overflow",
            lambda t: t["model.layers.1.input_layernorm.weight"].fill_(3e38),
            {},
            "layer 1 makes numbers that are not finite of calibration row 0",
        ),
        ("tied", lambda _: None, {"include_head": True}, "include_head is for a head of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_models_that_cannot_be_quantised(
    name: str, change: Any, fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = damaged(tmp_path / "model", name, change)
    with pytest.raises(UserError, match=words):
        quantised(folder, tmp_path, settings_of("gptq", **fields))


def test_tokens_of_another_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the calibration rows hold token 500, but the model has 97"):
        list(quantize_blocks(folders["deepnorm"], settings_of("rtn"), torch.full((2, 4), 500), tmp_path))
