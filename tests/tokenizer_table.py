"""Bytes per token of our pattern and of GPT-4's: python tests/tokenizer_table.py NAME=FILE.txt …

Each file is cut into parts of 5,000 characters; of ten parts nine are trained on and one is measured.
"""

import sys
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stellarbyte_jax.data.tokenizer_training import _pre_tokenizer, _split

SIZES = (1_000, 8_000, 32_000)
GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def bytes_per_token(pattern: str, parts: list[str], size: int) -> float:
    """Of the parts that were kept from a tokenizer of so many tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = _pre_tokenizer(pattern), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((part for i, part in enumerate(parts) if i % 10 != 3), trainer)
    kept = parts[3::10]
    tokens = sum(len(encoding) for encoding in tokenizer.encode_batch(kept))
    return sum(len(part.encode()) for part in kept) / tokens


def main(files: list[str]) -> None:
    """Prints the table as Markdown."""
    print("| text | tokens | GPT-4's | ours | |\n| --- | --- | --- | --- | --- |")
    for file in files:
        name, _, path = file.partition("=")
        text = Path(path).read_text(encoding="utf-8")
        parts = [text[start : start + 5000] for start in range(0, len(text), 5000)]
        for size in SIZES:
            theirs, ours = bytes_per_token(GPT_4, parts, size), bytes_per_token(_split(), parts, size)
            print(f"| {name} | {size:,} | {theirs:.3f} | {ours:.3f} | {ours / theirs - 1:+.1%} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
