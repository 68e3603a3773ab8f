"""Corruptions of an export that `verify` must find, and the checks that find them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from convert import hf_checkpoint, run_checkpoint, shards
from convert.run_checkpoint import RunCheckpoint
from stellarbyte_jax.data.tokenizer import Tokenizer
from test_convert.models import sensible_params, tiny

HEAD_DIM, WINDOW = 8, 5

# A window, rotary positions, and as many query channels as hidden ones, so that a matrix can be transposed.
CONFIG = tiny(
    vocab_size=300, hidden_size=32, position_embedding="rope", sliding_window=WINDOW, max_position_embeddings=64
)
TIED = tiny(vocab_size=300, hidden_size=32, position_embedding="rope", tie_word_embeddings=True)

# Checks that read the files. The others run the models, and are told apart in the table.
FILES = ("config", "modeling files", "keys and shapes", "sha256 of each tensor", "small files")

Q_PROJ, NORM = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.post_attention_layernorm.weight"


@dataclass(frozen=True)
class Mutation:
    """A corruption: what it does to a folder, the checks that must fail, and whether the model's head is tied."""

    name: str
    corrupt: Callable[[Path], None]
    found_by: tuple[str, ...]
    tied: bool = False


def make_run(folder: Path, tokenizer: Tokenizer, *, tied: bool) -> tuple[Path, Path]:
    """A run, and its export to corrupt."""
    config = TIED if tied else CONFIG
    run, export = folder / "run", folder / "hf"
    run_checkpoint.save(run, RunCheckpoint(sensible_params(config), config, tokenizer.files, step=0))
    hf_checkpoint.to_hf(run, export)
    return run, export


def _tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / shards.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / shards.WEIGHTS, metadata={"format": "pt"})


def _fields(folder: Path, name: str = "config.json", **fields: Any) -> None:
    content = json.loads((folder / name).read_text("utf-8"))
    (folder / name).write_text(json.dumps(content | fields), "utf-8")


def swap_heads(folder: Path) -> None:
    """The queries of the second head, which reads the first key head, and of the third, which reads the second."""

    def swap(tensors: dict[str, np.ndarray]) -> None:
        heads = tensors[Q_PROJ].reshape(4, HEAD_DIM, -1)
        tensors[Q_PROJ] = heads[[0, 2, 1, 3]].reshape(tensors[Q_PROJ].shape).copy()

    _tensors(folder, swap)


def transpose(folder: Path) -> None:
    """A square kernel."""
    _tensors(folder, lambda tensors: tensors.update({Q_PROJ: tensors[Q_PROJ].T.copy()}))


def change_theta(folder: Path) -> None:
    """Of positions' rotation."""
    _fields(folder, rope_theta=500000.0)


def flip_last_bit(folder: Path) -> None:
    """The bit of a mantissa that matters least."""
    _tensors(folder, lambda tensors: tensors[NORM].view(np.uint32).__setitem__(3, tensors[NORM].view(np.uint32)[3] ^ 1))


def flip_sign_bit(folder: Path) -> None:
    """The sign of one weight of a norm."""
    _tensors(folder, lambda tensors: tensors[NORM].__setitem__(3, -tensors[NORM][3]))


def drop_norm(folder: Path) -> None:
    """One norm's weights."""
    _tensors(folder, lambda tensors: tensors.pop(NORM))


def reset_norm(folder: Path) -> None:
    """What Transformers puts in a missing norm's place."""
    _tensors(folder, lambda tensors: tensors[NORM].fill(1.0))


def reorder_vocabulary(folder: Path) -> None:
    """Two tokens change their ids."""
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    a, b = "a", "b"
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def widen_window(folder: Path) -> None:
    """By one token."""
    _fields(folder, sliding_window=WINDOW + 1)


def untie_head(folder: Path) -> None:
    """A head of its own, with the embedding's rows in another order."""

    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"] = np.roll(tensors["model.embed_tokens.weight"], 1, axis=0)

    _tensors(folder, add)
    _fields(folder, tie_word_embeddings=False)


def store_other_head(folder: Path) -> None:
    """The same beside a config that says the head is tied."""
    untie_head(folder)
    _fields(folder, tie_word_embeddings=True)


_COMPUTED = ("logits", "greedy continuations", "gradients")
_BITS, _KEYS = "sha256 of each tensor", "keys and shapes"

MUTATIONS = (
    Mutation("two heads swapped", swap_heads, (_BITS, *_COMPUTED)),
    Mutation("a kernel transposed", transpose, (_BITS, *_COMPUTED)),
    Mutation("another rope_theta", change_theta, ("config", *_COMPUTED)),
    Mutation("one bit flipped, the least", flip_last_bit, (_BITS,)),
    Mutation("one bit flipped, a sign", flip_sign_bit, (_BITS, *_COMPUTED)),
    Mutation("a norm missing", drop_norm, (_KEYS,)),
    Mutation("a norm reset to ones", reset_norm, (_BITS, *_COMPUTED)),
    Mutation("a tokenizer of another order", reorder_vocabulary, ("tokenizer", "small files")),
    Mutation("a window one token wider", widen_window, ("config", *_COMPUTED)),
    Mutation("a tied head untied, in another order", untie_head, ("config", _KEYS, *_COMPUTED), tied=True),
    Mutation("another head beside a tied one", store_other_head, (_KEYS,), tied=True),
)
