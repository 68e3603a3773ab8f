"""A run's model, as JAX computes it from lazily read tensors: one layer is in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert.verifying.jax_parts import name_in_layer, parts_of
from convert.verifying.rows import Batch
from convert.verifying.side import EMBEDDING, HEAD, NORM, Continuation, Stage, TokenIds, strips
from convert.weights import LazyTensor
from stellarbyte.architecture import ByteConfig
from stellarbyte.read_ahead import read_ahead

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
                del arrays  # what stands here is held while the other side computes
                yield _at_columns(f"layer {layer}", batches, x)
            scale = self._read(NORM)
            x = [self._parts.norm(scale, x_BTD) for x_BTD in x]
            yield Stage("norm", [np.asarray(x_BTD) for x_BTD in x])
            head = self._read_head()
            kept = [x_BTD[:, batch.columns] for x_BTD, batch in zip(x, batches, strict=True)]
            logits = [np.asarray(self._parts.logits(head, x_BCD)) for x_BCD in kept]
            del head
            yield Stage("logits", logits)

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
            columns = batch.columns
            ends = jax.block_until_ready(
                self._parts.head_gradients(
                    self._read(NORM), self._read_head(), x_BTD[:, columns], batch.labels[:, columns]
                )
            )
            x_gradient = jnp.zeros_like(x_BTD).at[:, columns].set(ends.in_x_BCD)
            yield "head", {NORM: np.asarray(ends.in_scale)}
            for rows in strips(ends.in_logits_BCV.shape[-1], x_BTD.shape[-1]):
                strip = self._parts.head_strip(ends.in_logits_BCV[:, :, rows], ends.hidden_BCD)
                yield "head", {HEAD: np.asarray(strip)}
            del ends, strip
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
            ids, places = np.unique(batch.input_ids, return_inverse=True)
            embedding = np.zeros((len(ids), x_gradient.shape[-1]), np.float32)
            np.add.at(embedding, places.reshape(-1), np.asarray(x_gradient).reshape(-1, embedding.shape[1]))
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

    def _read(self, key: str) -> jax.Array:
        self._used(self._tensors[key].nbytes)
        return self._on_device(key)

    def _on_device(self, key: str) -> jax.Array:
        """A copy, made at once: else the values would be there twice for as long as they are used."""
        values = _float32(np.asarray(self._tensors[key]))
        return jax.block_until_ready(jax.device_put(values, self._cpu, may_alias=False))

    def _read_head(self) -> jax.Array:
        return self._read(EMBEDDING if self._config.tie_word_embeddings else HEAD)

    def _read_layer(self, layer: int) -> dict[str, jax.Array]:
        keys = {name_in_layer(tensor): tensor.key for tensor in self._parts.tensors[layer]}
        arrays = dict(
            read_ahead((name, self._tensors[key].nbytes, partial(self._on_device, key)) for name, key in keys.items())
        )
        self._used(sum(self._tensors[key].nbytes for key in keys.values()))
        return arrays


def _at_columns(name: str, batches: Sequence[Batch], x: Sequence[jax.Array]) -> Stage:
    return Stage(name, [np.asarray(x_BTD[:, batch.columns]) for x_BTD, batch in zip(x, batches, strict=True)])


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)
