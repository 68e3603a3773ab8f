"""What a Hugging Face user expects of any model."""

from typing import Any

import pytest
import torch

from stellarbyte_torch import ByteForCausalLM

from .tiny import POSITIONS, SWITCHES, relative_error, tiny_model, tokens


@pytest.mark.parametrize("position", POSITIONS)
def test_sdpa_equals_eager(position: str) -> None:
    eager, sdpa = (tiny_model(kind, **POSITIONS[position]) for kind in ("eager", "sdpa"))
    ids = tokens(2, 30)
    expected, actual = eager(ids, labels=ids), sdpa(ids, labels=ids)
    assert relative_error(actual.logits, expected.logits) < 1e-5
    expected.loss.backward()
    actual.loss.backward()
    gradients = {name: parameter.grad for name, parameter in eager.named_parameters()}
    for name, parameter in sdpa.named_parameters():
        assert relative_error(parameter.grad, gradients[name]) < 1e-5, name


def test_sdpa_takes_its_causal_kernel_when_nothing_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, bool]] = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Any = None, is_causal: bool = False, **kwargs: Any) -> torch.Tensor:
        seen.append((attn_mask, is_causal))
        return sdpa(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model = tiny_model()
    ids = tokens(2, 10)
    model(ids)
    model(ids, use_cache=False)
    model(ids, attention_mask=torch.ones_like(ids))
    model(ids, position_ids=torch.arange(10)[None])
    assert all(mask is None and is_causal for mask, is_causal in seen)
    assert len(seen) == 4 * 2


@pytest.mark.parametrize(
    ("position", "reentrant"),
    # Not xpos_learnable with True: torch's reentrant kind cannot share zeta's graph between layers, and says so.
    [("rope", False), ("rope", True), ("xpos", False), ("xpos", True), ("xpos_learnable", False)],
)
def test_gradient_checkpointing_equals_plain(position: str, reentrant: bool) -> None:
    ids = tokens(2, 16)
    plain, checkpointed = (tiny_model(**POSITIONS[position]).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert checkpointed.is_activation_checkpointing
    for model in (plain, checkpointed):
        model(ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in checkpointed.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


@pytest.mark.parametrize("name", ["dropouts", "everything"])
def test_gradient_checkpointing_draws_the_same_dropout_again(name: str) -> None:
    ids = tokens(3, 16)
    plain, checkpointed = (tiny_model(**{**SWITCHES["dropouts"], **SWITCHES[name]}).train() for _ in range(2))
    checkpointed.activation_checkpointing_enable()
    calls: list[int] = []
    checkpointed.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    for model in (plain, checkpointed):
        torch.manual_seed(5)
        model(ids, labels=ids).loss.backward()
    assert len(calls) == 2  # once forward, once more for the gradient
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for parameter_name, parameter in checkpointed.named_parameters():
        assert torch.equal(parameter.grad, gradients[parameter_name]), parameter_name


def test_loss_is_the_mean_over_what_counts() -> None:
    model = tiny_model()
    ids = tokens(2, 10)
    labels = ids.clone()
    labels[1, 4:] = -100
    outputs = model(ids, labels=labels)
    log_probabilities = outputs.logits[:, :-1].log_softmax(-1)
    targets = labels[:, 1:]
    picked = log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected = -(picked * (targets != -100)).sum() / (targets != -100).sum()
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    # Trainer, when it accumulates: the sum, over what it counted in all of its micro-batches.
    counted = (targets != -100).sum()
    loss = model(ids, labels=labels, num_items_in_batch=3 * counted).loss
    assert loss.item() == pytest.approx(expected.item() / 3, rel=1e-6)
    assert model.loss_function(outputs.logits, labels, 97).item() == pytest.approx(expected.item(), rel=1e-6)


def test_logits_to_keep() -> None:
    model = tiny_model()
    ids = tokens(2, 10)
    full = model(ids).logits
    assert torch.allclose(model(ids, logits_to_keep=3).logits, full[:, -3:], rtol=1e-5, atol=1e-6)
    chosen = torch.tensor([1, 8])
    assert torch.allclose(model(ids, logits_to_keep=chosen).logits, full[:, chosen], rtol=1e-5, atol=1e-6)


def test_embeddings_instead_of_ids() -> None:
    model = tiny_model()
    ids = tokens(2, 10)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds).logits, model(ids).logits)
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one"):
            model(**wrong)


def test_hidden_states_attentions_and_tuples() -> None:
    model = tiny_model("eager")
    ids = tokens(2, 10)
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 10, 32)] * 3
    assert torch.equal(outputs.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(outputs.hidden_states[-1], model.model(ids).last_hidden_state)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, 10, 10)] * 2
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 10))
    assert torch.equal(model(ids, return_dict=False)[0], outputs.logits)


