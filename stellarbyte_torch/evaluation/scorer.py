"""Scores tokens by the model in a Hugging Face folder, ours or a stock one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from stellarbyte.errors import UserError
from stellarbyte.evaluation.scorer import Encoded, TokenScores, character_bytes, check_ids
from stellarbyte.tokenizer_file import works
from stellarbyte_torch.decoder import context_of
from stellarbyte_torch.model_folder import load_model, load_tokenizer

# The numbers of logits that are in memory at once in float32 beside the model's own.
_LOGITS = 1 << 26
# The context of a model whose config sets no bound.
_BOUNDLESS = 1 << 30


class TorchScorer:
    """A causal language model with its tokenizer; see Scorer.

    Args:
        folder: the model's folder; its weights may be quantised.
        device: cpu, cuda …; by default CUDA if there is one.
        dtype: of the computation; auto is the saved one.

    Raises:
        UserError: the folder is missing or damaged, holds no such model, or its tokenizer has no token to begin with.
    """

    def __init__(self, folder: Path, device: str | None = None, dtype: str = "auto") -> None:
        self.model: Any = load_model(folder, device, dtype)
        self.tokenizer = load_tokenizer(folder)
        config = self.model.config.get_text_config()
        self.name = str(folder)
        self._vocab_size = int(self.model.get_input_embeddings().weight.shape[0])
        self.positions = context_of(self.model) or _BOUNDLESS
        self.begin = self._begin(config)
        self.facts: dict[str, Any] = {
            "model": self.name,
            "kind": "folder",
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def encode(self, text: str) -> Encoded:
        """See Scorer."""
        tokenizer: Any = self.tokenizer
        with works(self.name):
            encoding = tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=True,
                return_attention_mask=False,
                return_offsets_mapping=tokenizer.is_fast,
                truncation=False,
                verbose=False,
            )
        ids = np.array(encoding["input_ids"], np.int64)
        check_ids(ids, self._vocab_size, self.name)
        size = len(text.encode())
        if not tokenizer.is_fast:  # it does not tell, so tokens are taken to be of one length
            return Encoded(ids, np.arange(len(ids)) * size // max(1, len(ids)))
        before_C = np.concatenate([[0], np.cumsum(character_bytes(text))])
        return Encoded(ids, before_C[[start for start, _ in encoding["offset_mapping"]]].astype(np.int64))

    @torch.inference_mode()
    def score(self, ids_BT: np.ndarray, labels_BT: np.ndarray, lengths_B: np.ndarray) -> TokenScores:
        """See Scorer."""
        device = self.model.device
        (B, T), mask_BT = ids_BT.shape, np.arange(ids_BT.shape[1]) < lengths_B[:, None]
        logits_BTV = self.model(
            input_ids=torch.from_numpy(ids_BT.astype(np.int64)).to(device),
            attention_mask=torch.from_numpy(mask_BT.astype(np.int64)).to(device),
            use_cache=False,
        ).logits
        labels = torch.from_numpy(np.maximum(labels_BT, 0).astype(np.int64)).to(device)
        found = TokenScores(np.zeros((B, T), np.float32), np.zeros((B, T), np.float32), np.zeros((B, T), bool))
        size = max(1, _LOGITS // (B * logits_BTV.shape[-1]))
        for start in range(0, T, size):
            part = slice(start, start + size)
            scores_BCV, labels_BC = logits_BTV[:, part].float(), labels[:, part]
            total_BC = scores_BCV.logsumexp(-1)
            top_BC, likeliest_BC = scores_BCV.max(-1)
            found.log_p_BT[:, part] = (scores_BCV.gather(-1, labels_BC[..., None])[..., 0] - total_BC).cpu()
            found.top_BT[:, part] = (top_BC - total_BC).cpu()
            found.hit_BT[:, part] = (likeliest_BC == labels_BC).cpu()
        return found

    def _begin(self, config: Any) -> int:
        """The token before a text, as lm-eval chooses it: bos, or else eos."""
        tokenizer: Any = self.tokenizer
        for holder in (tokenizer, config):
            for name in ("bos_token_id", "eos_token_id"):
                value = getattr(holder, name, None)
                value = value[0] if isinstance(value, list) and value else value
                if isinstance(value, int) and 0 <= value < self._vocab_size:
                    return value
        raise UserError(
            f"{self.name} has neither a bos nor an eos token, with one of which a text begins: name one in "
            "tokenizer_config.json"
        )
