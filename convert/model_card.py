"""The README.md of an export: what the model is, how to load it, and how well it did in training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.run_checkpoint import RunCheckpoint
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.data.tokenizer import BOS_TOKEN
from stellarbyte_jax.errors import UserError

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- stellarbyte
- custom_code
---

# {name}

A StellarByte decoder language model of {parameters:,} parameters in {dtype}, pretrained in JAX.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer("{bos}…", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```

`trust_remote_code=True` runs the two Python files beside the weights; `import stellarbyte_torch` makes it needless.
Documents began with {bos} in training, so a prompt should, too.

## Architecture

{architecture}

## Training

{figures}
"""

# Names in metrics.jsonl -> what the card calls them, and how it writes them.
_FIGURES = {
    "validation_loss": ("Validation loss", "{:.4f}"),
    "validation_perplexity": ("Validation perplexity", "{:.2f}"),
    "validation_bits_per_byte": ("Validation bits per byte", "{:.4f}"),
    "validation_accuracy": ("Validation accuracy of the next token", "{:.3f}"),
}


def read_figures(metrics_file: Path, step: int) -> dict[str, str]:
    """What a run had measured when it reached `step`, name -> value; empty without metrics, as in imported runs."""
    last: dict[str, Any] = {}
    tokens = 0
    try:
        with metrics_file.open(encoding="utf-8", errors="replace") as lines:
            for record in filter(None, map(_parse, lines)):
                if record.get("step", step + 1) <= step:
                    last |= record
                    tokens += int(record.get("tokens") or 0)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{metrics_file} cannot be read: {error.strerror}") from error
    figures = {"Tokens": f"{tokens:,}"} if tokens else {}
    for name, (title, form) in _FIGURES.items():
        if last.get(name) is not None:
            figures[title] = form.format(last[name])
    return figures


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # the last line of a run that was killed while writing it
        return None
    return record if isinstance(record, dict) else None


def render(name: str, checkpoint: RunCheckpoint, dtype: str, parameters: int, figures: Mapping[str, str]) -> str:
    """The card's Markdown, with YAML in front as the Hugging Face Hub reads it.

    Args:
        name: of the model, and of the folder to load it from.
        checkpoint: what was exported.
        dtype: of the weights.
        parameters: how many there are.
        figures: what was measured in training, name -> value; may be empty.
    """
    return _CARD.format(
        name=name,
        parameters=parameters,
        dtype=dtype,
        bos=BOS_TOKEN,
        architecture=_table(_architecture(checkpoint.config)),
        figures=_table({"Steps": f"{checkpoint.step:,}", **figures}),
    )


def _table(cells: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells.items())])


def _architecture(config: ByteConfig) -> dict[str, str]:
    positions = {"xpos": f"XPos, scale base {config.xpos_scale_base:g}", "rope": "RoPE"}[config.position_embedding]
    if config.xpos_learnable:
        positions += ", learnable zeta"
    return {
        "Layers": str(config.num_hidden_layers),
        "Hidden size": str(config.hidden_size),
        "Attention": f"{config.num_attention_heads} query heads of size {config.head_dim}, "
        f"{config.num_key_value_heads} key/value heads",
        "Feed-forward": f"gated, {config.intermediate_size} wide, {config.hidden_act}",
        "Positions": f"{positions}, theta {config.rope_theta:g}",
        "Context": f"{config.max_position_embeddings} tokens",
        "Vocabulary": f"{config.vocab_size} tokens, head {'tied to' if config.tie_word_embeddings else 'apart from'} "
        "the embedding",
    }