def test_cache_is_returned_only_when_asked() -> None:
    model = tiny_model()
    ids = tokens(1, 4)
    assert model(ids).past_key_values.get_seq_length() == 4
    assert model(ids, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(ids).past_key_values is None


def test_tied_and_untied_embeddings(tmp_path) -> None:
    for tied in (False, True):
        model = tiny_model(tie_word_embeddings=tied)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        model.save_pretrained(tmp_path / str(tied))
        loaded = ByteForCausalLM.from_pretrained(tmp_path / str(tied))
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_initial_weights_scale_with_depth() -> None:
    model = tiny_model(
        hidden_size=256, intermediate_size=256, num_hidden_layers=8, num_attention_heads=2, initializer_range=0.02
    )
    layer = model.model.layers[3]
    for projection in (layer.self_attn.q_proj, layer.self_attn.v_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 16**0.5, rel=0.05)
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (layer.input_layernorm.weight == 1).all()


def test_the_padding_row_is_learnt_like_any_other() -> None:
    """As on the JAX side, whose gradients ours must equal; torch's padding_idx would freeze the row."""
    model = tiny_model()
    ids = tokens(1, 6)
    ids[0, 2] = pad = model.config.pad_token_id
    assert (model.model.embed_tokens.weight[pad] != 0).any()
    model(ids, labels=ids).loss.backward()
    assert (model.model.embed_tokens.weight.grad[pad] != 0).any()


@pytest.mark.parametrize("tied", [False, True])
def test_resizing_the_vocabulary(tied: bool, tmp_path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    ids = tokens(1, 6)
    before = model(ids).logits
    model.resize_token_embeddings(105)
    assert model.config.vocab_size == model.vocab_size == 105
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    after = model(ids, labels=ids)
    assert after.logits.shape[-1] == 105
    assert torch.allclose(after.logits[..., :97], before, atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.equal(ByteForCausalLM.from_pretrained(tmp_path)(ids).logits, after.logits)
    model.resize_token_embeddings(97)
    assert torch.allclose(model(ids).logits, before, atol=1e-6)


def test_tying_untying_and_setting_embeddings(tmp_path) -> None:
    model = tiny_model()
    ids = tokens(1, 6)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = ByteForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)

    untied = ByteForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight

    embeddings, head = torch.nn.Embedding(97, 32), torch.nn.Linear(32, 97, bias=False)
    untied.set_input_embeddings(embeddings)
    untied.set_output_embeddings(head)
    assert untied.model.embed_tokens is untied.get_input_embeddings() is embeddings
    assert untied.lm_head is untied.get_output_embeddings() is head


@pytest.mark.parametrize("tied", [False, True])
def test_safetensors_in_shards(tied: bool, tmp_path) -> None:
    model = tiny_model(tie_word_embeddings=tied, **SWITCHES["shared_experts"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ids = tokens(1, 6)
    assert torch.equal(ByteForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("switches", [{"xpos_learnable": True}, SWITCHES["shared_experts"]], ids=str)
@torch.no_grad()
def test_device_map_splits_by_layer(switches: dict[str, Any], tmp_path) -> None:
    model = tiny_model(**switches, num_hidden_layers=3)
    ids = tokens(2, 8)
    model.save_pretrained(tmp_path)
    bytes_of_a_layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    memory = {"cpu": 2 * bytes_of_a_layer + 3 * model.lm_head.weight.nbytes, "disk": 10**9}
    split = ByteForCausalLM.from_pretrained(
        tmp_path, device_map="auto", max_memory=memory, offload_folder=tmp_path / "offload"
    )
    devices = split.hf_device_map
    assert set(devices.values()) == {"cpu", "disk"}
    assert all(f"model.layers.{layer}" in devices for layer in range(3))
    assert relative_error(split(ids).logits, model(ids).logits) < 1e-6
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    assert torch.equal(split.generate(ids, **options), model.generate(ids, **options))


@pytest.mark.parametrize("position", POSITIONS)
def test_bfloat16_stays_near_float32(position: str) -> None:
    ids = tokens(2, 20)
    expected = tiny_model(**POSITIONS[position], initializer_range=0.1)(ids)
    outputs = tiny_model(**POSITIONS[position], initializer_range=0.1).to(torch.bfloat16)(ids, labels=ids)
    assert outputs.logits.dtype is torch.bfloat16
    assert outputs.loss.dtype is torch.float32
    # bfloat16 keeps 8 bits: 2^-8 at each of some ten roundings on the way.
    assert relative_error(outputs.logits, expected.logits) < 10 * 2**-8


def test_loading_as_bfloat16_keeps_positions_and_statistics_in_float32(tmp_path) -> None:
    tiny_model(xpos_learnable=True, qk_norm=True).save_pretrained(tmp_path)
    loaded = ByteForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    rotary = loaded.model.rotary_emb
    assert {parameter.dtype for parameter in loaded.model.layers.parameters()} == {torch.bfloat16}
    assert rotary.zeta.dtype is rotary.inv_freq.dtype is torch.float32
    assert torch.equal(rotary.inv_freq, tiny_model().model.rotary_emb.inv_freq)
    # 1 + 2^-9 has no bfloat16: a sum of squares rounded to it would lose what the float32 one keeps.
    norm = loaded.model.norm
    x = torch.full((1, 32), 2.0, dtype=torch.bfloat16)
    x[0, 0] = 0.125
    exact = x.double() / (x.double().square().mean() + norm.variance_epsilon).sqrt()
    assert torch.equal(norm(x), exact.to(torch.bfloat16))


def test_autocast_trains_float32_weights() -> None:
    model = tiny_model(xpos_learnable=True).train()
    ids = tokens(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids, labels=ids).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert model.model.rotary_emb.zeta.grad.dtype is torch.float32
