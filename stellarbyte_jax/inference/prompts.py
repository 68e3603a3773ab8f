"""Checks prompts, puts prompts of any lengths into one batch, and takes answers out of it."""

from collections.abc import Callable, Sequence

import numpy as np

from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError

# The room for prompts and answers is a multiple of this, so that few lengths are ever compiled.
_LENGTH_MULTIPLE = 32


def check_prompts(config: ByteConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuses prompts that are empty, or that leave no room in the context for so many new tokens.

    Raises:
        UserError: there is such a prompt; the error names its length and the context.
    """
    context = config.context_length
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens {max_new_tokens} must be at least 1")
    for prompt in prompts:
        if len(prompt) == 0:
            raise UserError("a prompt is empty: give at least <|SBOS|>")
        if len(prompt) + max_new_tokens > context:
            limit = "max_position_embeddings" + " · rope_scaling.factor" * (context > config.max_position_embeddings)
            raise UserError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens {max_new_tokens} exceed the context of "
                f"{context} tokens ({limit}): shorten the prompt or ask for fewer tokens"
            )


def check_static_positions(config: ByteConfig, length: int) -> None:
    """Refuses speculative decoding up to `length` tokens if dynamic rope_scaling changes the frequencies before that.

    Raises:
        UserError: it does; the error names the length up to which the frequencies stay the same.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "dynamic" and length > config.max_position_embeddings:
        # The frequencies depend on the largest position of a call, which may be that of a guess that is dropped.
        raise UserError(
            f"speculative decoding with rope_scaling dynamic goes up to max_position_embeddings "
            f"{config.max_position_embeddings}, not {length} tokens: shorten the prompt, or decode without a draft"
        )


def in_multiples(length: int) -> int:
    """The room for a length: the next multiple of 32 tokens, or the length itself."""
    return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE


def pad_right(
    prompts: Sequence[Sequence[int]], pad_token_id: int, room: Callable[[int], int] = in_multiples
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and segment ids, int32 [B, T]; segment 0 is padding, which the cache does not keep.

    Args:
        prompts: token ids, of any lengths from 1.
        pad_token_id: the id of the token that fills the rows.
        room: a function from the length of the longest prompt to T.
    """
    T = room(max(len(prompt) for prompt in prompts))
    input_ids_BT = np.full((len(prompts), T), pad_token_id, np.int32)
    segment_ids_BT = np.zeros((len(prompts), T), np.int32)
    for row, prompt in enumerate(prompts):
        input_ids_BT[row, : len(prompt)] = prompt
        segment_ids_BT[row, : len(prompt)] = 1
    return input_ids_BT, segment_ids_BT


def until_eos(tokens: list[int], eos_token_id: int) -> list[int]:
    """The tokens before the first eos."""
    return tokens[: tokens.index(eos_token_id)] if eos_token_id in tokens else tokens
