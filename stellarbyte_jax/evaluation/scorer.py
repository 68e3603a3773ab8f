"""Scores tokens by a run's model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.evaluation.scorer import Encoded, TokenScores, check_ids
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.lora_base import load_weights
from stellarbyte_jax.config_file import model_config_from_dict
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.training.load import check_weights
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_jax.training.token_scores import token_scores


class JaxScorer:
    """The model of a run's checkpoint; see Scorer.

    Args:
        run_dir: the run; adapters are merged into their base.
        step: the checkpoint; by default the newest.
        dtype: of the computation.
        ema: whether to take the moving average of the weights.

    Raises:
        UserError: there is no checkpoint, none can be read, or its weights do not fit the model or are not finite.
    """

    def __init__(self, run_dir: Place, step: int | None = None, dtype: str = "float32", *, ema: bool = False) -> None:
        params, metadata, step = load_weights(run_dir, step, ema=ema)
        where = f"{run_dir}/checkpoints/{step}"
        config = model_config_from_dict(metadata.model, where)
        check_weights(params, config, where)
        graphdef, _ = abstract_model(config, Execution(dtype))
        self.params = jax.device_put(params)
        self.graphdef: nnx.GraphDef[ByteForCausalLM] = graphdef
        self.tokenizer = Tokenizer(metadata.tokenizer_files, str(run_dir))
        self.name = str(run_dir)
        self.positions = config.max_position_embeddings
        self.begin = self.tokenizer.bos_token_id
        self.facts: dict[str, Any] = {"model": self.name, "kind": "run", "step": step, "dtype": dtype}
        self._vocab_size = config.vocab_size
        self._score = jax.jit(functools.partial(_score, graphdef))

    def encode(self, text: str) -> Encoded:
        """See Scorer."""
        ids = np.array(self.tokenizer.encode(text), np.int64)
        check_ids(ids, self._vocab_size, self.name)
        lengths = self.tokenizer.byte_lengths[ids]
        # The first token may hold a blank that is not the text's; bos then has a length of -1.
        return Encoded(ids, np.cumsum(lengths) - lengths + min(0, int(self.tokenizer.byte_lengths[self.begin])))

    def score(self, ids_BT: np.ndarray, labels_BT: np.ndarray, lengths_B: np.ndarray) -> TokenScores:
        """See Scorer."""
        segments_BT = (np.arange(ids_BT.shape[1]) < lengths_B[:, None]).astype(np.int32)
        return TokenScores(*map(np.asarray, self._score(self.params, ids_BT, labels_BT, segments_BT)))


def _score(
    graphdef: nnx.GraphDef[ByteForCausalLM],
    params: Any,
    ids_BT: jax.Array,
    labels_BT: jax.Array,
    segments_BT: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    model = nnx.merge(graphdef, params)
    positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1], dtype=jnp.int32), ids_BT.shape)
    return token_scores(model, model.model(ids_BT, positions_BT, segments_BT).hidden, labels_BT)
