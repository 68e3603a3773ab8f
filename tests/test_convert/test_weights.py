import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert import config as convert_config
from convert import names, transposing, weights
from stellarbyte.errors import UserError
from stellarbyte.pruning.cuts import Cuts
from stellarbyte_jax.model.pruning import cut
from test_convert import drawn, switches
from test_convert.models import bits, random_params, sensible_params, tiny
from test_convert.torch_side import TorchModel


@given(drawn.configs(), st.integers(0, 2**32), st.sampled_from(("float32", "bfloat16", "float16")))
def test_law_4_there_and_back_is_the_identity_on_bits(config, seed, dtype):
    params = random_params(config, seed, dtype)
    tensors = {key: np.asarray(tensor) for key, tensor in weights.to_hf(params, config).items()}
    assert bits(weights.from_hf(tensors, config)) == bits(params)


@pytest.mark.parametrize("dtype", weights.DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(600, 1100), (2, 257, 513), (256, 512), (3, 1), (0, 4)], ids=str)
def test_tiles_are_transposed_as_numpy_does(shape, dtype, monkeypatch):
    bytes_drawn = np.random.default_rng(0).bytes(int(np.prod(shape)) * dtype.itemsize)
    values = np.frombuffer(bytes_drawn, dtype).reshape(shape)
    found = transposing.transposed(values)
    assert (found.dtype, found.shape) == (dtype, values.swapaxes(-1, -2).shape)
    assert found.tobytes() == values.swapaxes(-1, -2).tobytes()
    monkeypatch.setattr(transposing, "_PIECE_BYTES", 100_000)
    pieces = [(piece.dtype, piece.tobytes()) for piece in transposing.transposed_pieces(values)]
    assert {each for each, _ in pieces} <= {dtype}
    assert b"".join(piece for _, piece in pieces) == found.tobytes()


@given(drawn.configs(), st.integers(0, 2**32))
def test_law_4_the_other_way_round(config, seed):
    generator = np.random.default_rng(seed)
    tensors = {
        tensor.key: np.frombuffer(generator.bytes(4 * int(np.prod(tensor.shape))), np.float32).reshape(tensor.shape)
        for tensor in names.hf_tensors(config)
    }
    back = weights.to_hf(weights.from_hf(tensors, config), config)
    assert list(back) == list(tensors)
    assert {k: np.asarray(v).tobytes() for k, v in back.items()} == {k: v.tobytes() for k, v in tensors.items()}


@pytest.mark.parametrize("config", switches.grid().values(), ids=switches.grid().keys())
def test_law_4_for_every_switch(config):
    params = random_params(config)
    tensors = {key: np.asarray(tensor) for key, tensor in weights.to_hf(params, config).items()}
    back = weights.from_hf(tensors, config)
    assert bits(back) == bits(params)
    assert {key: np.asarray(tensor).tobytes() for key, tensor in weights.to_hf(back, config).items()} == {
        key: tensor.tobytes() for key, tensor in tensors.items()
    }


def test_matrices_are_transposed_and_layers_told_apart():
    config = tiny()
    params = random_params(config)
    tensors = weights.to_hf(params, config)
    kernel = params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert np.asarray(tensors["model.layers.1.mlp.up_proj.weight"]).tobytes() == kernel[1].T.tobytes()
    embedding = params["model"]["embed_tokens"]["embedding"]
    assert np.asarray(tensors["model.embed_tokens.weight"]).tobytes() == embedding.tobytes()


