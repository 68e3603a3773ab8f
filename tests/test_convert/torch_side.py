"""Everything that parity needs of a model in PyTorch."""

from collections.abc import Sequence

import numpy as np
import torch

from convert import weights
from convert.config import to_hf
from convert.weights import Params
from stellarbyte_jax.config import ByteConfig
from stellarbyte_torch import ByteConfig as TorchByteConfig
from stellarbyte_torch import ByteModel as TorchByteModel
from stellarbyte_torch.modeling_stellarbyte import ByteSparseMoeBlock
from test_convert.jax_side import Batch


class TorchModel:
    """The model that a user gets of these parameters: config and weights go through the converter."""

    def __init__(self, config: ByteConfig, params: Params) -> None:
        self.config = config
        self.model = TorchByteModel(TorchByteConfig(**to_hf(config, "float32")))
        state = {key: torch.tensor(np.asarray(tensor)) for key, tensor in weights.to_hf(params, config).items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert (missing, unexpected) == (["lm_head.weight"] if config.tie_word_embeddings else [], [])
        self.model.eval()

    def loss(self, batch: Batch, training: bool = False) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
        """Logits [B, T, V], the training loss, and the parameters' gradients; `training` holds experts to capacity."""
        for module in self.model.modules():
            if isinstance(module, ByteSparseMoeBlock):
                module.training = training  # and not those within: dropout would draw
        self.model.zero_grad()
        # The label of position t is the token at t + 1, which transformers shifts into place itself.
        labels = np.concatenate([np.full_like(batch["labels"][:, :1], -100), batch["labels"][:, :-1]], axis=1)
        output = self.model(
            _long(batch["input_ids"]),
            labels=_long(labels),
            output_router_logits=self.config.num_experts > 0,
            use_cache=False,
            **_where(batch),
        )
        output.loss.backward()
        gradients = {name: parameter.grad.numpy().copy() for name, parameter in self.model.named_parameters()}
        self.model.eval()
        return output.logits.detach().numpy(), output.loss.item(), gradients

    def embedding_gradient(self, batch: Batch, weights_BTV: np.ndarray) -> np.ndarray:
        """d(sum of weights · logits) / d(the embedding of each position): [B, T, D]."""
        embeddings = self.model.get_input_embeddings()(_long(batch["input_ids"])).detach().requires_grad_()
        logits = self.model(inputs_embeds=embeddings, use_cache=False, **_where(batch)).logits
        return torch.autograd.grad((torch.from_numpy(weights_BTV) * logits).sum(), embeddings)[0].numpy()

    @torch.no_grad()
    def decode(self, batch: Batch, pieces: Sequence[int], fresh: bool = True) -> np.ndarray:  # noqa: ARG002 - as in JAX
        """Logits [B, T, V] of tokens that come in pieces of so many, and see what came before in a cache."""
        cache, logits, start = None, [], 0
        for piece in pieces:
            new, start = slice(start, start + piece), start + piece
            output = self.model(
                _long(batch["input_ids"][:, new]),
                position_ids=_long(batch["position_ids"][:, new]),
                attention_mask=_long(batch["segment_ids"][:, :start] != 0),
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits.append(output.logits.numpy())
        return np.concatenate(logits, axis=1)


def _where(batch: Batch) -> dict[str, torch.Tensor]:
    """Padding goes as attention_mask; packed documents are seen by their positions, and only without one."""
    position_ids = {"position_ids": _long(batch["position_ids"])}
    segment_ids = batch["segment_ids"]
    return position_ids | ({"attention_mask": _long(segment_ids != 0)} if (segment_ids == 0).any() else {})


def _long(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).long()
