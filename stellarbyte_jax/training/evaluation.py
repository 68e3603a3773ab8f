"""Measures loss, perplexity, accuracy and bits per byte over a split."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte.figures import perplexity
from stellarbyte.places import Place, place
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata
from stellarbyte_jax.checkpoints.lora_base import load_weights
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import run_config_from_dict
from stellarbyte_jax.data.loader import validation_batches
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.load import check_weights
from stellarbyte_jax.training.own_shards import with_own_shards
from stellarbyte_jax.training.state import Params, abstract_model, weight_grid
from stellarbyte_jax.training.step import EvalStep, make_eval_step


def evaluate(
    eval_step: EvalStep, params: Params, batches: Iterable[Mapping[str, Any]], byte_lengths_V: jax.Array
) -> dict[str, float]:
    """Means over all labelled tokens of the batches; padding does not count.

    Bits per byte are the loss of the whole text divided by its length in bytes, so that tokenizers can be compared. The
    sums over batches are kept in float64.
    """
    loss = correct = tokens = byte_count = 0.0
    for batch in batches:
        sums, batch_bytes = jax.device_get(eval_step(params, byte_lengths_V, batch))
        loss += float(sums.loss)
        correct += float(sums.correct)
        tokens += float(sums.tokens)
        byte_count += float(batch_bytes)
    mean = loss / max(tokens, 1.0)
    return {
        "loss": mean,
        "perplexity": perplexity(mean),
        "accuracy": correct / max(tokens, 1.0),
        "bits_per_byte": loss / math.log(2) / max(byte_count, 1.0),
        "tokens": tokens,
    }


def evaluate_run(
    run_dir: str | Place,
    step: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    shards: str | None = None,
    *,
    ema: bool = False,
) -> tuple[dict[str, float], int]:
    """(figures over the run's validation split, step of the checkpoint).

    progress: called with (batches done, number of all batches). shards: a folder of token shards to use instead of the
    run's own. ema: whether to measure the moving average of the weights.

    Raises:
        UserError: there is no checkpoint; the token shards are gone or damaged, hold other data than the run's, or were
            made with another tokenizer; or the loss is not finite.
    """
    run = load_trained_run(run_dir, step, shards, ema=ema)
    training = run.config.training
    graphdef, _ = abstract_model(run.config.model, Execution(training.dtype, weight_grid=weight_grid(training)))
    batches = run.validation_batches(progress=progress)
    figures = evaluate(
        jax.jit(make_eval_step(graphdef)),
        jax.device_put(run.params),
        batches,
        byte_lengths(run.tokenizer, run.config.model.vocab_size),
    )
    if not math.isfinite(figures["loss"]):
        raise UserError(
            f"the loss of step {run.step} of {run_dir} on its validation split is {figures['loss']}: its weights "
            "are of no use; choose an earlier one by --step"
        )
    return figures, run.step


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint with the config, the tokenizer and the manifest of the token shards that fit it."""

    params: Params
    config: RunConfig
    tokenizer: Tokenizer
    manifest: Manifest
    step: int

    def validation_batches(
        self, max_batches: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches of the validation split, of the run's batch size."""
        batch_size = self.config.training.batch_size
        return validation_batches(self.config.data, self.manifest, batch_size, max_batches, progress=progress)


def load_trained_run(
    run_dir: str | Place, step: int | None = None, shards: str | None = None, *, ema: bool = False
) -> TrainedRun:
    """The checkpoint of `step`, or the newest, with the token shards that fit it; raises as `evaluate_run` does."""
    params, metadata, step = load_weights(run_dir, step, ema=ema)
    config = _run_config(metadata, run_dir)
    check_weights(params, config.model, f"{run_dir}/checkpoints/{step}")
    tokenizer = Tokenizer(metadata.tokenizer_files, str(run_dir))
    config, manifest = with_own_shards(config, metadata.data, place(run_dir), tokenizer, shards)
    return TrainedRun(params, config, tokenizer, manifest, step)


def byte_lengths(tokenizer: Tokenizer, vocab_size: int) -> jax.Array:
    """Bytes of text that each token stands for, int32 [V]; 0 for ids that the tokenizer does not use."""
    lengths_V = np.zeros(vocab_size, np.int32)
    lengths_V[: tokenizer.vocab_size] = tokenizer.byte_lengths
    return jnp.asarray(lengths_V)


def _run_config(metadata: RunMetadata, run_dir: str | Place) -> RunConfig:
    if "data" not in metadata.config:
        raise UserError(
            f"{run_dir} holds an imported model, which has no validation split of its own: name text with --data"
        )
    return run_config_from_dict(metadata.config, str(run_dir))


def eval_step_on_mesh(graphdef: nnx.GraphDef, weights_shardings: Params, layout: Layout) -> EvalStep:
    """The compiled evaluation step for batches that lie by this layout; the weights lie as their shardings say."""
    everywhere = layout.sharding()
    return jax.jit(
        make_eval_step(graphdef),
        in_shardings=(weights_shardings, everywhere, layout.sharding("batch", "length")),
        out_shardings=everywhere,
    )