def test_experts_are_transposed_one_by_one_with_the_gate_first():
    config = tiny(num_experts=3, moe_intermediate_size=8)
    params = random_params(config)
    tensors = weights.to_hf(params, config)
    gate_up_LEDF = params["model"]["layers"]["mlp"]["experts"]["gate_up_proj"]
    assert gate_up_LEDF.shape == (2, 3, 24, 16)
    assert np.asarray(tensors["model.layers.1.mlp.experts.gate_up_proj"])[2].tobytes() == gate_up_LEDF[1, 2].T.tobytes()
    down_LEFD = params["model"]["layers"]["mlp"]["experts"]["down_proj"]
    assert np.asarray(tensors["model.layers.0.mlp.experts.down_proj"])[1].tobytes() == down_LEFD[0, 1].T.tobytes()
    gate_LDE = params["model"]["layers"]["mlp"]["gate"]["kernel"]
    assert np.asarray(tensors["model.layers.1.mlp.gate.weight"]).tobytes() == gate_LDE[1].T.tobytes()


def test_pruned_heads_are_cut_out_and_come_back_as_zeros():
    config = tiny(attention_bias=True, pruned_heads=((0, 1), (2,)))
    params = random_params(tiny(attention_bias=True))  # whole: what is masked may hold anything
    tensors = {key: np.asarray(tensor) for key, tensor in weights.to_hf(params, config).items()}
    attention, first, second = params["model"]["layers"]["self_attn"], "model.layers.0.", "model.layers.1."
    kept = [*range(16), *range(24, 32)]  # heads 0, 1 and 3, each of size 8
    assert tensors[first + "self_attn.q_proj.weight"].shape == (16, 24)
    assert tensors[first + "self_attn.k_proj.weight"].tobytes() == attention["k_proj"]["kernel"][0, :, 8:].T.tobytes()
    assert tensors[first + "self_attn.v_proj.bias"].tobytes() == attention["v_proj"]["bias"][0, 8:].tobytes()
    assert tensors[second + "self_attn.q_proj.bias"].tobytes() == attention["q_proj"]["bias"][1, kept].tobytes()
    assert tensors[second + "self_attn.o_proj.weight"].tobytes() == attention["o_proj"]["kernel"][1, kept].T.tobytes()
    assert tensors[second + "self_attn.k_proj.weight"].shape == (16, 24), "head 3 still reads the second group"
    back = weights.from_hf(tensors, config)["model"]["layers"]["self_attn"]
    assert not back["q_proj"]["kernel"][1][:, 16:24].any()
    assert not back["o_proj"]["kernel"][0][:16].any()
    assert not back["k_proj"]["bias"][0][:8].any()
    with pytest.raises(UserError, match=r"q_proj\.weight of shape \[16, 24\], but this config gives it \[32, 24\]"):
        weights.from_hf(tensors, tiny(attention_bias=True))


def test_pruning_before_and_after_conversion_is_the_same():
    config = tiny(attention_bias=True, tie_word_embeddings=True)
    params, heads = sensible_params(config), {0: (0, 1), 1: (2,)}
    model = TorchModel(config, params).model
    model.prune_heads(heads)
    pruned_config, pruned_params = cut(config, params, Cuts(heads=heads))
    assert convert_config.from_hf(model.config.to_dict(), "the pruned model") == pruned_config
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items() if key != "lm_head.weight"}
    assert bits(weights.from_hf(state, pruned_config)) == bits(pruned_params)


def test_values_are_only_made_when_read():
    config = tiny()
    params = random_params(config)
    tensors = weights.to_hf(params, config)
    params["model"]["norm"]["scale"][:] = 7.0
    assert np.asarray(tensors["model.norm.weight"])[0] == 7.0


def test_bfloat16_rounds_to_nearest_even_and_comes_back_exactly():
    config = tiny(xpos_learnable=True)
    params = weights.unflatten(
        {path: np.full(shape, 1 + 2**-8 + 2**-9, np.float32) for path, shape in names.jax_shapes(config).items()}
    )
    tensors = weights.to_hf(params, config, "bfloat16")
    assert {str(t.dtype) for key, t in tensors.items() if key != "model.rotary_emb.zeta"} == {"bfloat16"}
    assert str(tensors["model.rotary_emb.zeta"].dtype) == "float32", "torch computes with it in float32, too"
    wide = weights.from_hf(tensors, config, "float32")
    assert wide["model"]["norm"]["scale"].dtype == np.float32
    assert np.asarray(wide["model"]["norm"]["scale"])[0] == 1 + 2**-7
    again = weights.to_hf(wide, config, "bfloat16")
    assert {k: np.asarray(v).tobytes() for k, v in again.items()} == {
        k: np.asarray(v).tobytes() for k, v in tensors.items()
    }


