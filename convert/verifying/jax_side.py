"""A run's model, as JAX computes it from lazily read tensors: one layer is in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.verifying.jax_parts import name_in_layer, parts_of
from convert.verifying.rows import Batch
from convert.verifying.side import EMBEDDING, HEAD, LOSS_ROWS, NORM, Continuation, Stage, TokenIds
from convert.weights import LazyTensor
from stellarbyte.architecture import ByteConfig

_ZETA = "model.rotary_emb.zeta"


class JaxSide:
    """As `Side` in JAX: its hidden states go through one layer after another, whose weights are read and dropped.

    tensors: Hugging Face key -> tensor, as `weights.to_hf` names them. used: called with the bytes of the weights of
    each stage, once that has been computed.
    """

    name = "JAX"

    def __init__(
        self, config: ByteConfig, tensors: Mapping[str, LazyTensor], used: Callable[[int], None] = lambda _: None
    ) -> None:
        self._config, self._tensors, self._used = config, tensors, used
        self._cpu = jax.devices("cpu")[0]
        with jax.default_device(self._cpu):
            self._parts = parts_of(config)

    def walk(self, batches: Sequence[Batch]) -> Iterator[Stage]:
        """As in `Side`."""
        with jax.default_device(self._cpu):
            x, tables = self._embedded(batches), [self._turns(batch.position_ids) for batch in batches]
            yield _at_columns("embedding", batches, x)
            for layer in self._parts.tensors:
                arrays, program = self._read_layer(layer), self._parts.layer(layer)
                x = [
                    program(arrays, x_BTD, turns, batch.segment_ids)
                    for x_BTD, turns, batch in zip(x, tables, batches, strict=True)
                ]
                x = jax.block_until_ready(x)
                yield _at_columns(f"layer {layer}", batches, x)
            scale = self._read(NORM)
            x = [self._parts.norm(scale, x_BTD) for x_BTD in x]
            yield Stage("norm", [np.asarray(x_BTD) for x_BTD in x])
            head = self._read_head()
            kept = [x_BTD[:, batch.columns] for x_BTD, batch in zip(x, batches, strict=True)]
            yield Stage("logits", [np.asarray(self._parts.logits(head, x_BCD)) for x_BCD in kept])

    def continued(self, prompts: Sequence[TokenIds], count: int, given_BS: np.ndarray | None) -> Continuation:
        """As in `Side`; the tokens must be given. All S of them go through a layer before the next layer is read."""
        assert given_BS is not None, "JAX follows what PyTorch has chosen, so that each layer is read once"
        lengths = np.array([len(prompt) for prompt in prompts])
        slots = np.arange(lengths.max())
        real = slots < lengths[:, None]
        ids = np.full(real.shape, self._config.pad_token_id, np.int32)
        ids[real] = np.concatenate([np.asarray(prompt) for prompt in prompts])
        position_ids = np.minimum(slots, lengths[:, None] - 1).astype(np.int32)
        # The last token of a prompt decides the first that follows, so S places are the prompt's last and S - 1 more.
        later = (lengths[:, None] + np.arange(count)).astype(np.int32)
        with jax.default_device(self._cpu):
            embedding = np.asarray(self._tensors[EMBEDDING])
            prompt_BTD, x_SB1D = (
                jnp.asarray(_float32(embedding[rows])) for rows in (ids, given_BS.T[:, :, None].astype(np.int32))
            )
            self._used(self._tensors[EMBEDDING].nbytes)
            del embedding
            prompt_tables, tables = self._turns(position_ids), self._turns(later)
            tables_S = jax.tree.map(lambda table_BSH: table_BSH.swapaxes(0, 1)[:, :, None], tables)
            for layer in self._parts.tensors:
                program = self._parts.cached_layer(layer)
                prompt_BTD, x_SB1D = jax.block_until_ready(
                    program(self._read_layer(layer), prompt_BTD, x_SB1D, prompt_tables, tables_S, real.astype(np.int32))
                )
            last_B1D = jnp.take_along_axis(prompt_BTD, jnp.asarray(lengths - 1)[:, None, None], axis=1)
            read_BSD = x_SB1D[:, :, 0].swapaxes(0, 1)
            before_BSD = jnp.concatenate([last_B1D, read_BSD[:, :-1]], axis=1)
            scale = self._read(NORM)
            chosen = self._parts.chosen(scale, self._read_head(), before_BSD, jnp.asarray(given_BS, jnp.int32))
            hidden_BSD = np.asarray(self._parts.norm(scale, read_BSD))
        return Continuation(
            np.asarray(chosen.tokens_BS), hidden_BSD, np.asarray(chosen.behind_BS), float(chosen.largest)
        )

    def gradients(self, batch: Batch) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """As in `Side`."""
        with jax.default_device(self._cpu):
            (x_BTD,), tables = self._embedded([batch]), self._turns(batch.position_ids)
            inputs = []
            for layer in self._parts.tensors:
                inputs.append(x_BTD)
                program = self._parts.layer(layer)
                x_BTD = jax.block_until_ready(program(self._read_layer(layer), x_BTD, tables, batch.segment_ids))
            _, (scale, head_VD, few_BTD) = self._parts.loss_gradients(
                self._read(NORM), self._read_head(), x_BTD[:LOSS_ROWS], batch.labels[:LOSS_ROWS]
            )
            x_gradient = jnp.zeros_like(x_BTD).at[:LOSS_ROWS].set(few_BTD)
            found = {NORM: np.asarray(scale), HEAD: np.asarray(head_VD)}
            del head_VD
            yield "head", found
            del found
            in_tables = jax.tree.map(jnp.zeros_like, tables)
            for layer in reversed(self._parts.tensors):
                program = self._parts.layer_gradients(layer)
                arrays, x_gradient, more = program(
                    self._read_layer(layer), inputs.pop(), tables, batch.segment_ids, x_gradient
                )
                in_tables = jax.tree.map(jnp.add, in_tables, more)
                keys = {name_in_layer(tensor): tensor.key for tensor in self._parts.tensors[layer]}
                found = {keys[name]: np.asarray(array) for name, array in arrays.items()}
                del arrays
                yield f"layer {layer}", found
                del found
            embedding = np.zeros(self._tensors[EMBEDDING].shape, np.float32)
            np.add.at(embedding, batch.input_ids.reshape(-1), np.asarray(x_gradient).reshape(-1, embedding.shape[1]))
            self._used(embedding.nbytes)
            yield "embedding", {EMBEDDING: embedding}
            if self._config.xpos_learnable:
                _, pull = jax.vjp(self._parts.tables, self._read(_ZETA), batch.position_ids)
                yield "positions", {_ZETA: np.asarray(pull(in_tables)[0])}

    def _embedded(self, batches: Sequence[Batch]) -> list[jax.Array]:
        embedding = np.asarray(self._tensors[EMBEDDING])
        self._used(embedding.nbytes)
        return [jnp.asarray(_float32(embedding[batch.input_ids])) for batch in batches]

    def _turns(self, position_ids: np.ndarray) -> Any:
        zeta = self._read(_ZETA) if self._config.xpos_learnable else None
        return self._parts.tables(zeta, position_ids)

    def _read(self, key: str) -> np.ndarray:
        self._used(self._tensors[key].nbytes)
        return _float32(np.asarray(self._tensors[key]))

    def _read_head(self) -> np.ndarray:
        return self._read(EMBEDDING if self._config.tie_word_embeddings else HEAD)

    def _read_layer(self, layer: int) -> dict[str, np.ndarray]:
        return {name_in_layer(tensor): self._read(tensor.key) for tensor in self._parts.tensors[layer]}


def _at_columns(name: str, batches: Sequence[Batch], x: Sequence[jax.Array]) -> Stage:
    return Stage(name, [np.asarray(x_BTD[:, batch.columns]) for x_BTD, batch in zip(x, batches, strict=True)])


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)
