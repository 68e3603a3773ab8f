"""What a causal language model of any family says of itself: that it is one, how far it reads, and what ends a text."""

from typing import Any

from transformers import PreTrainedModel

from stellarbyte.errors import UserError

# The most tokens that a model reads at once, by whichever name its family has for them.
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
# Decoders whose configs call them none by default; their attention is causal all the same.
_DECODERS = ("gpt_neox", "gpt_neox_japanese")
# The settings of a model's output that our code can read.
_OUTPUTS = {"return_dict": True, "torchscript": False, "output_attentions": False, "output_hidden_states": False}


def check_decoder(model: PreTrainedModel, where: str) -> None:
    """Checks that a model is a decoder, and sets its config to the form of output that our code reads.

    Raises:
        UserError: the model has an encoder or is one, so it cannot continue a text.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"{where} holds a model with an encoder (is_encoder_decoder): give a causal language model")
    if getattr(model.config, "is_decoder", True) is False and model.config.model_type not in _DECODERS:
        raise UserError(
            f"{where} holds a model of type {model.config.model_type} whose tokens see what follows (is_decoder is "
            "false): give a causal language model"
        )
    for name, value in _OUTPUTS.items():
        if getattr(model.config, name, value) is not value:
            setattr(model.config, name, value)


def context_of(model: PreTrainedModel) -> int | None:
    """The most tokens that a model reads at once; None where its config sets no bound, as Mamba's and BLOOM's."""
    config = model.config.get_text_config()
    lengths = (getattr(config, name, None) for name in _CONTEXTS)
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text, by whoever says so: many a chat model's config names a document's end alone."""
    ends: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config.get_text_config(), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        ends |= {ids} if isinstance(ids, int) else set(ids or ())
    return ends
