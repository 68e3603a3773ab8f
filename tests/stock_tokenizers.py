"""Tiny tokenizers in the exact shape of stock models' ones, which the tokenizers library trains on a few texts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = _CONTRACTIONS + r"|\p{N}{1,3}" + _REST
QWEN_2 = _CONTRACTIONS + r"|\p{N}" + _REST

TEXTS = [
    "def add(first, second):\n        return first + second  # the sum of 12345 and 678\n" * 4,
    "It's what they've said: we'll see.\r\n\r\n  The end, the end of the story.\n" * 4,
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。使用Python代码。" * 4,  # noqa: RUF001 - a full-width comma is meant
]


def llama_3(folder: Path, texts: Sequence[str] = TEXTS, size: int = 400) -> Path:
    """Byte-level, whole words first (ignore_merges), bos before a text, no pad but reserved tokens."""
    backend = _byte_level(LLAMA_3, texts, size, ignore_merges=True)
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    backend.add_special_tokens([AddedToken(token, special=True) for token in [*special, "<|eot_id|>"]])
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _bos_first("<|begin_of_text|>", backend)]
    )
    template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|begin_of_text|>' + m['role'] + m['content'] + '<|eot_id|>' }}"
        "{% endfor %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "model_max_length": 131072,
        "chat_template": template,
    }
    return _saved(backend, folder, settings)


def qwen_2(folder: Path, texts: Sequence[str] = TEXTS, size: int = 400) -> Path:
    """Byte-level under NFC, no bos, the end of a text as pad too, and tool tags that are text."""
    backend = _byte_level(QWEN_2, texts, size)
    backend.normalizer = normalizers.NFC()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": "{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}{% endfor %}",
    }
    return _saved(backend, folder, settings)


def llama_2(folder: Path, texts: Sequence[str] = TEXTS, size: int = 600) -> Path:
    """In SentencePiece's manner, with a normalizer that puts ▁ before a text and for each blank."""
    backend = _sentencepiece(texts, size)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _saved_sentencepiece(backend, folder)


def mistral(folder: Path, texts: Sequence[str] = TEXTS, size: int = 600) -> Path:
    """In SentencePiece's manner, with a Metaspace that puts ▁ before a text unless it begins with a blank."""
    backend = _sentencepiece(texts, size)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return _saved_sentencepiece(backend, folder)


STOCK: dict[str, Callable[..., Path]] = {
    "llama-3": llama_3,
    "qwen-2": qwen_2,
    "llama-2": llama_2,
    "mistral": mistral,
}


def _byte_level(pattern: str, texts: Sequence[str], size: int, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def _sentencepiece(texts: Sequence[str], size: int) -> tokenizers.Tokenizer:
    """A BPE with bytes to fall back to; no merge crosses a blank."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    learner.train_from_iterator([text.replace("\n", " ") for text in texts], trainer)
    learnt = json.loads(learner.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: index for index, token in enumerate([*first, *learnt["vocab"]])}
    merges = [tuple(merge) for merge in learnt["merges"]]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in first[:3]])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = _bos_first("<s>", backend)
    return backend


def _bos_first(bos: str, backend: tokenizers.Tokenizer) -> Any:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )


def _saved_sentencepiece(backend: tokenizers.Tokenizer, folder: Path) -> Path:
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False, "normalized": False},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    return _saved(backend, folder, settings)


def _saved(backend: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), "utf-8")
    return folder
