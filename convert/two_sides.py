"""Asks one model the same questions in JAX and in PyTorch, both in float32 on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convert.weights import Params
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte_jax.data.tokenizer import Tokenizer

TokenIds = list[int]


class Side(Protocol):
    """The questions that both sides answer; each prompt and text is answered by itself."""

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text, without special tokens; one that is written in a text stays text."""

    def logits(self, sequences: Sequence[TokenIds]) -> list[np.ndarray]:
        """float32 [T, V] for each sequence of T tokens."""

    def greedy(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[TokenIds]:
        """The greedy continuation of each prompt, up to its eos and without it."""


class JaxSide:
    """The model of a run."""

    def __init__(self, params: Params, config: ByteConfig, tokenizer: Tokenizer) -> None:
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from stellarbyte_jax.training.state import abstract_model

        self._config, self._tokenizer = config, tokenizer
        self._cpu = jax.devices("cpu")[0]
        self._params = jax.device_put(jax.tree.map(np.asarray, params), self._cpu)
        with jax.default_device(self._cpu):
            self._graphdef = abstract_model(config)[0]
        self._logits = jax.jit(lambda params, ids: nnx.merge(self._graphdef, params)(jnp.asarray(ids)).logits)

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """As in `Side`."""
        return [self._tokenizer.encode(text) for text in texts]

    def logits(self, sequences: Sequence[TokenIds]) -> list[np.ndarray]:
        """As in `Side`, in one batch, because tokens to the right of a token have no influence on it.

        (Dynamic rope scaling looks at the longest position, but not before max_position_embeddings.)
        """
        import jax

        longest = max(map(len, sequences))
        ids_BT = np.full((len(sequences), longest), self._config.pad_token_id, np.int32)
        for row, ids in zip(ids_BT, sequences, strict=True):
            row[: len(ids)] = ids
        with jax.default_device(self._cpu):
            logits_BTV = np.asarray(self._logits(self._params, ids_BT))
        return [logits_TV[: len(ids)] for logits_TV, ids in zip(logits_BTV, sequences, strict=True)]

    def greedy(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[TokenIds]:
        """As in `Side`."""
        import jax
        from flax import nnx

        from stellarbyte_jax.inference.generate import Generator

        with jax.default_device(self._cpu):
            return Generator(nnx.merge(self._graphdef, self._params)).generate(prompts, max_new_tokens)


class TorchSide:
    """The model of an exported folder, as transformers loads it; no saved setting changes how it generates.

    Raises:
        UserError: torch or transformers is not installed, or the folder cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        require_torch()
        from transformers.utils import logging

        from stellarbyte_torch.generate import load

        logging.disable_progress_bar()
        self._model: Any
        self._model, self._tokenizer = load(folder, device="cpu", dtype="float32")

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """As in `Side`."""
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return [list(self._tokenizer.encode(text, **options)) if text else [] for text in texts]

    def logits(self, sequences: Sequence[TokenIds]) -> list[np.ndarray]:
        """As in `Side`."""
        import torch

        with torch.inference_mode():
            return [self._model(torch.tensor([ids]), use_cache=False).logits[0].numpy() for ids in sequences]

    def greedy(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> list[TokenIds]:
        """As in `Side`."""
        import torch

        continued, eos = [], self._model.config.eos_token_id
        for ids in prompts:
            output = self._model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=self._model.config.pad_token_id,
            )
            new_ids = output[0, len(ids) :].tolist()
            continued.append(new_ids[: new_ids.index(eos)] if eos in new_ids else new_ids)
        return continued


def encode_by_default(folder: Path, texts: Sequence[str]) -> list[TokenIds]:
    """Token ids of each text as a user of transformers gets them from the folder, with special tokens around it."""
    from stellarbyte_torch.model_folder import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return [list(tokenizer(text, split_special_tokens=True)["input_ids"]) for text in texts]


def require_torch() -> None:
    """Raises UserError with the command to run if torch or transformers is missing."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"verify compares with PyTorch, but {error.name} is not installed: pip install 'stellarbyte[torch]'"
        ) from error
