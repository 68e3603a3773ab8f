"""Bytes per token of the patterns that `tokenizer train` knows: python -m tests.tokenizer_table NAME=FILE.txt …

Each file is cut into parts of 5,000 characters; of ten parts nine are trained on and one is measured. The last rows are
of all files together, each as long as the shortest.
"""

import sys
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stellarbyte_jax.data.pre_tokenizers import PATTERNS, pre_tokenizer

SIZES = (1_000, 4_000, 8_000, 32_000)


def bytes_per_token(pattern: str, parts: list[str], size: int) -> float:
    """Of the parts that were kept from a tokenizer of so many tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer(pattern), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((part for i, part in enumerate(parts) if i % 10 != 3), trainer)
    kept = parts[3::10]
    tokens = sum(len(encoding) for encoding in tokenizer.encode_batch(kept))
    return sum(len(part.encode()) for part in kept) / tokens


def main(files: list[str]) -> None:
    """Prints the table as Markdown."""
    named = dict(file.split("=", 1) for file in files)
    texts = {name: Path(path).read_text(encoding="utf-8") for name, path in named.items()}
    parts = {name: [text[at : at + 5000] for at in range(0, len(text), 5000)] for name, text in texts.items()}
    shortest = min(len(text.encode()) for text in texts.values())
    together = {name: round(len(some) * shortest / len(texts[name].encode())) for name, some in parts.items()}
    parts["together"] = [part for name, count in together.items() for part in parts[name][:count]]
    print("| text | tokens |", *(f"{name} |" for name in PATTERNS))
    print("| --- | --- |" + " --- |" * len(PATTERNS))
    for name, some in parts.items():
        for size in SIZES:
            found = (f"{bytes_per_token(pattern, some, size):.3f} |" for pattern in PATTERNS.values())
            print(f"| {name} | {size:,} |", *found, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
