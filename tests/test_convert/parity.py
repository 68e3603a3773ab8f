"""How far JAX and PyTorch are apart in one config, in everything that the laws speak of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert import weights
from stellarbyte_jax.config import ByteConfig
from test_convert.jax_side import Batch, JaxModel
from test_convert.models import sensible_params
from test_convert.torch_side import TorchModel

B, T = 3, 14
# Where the second of two packed documents starts. It is shorter than any config's context.
CUT = 4

# Slots before the first token of each row, where rows are decoded.
PADDING = np.array([0, 3, 1])
# Slots of the prompt, of which row 1 has one token.
PROMPT = 4


@dataclass(frozen=True)
class Parity:
    """Relative errors of what was compared, by name; and what should be exactly 0, by name."""

    logits: dict[str, float]
    loss: dict[str, float]
    gradients: dict[str, float]
    cached: dict[str, float]
    leaks: dict[str, float]
    # What shows that the above had something to compare.
    seen: dict[str, float]


def parity(config: ByteConfig, prompt_at_once: bool = True) -> Parity:
    """Runs both sides; the cache is filled by a prompt and then token by token, or bit by bit from the start."""
    params = sensible_params(config)
    jax_model, torch_model = JaxModel(config, params), TorchModel(config, params)
    found = Parity({}, {}, {}, {}, {}, {})
    given = batches(config)
    logits = {name: _compare_losses(found, name, batch, jax_model, torch_model) for name, batch in given.items()}
    second, unpadded = np.s_[:, CUT:], np.s_[1, 3:]
    found.seen["that packing matters"] = relative(logits["packed"][second], logits["plain"][second]) > 1e-2
    found.seen["that padding matters"] = relative(logits["padded"][unpadded], logits["plain"][unpadded]) > 1e-2
    if config.moe_capacity_factor is not None:
        held = _compare_losses(found, "training", given["padded"], jax_model, torch_model, training=True)
        found.seen["that capacity matters"] = relative(held, logits["padded"]) > 1e-2
    _compare_cached(found, jax_model, torch_model, prompt_at_once)
    _find_leaks(found, {"jax": jax_model, "torch": torch_model})
    return found


def batches(config: ByteConfig) -> dict[str, Batch]:
    """Plain rows, rows of two documents, and rows with padding on the left or on the right; the same tokens."""
    input_ids = np.random.default_rng(3).integers(3, config.vocab_size, (B, T)).astype(np.int32)
    slots = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    second = slots >= CUT
    # Row 0 has no padding, row 1 three on the left, row 2 five on the right.
    left, right = np.array([[0], [3], [0]]), np.array([[T], [T], [T - 5]])
    real = (left <= slots) & (slots < right)
    return {
        "plain": _batch(input_ids, slots, np.ones_like(slots)),
        "packed": _batch(input_ids, slots - CUT * second, 1 + second),
        "padded": _batch(input_ids, np.maximum(slots - left, 0), 1 * real),
    }


def _batch(input_ids: np.ndarray, position_ids: np.ndarray, segment_ids: np.ndarray) -> Batch:
    """Each token's label is the next one of its document."""
    labels = np.roll(input_ids, -1, axis=1)
    follows = (segment_ids == np.roll(segment_ids, -1, axis=1)) & (segment_ids != 0)
    follows[:, -1] = False
    return {
        "input_ids": input_ids,
        "position_ids": position_ids.astype(np.int32),
        "segment_ids": segment_ids.astype(np.int32),
        "labels": np.where(follows, labels, -100).astype(np.int32),
    }


