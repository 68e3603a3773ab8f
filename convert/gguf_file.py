"""Writes a model as one GGUF file, which llama.cpp and everything built on it reads."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from convert.gguf_tokenizer import GGUFTokenizer
from convert.shards import Progress
from convert.weights import LazyTensor
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError

ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""The family of Transformers -> llama.cpp's name of the architecture."""

KINDS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""The dtype of the matrices, by the name that an option gives -> gguf's name. Vectors and routers stay in F32."""

_BLOCK = 32  # the values of a row that Q8_0 quantizes together


def write(
    path: Path,
    config: ByteConfig,
    family: str,
    tensors: Mapping[str, LazyTensor],
    tokenizer: GGUFTokenizer,
    kind: str,
    progress: Progress | None = None,
) -> int:
    """Writes the file beside its place, then renames it; returns its size in bytes. One tensor is in memory at a time.

    Args:
        path: the file.
        config: the model's config, as the family holds it.
        family: a name in `ARCHITECTURES`.
        tensors: our Hugging Face key -> float32 tensor.
        tokenizer: the tokenizer's metadata.
        kind: a name in `KINDS`.
        progress: called while tensors are written.

    Raises:
        UserError: the package gguf is missing, a value leaves the range of float16, or the file cannot be written.
    """
    gguf = import_gguf()
    architecture = ARCHITECTURES[family]
    partial = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    _add_config(writer, config, path.stem, kind, gguf)
    _add_tokenizer(writer, config, tokenizer)
    parts = list(_parts(tensors, config, architecture, gguf))
    kinds = [_kind_of(name, part.shape, kind, gguf) for name, part in parts]
    sizes = [
        _add_info(writer, name, part.shape, wanted, gguf) for (name, part), wanted in zip(parts, kinds, strict=True)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            done = 0
            for (name, part), wanted, size in zip(parts, kinds, sizes, strict=True):
                writer.write_tensor_data(_encoded(name, np.asarray(part), wanted, gguf))
                done += size
                if progress is not None:
                    progress(done, sum(sizes))
            for file in writer.fout:
                file.flush()
                os.fsync(file.fileno())
            writer.close()
            partial.replace(path)
        finally:
            writer.close()
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def import_gguf() -> Any:
    """The package gguf. Raises UserError if it is not installed."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError("GGUF needs the package gguf: pip install 'stellarbyte[gguf]'") from error
    return gguf


def _add_config(writer: Any, config: ByteConfig, name: str, kind: str, gguf: Any) -> None:
    file_types = gguf.LlamaFileType
    mostly = file_types.ALL_F32 if kind == "f32" else file_types[f"MOSTLY_{KINDS[kind]}"]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(mostly)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_theta))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_tokenizer(writer: Any, config: ByteConfig, tokenizer: GGUFTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    writer.add_token_merges(tokenizer.merges)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _parts(
    tensors: Mapping[str, LazyTensor], config: ByteConfig, architecture: str, gguf: Any
) -> Iterator[tuple[str, LazyTensor]]:
    """(name in GGUF, float32 tensor) of each tensor there; experts' gate and up are two."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)

    @lru_cache(maxsize=1)  # gate and up follow one another
    def whole(key: str) -> np.ndarray:
        return np.asarray(tensors[key])

    for key, tensor in tensors.items():
        if key.endswith("mlp.experts.gate_up_proj"):
            E, both, D = tensor.shape
            for index, half in enumerate(("gate_proj", "up_proj")):
                rows = slice(index * both // 2, (index + 1) * both // 2)
                name = known.get_name(key.replace("gate_up_proj", half))
                part = LazyTensor((E, both // 2, D), tensor.dtype, lambda key=key, rows=rows: whole(key)[:, rows])  # type: ignore[misc]
                yield f"{name}.weight", part
            continue
        module = key.removesuffix(".weight")
        name = known.get_name(module)
        assert name is not None, key
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            tensor = _with_pairs_together(tensor, heads or 0)
        yield f"{name}.weight", tensor


def _with_pairs_together(tensor: LazyTensor, heads: int) -> LazyTensor:
    """The projection with the two channels that RoPE turns together side by side, as llama.cpp's Llama has them."""

    def read() -> np.ndarray:
        values = np.asarray(tensor)
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)

    return LazyTensor(tensor.shape, tensor.dtype, read)


def _kind_of(name: str, shape: tuple[int, ...], kind: str, gguf: Any) -> Any:
    types = gguf.GGMLQuantizationType
    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return types.F32
    if kind == "q8_0" and shape[-1] % _BLOCK:
        return types.F16
    return types[KINDS[kind]]


def _add_info(writer: Any, name: str, shape: tuple[int, ...], kind: Any, gguf: Any) -> int:
    """Announces a tensor; returns its size in bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    nbytes = int(np.prod(shape, dtype=np.int64)) // block * size
    # Without raw bytes the writer takes the shape for the values'.
    writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=kind)
    return nbytes


def _encoded(name: str, values: np.ndarray, kind: Any, gguf: Any) -> np.ndarray:
    if kind == gguf.GGMLQuantizationType.F16:
        beyond = int((np.abs(values) > np.finfo(np.float16).max).sum())
        if beyond:
            raise UserError(
                f"{name} has {beyond} of {values.size} values that are beyond float16: export with --dtype bf16 or f32"
            )
    return np.ascontiguousarray(gguf.quants.quantize(np.ascontiguousarray(values), kind))
