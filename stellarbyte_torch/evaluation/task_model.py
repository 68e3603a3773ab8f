"""A folder's model as lm-eval's tasks use it: lm-eval's own class for Transformers."""

from typing import Any

from lm_eval.models.huggingface import HFLM

from stellarbyte_torch.evaluation.scorer import TorchScorer

# Rows of a batch are taken to have so many tokens, as most questions have fewer.
_ROW = 256


class FolderTaskModel(HFLM):
    """lm-eval's HFLM on a folder that we have loaded, which may be quantised."""

    add_bos_token: Any

    def __init__(self, scorer: TorchScorer, batch_tokens: int) -> None:
        super().__init__(
            pretrained=scorer.model,
            tokenizer=scorer.tokenizer,
            backend="causal",
            batch_size=max(1, batch_tokens // _ROW),
            max_length=scorer.positions,
            prefix_token_id=scorer.begin,
        )

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """See LM. The token that a tokenizer puts before a text is not scored as one of the text."""
        kept, self.add_bos_token = self.add_bos_token, False
        try:
            return list(super().loglikelihood_rolling(requests, disable_tqdm))
        finally:
            self.add_bos_token = kept