def relative(ours: Any, theirs: Any, scale: float | None = None) -> float:
    """Largest difference in units of the largest value: what a tolerance on float32 sums can mean."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / (scale or np.abs(theirs).max()))


def _compare_losses(
    found: Parity, name: str, batch: Batch, jax_model: JaxModel, torch_model: TorchModel, training: bool = False
) -> np.ndarray:
    """Returns the logits in JAX."""
    logits, loss, dropped, jax_gradients = jax_model.loss(batch, training)
    their_logits, their_loss, gradients = torch_model.loss(batch, training)
    real = batch["segment_ids"] != 0  # padding gets logits, too, but of no meaning
    found.logits[name] = relative(logits[real], their_logits[real])
    found.loss[name] = relative(loss, their_loss)
    if training:
        found.seen["choices that found their expert full"] = dropped
    ours = weights.to_hf(jax_gradients, jax_model.config)
    assert ours.keys() == gradients.keys()
    for key, gradient in gradients.items():
        # Where nothing turns or normalises keys, their bias adds the same to all scores of a query: its gradient is
        # a sum of rounding errors, to be measured by that of the matrix which it stands beside.
        scale = np.abs(gradients[key.replace(".bias", ".weight")]).max() if key.endswith("k_proj.bias") else None
        found.gradients[f"{key}: {name}"] = relative(ours[key], gradient, scale)
    return logits


def _compare_cached(found: Parity, jax_model: JaxModel, torch_model: TorchModel, prompt_at_once: bool) -> None:
    """The second of the packed documents, decoded by itself: against each side's own pass over all at once.

    Rows are padded on the left by different amounts. Not the plain rows: rope_scaling dynamic changes the frequencies
    of keys that a cache holds already.
    """
    packed = batches(jax_model.config)["packed"]
    length = T - CUT
    source = np.arange(length) - PADDING[:, None]  # the token of the document that stands in each slot
    real = source >= 0
    rows = {
        "input_ids": np.take_along_axis(packed["input_ids"], CUT + np.maximum(source, 0), axis=1),
        "position_ids": np.maximum(source, 0).astype(np.int32),
        "segment_ids": real.astype(np.int32),
    }
    # Token by token; but through a window of two more tokens at a time than it is wide.
    chunk = 5 if jax_model.config.sliding_window == 2 else 1
    prompt = max(chunk, PROMPT) if prompt_at_once else 0
    pieces = [prompt] * (prompt > 0) + [chunk] * ((length - prompt) // chunk)
    for name, model in {"jax": jax_model, "torch": torch_model}.items():
        whole = np.take_along_axis(model.loss(packed)[0], CUT + np.maximum(source, 0)[..., None], axis=1)
        decoded, end = model.decode(rows, pieces, fresh=prompt_at_once), 0
        assert decoded.shape[1] == length
        for piece in pieces:
            new, end = np.s_[:, end : end + piece], end + piece
            found.cached[f"{name}: {end} tokens"] = relative(decoded[new][real[new]], whole[new][real[new]])


def _find_leaks(found: Parity, sides: dict[str, JaxModel | TorchModel]) -> None:
    """Gradients of random weights on the logits of one position, in the embeddings that it may not know of."""
    config = next(iter(sides.values())).config
    generator = np.random.default_rng(5)
    all_batches = batches(config)

    def gradient(model: JaxModel | TorchModel, batch: str, where: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        weights_BTV = generator.normal(size=(B, T, config.vocab_size)).astype(np.float32)
        weights_BTV *= where(np.arange(T))[None, :, None]
        return np.abs(model.embedding_gradient(all_batches[batch], weights_BTV)).max(axis=(0, 2))

    at, window = 8, config.sliding_window or T
    for name, model in sides.items():
        plain_T = gradient(model, "plain", lambda slots: slots == at)
        # Each layer looks back by a window.
        reach = config.num_hidden_layers * (window - 1)
        found.leaks[f"{name}: from later tokens"] = plain_T[at + 1 :].max()
        found.leaks[f"{name}: from beyond the window"] = plain_T[: max(0, at - reach)].max(initial=0.0)
        found.seen[f"{name}: from the tokens before"] = plain_T[max(0, at - reach) : at + 1].min()
        packed_T = gradient(model, "packed", lambda slots: slots >= CUT)
        found.leaks[f"{name}: from the first document into the second"] = packed_T[:CUT].max()
        packed_T = gradient(model, "packed", lambda slots: slots < CUT)
        found.leaks[f"{name}: from the second document into the first"] = packed_T[CUT:].max()