# Strictness: each kind of wrong name or shape, on both sides.


def hf(config):
    return {key: np.asarray(tensor) for key, tensor in weights.to_hf(random_params(config), config).items()}


def test_unknown_key_is_refused_with_the_nearest_one():
    config = tiny()
    tensors = hf(config) | {"model.layers.0.self_attn.q_proj.wieght": np.zeros((2, 3), np.float32)}
    with pytest.raises(
        UserError, match=r"q_proj\.wieght of shape \[2, 3\].*mean model\.layers\.0\.self_attn\.q_proj\.weight"
    ):
        weights.from_hf(tensors, config)


def test_a_layer_too_many_is_refused():
    tensors = hf(tiny(num_hidden_layers=3))
    with pytest.raises(UserError, match=r"model\.layers\.2\."):
        weights.from_hf(tensors, tiny(num_hidden_layers=2))


@pytest.mark.parametrize("key", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_missing_key_is_refused(key):
    config = tiny()
    tensors = hf(config)
    del tensors[key]
    with pytest.raises(UserError, match=f"lacks {key} of shape"):
        weights.from_hf(tensors, config)


def test_misshapen_key_is_refused_with_both_shapes():
    config = tiny()
    tensors = hf(config)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].T
    with pytest.raises(UserError, match=r"up_proj\.weight of shape \[24, 20\].*\[20, 24\]"):
        weights.from_hf(tensors, config)


def test_duplicate_key_is_refused():
    expected = {"a": (1,)}
    with pytest.raises(UserError, match="holds a more than once"):
        weights.check_names([("a", (1,)), ("a", (1,))], expected, "w")


def test_a_head_in_a_tied_model_is_refused():
    with pytest.raises(UserError, match=r"lm_head\.weight.*tie_word_embeddings"):
        weights.from_hf(hf(tiny()), tiny(tie_word_embeddings=True))


def test_integers_are_refused():
    config = tiny()
    tensors = hf(config) | {"model.norm.weight": np.zeros(24, np.int32)}
    with pytest.raises(UserError, match=r"model\.norm\.weight as int32"):
        weights.from_hf(tensors, config)


def test_layers_of_different_dtypes_are_refused():
    config = tiny()
    tensors = hf(config)
    key = "model.layers.1.input_layernorm.weight"
    tensors[key] = tensors[key].astype(weights.DTYPES["bfloat16"])
    with pytest.raises(UserError, match=rf"{key} as bfloat16"):
        weights.from_hf(tensors, config)
    assert weights.from_hf(tensors, config, "float32")["model"]["norm"]["scale"].dtype == np.float32


def test_wrong_parameters_are_refused_on_the_jax_side():
    config = tiny()
    params = random_params(config)
    extra = params | {"bias": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"holds bias of shape \[3\]"):
        weights.to_hf(extra, config)
    with pytest.raises(UserError, match=r"lm_head/kernel.*tie_word_embeddings"):
        weights.to_hf(params, tiny(tie_word_embeddings=True))
    with pytest.raises(UserError, match=r"lacks lm_head/kernel of shape \[24, 37\]"):
        weights.to_hf(random_params(tiny(tie_word_embeddings=True)), config)
    with pytest.raises(UserError, match=r"embedding of shape \[37, 24\].*\[38, 24\]"):
        weights.to_hf(params, tiny(vocab_size=38))
    params["model"]["norm"]["scale"] = np.zeros(24, np.float64)
    with pytest.raises(UserError, match="model/norm/scale as float64"):
        weights.to_hf(params, config)
