"""Writes the README.md of an export: what the model is, how to load it, and how well it did in training."""

from collections.abc import Mapping
from typing import Any

from convert.families.family import Family
from convert.run_checkpoint import RunCheckpoint
from stellarbyte.architecture import ByteConfig
from stellarbyte.metrics_file import records
from stellarbyte.places import Place
from stellarbyte_jax.data.tokenizer import Tokenizer

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- stellarbyte
{tags}---

# {name}

A {kind} of {parameters:,} parameters in {dtype}, pretrained in JAX with StellarByte.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
inputs = tokenizer("{begin}…", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```

{code}
Documents began with {bos} in training, so a prompt should begin with it as well: {how}.

## Architecture

{architecture}

## Training

{figures}
"""

_OUR_CODE = (
    "`trust_remote_code=True` runs the two Python files beside the weights; `import stellarbyte_torch` makes it "
    "unnecessary."
)

# Names in metrics.jsonl -> their titles on the card, and the formats of their values.
_FIGURES = {
    "validation_loss": ("Validation loss", "{:.4f}"),
    "validation_perplexity": ("Validation perplexity", "{:.2f}"),
    "validation_bits_per_byte": ("Validation bits per byte", "{:.4f}"),
    "validation_accuracy": ("Validation accuracy of the next token", "{:.3f}"),
}


def read_figures(metrics_file: Place, step: int) -> dict[str, str]:
    """Title -> value of what a run had measured by `step`; empty without metrics, as in imported runs."""
    last: dict[str, Any] = {}
    tokens = 0
    for _, record in records(metrics_file):
        if record["step"] <= step:
            numbers = {name: value for name, value in record.items() if _is_number(value)}
            last |= numbers
            tokens += int(numbers.get("tokens", 0))
    figures = {"Tokens": f"{tokens:,}"} if tokens else {}
    for name, (title, form) in _FIGURES.items():
        if name in last:
            figures[title] = form.format(last[name])
    return figures


def render(
    name: str,
    checkpoint: RunCheckpoint,
    dtype: str,
    parameters: int,
    figures: Mapping[str, str],
    fold_layer_scale: bool = False,
    family: Family | None = None,
) -> str:
    """The card's Markdown, with YAML in front as the Hugging Face Hub reads it.

    Args:
        name: the name of the model, and of the folder to load it from.
        checkpoint: the checkpoint that was exported.
        dtype: the dtype of the weights.
        parameters: the number of parameters.
        figures: title -> value of what was measured in training; may be empty.
        fold_layer_scale: whether LayerScale is folded into the export's projections.
        family: the stock architecture that the model is exported as; None if it is our own.
    """
    tokenizer = Tokenizer(checkpoint.tokenizer_files, "of the run")
    adds_bos = tokenizer.adds_bos
    return _CARD.format(
        name=name,
        tags="- custom_code\n" if family is None else "",
        kind="StellarByte decoder language model" if family is None else f"`{family.architecture}`",
        trust=", trust_remote_code=True" if family is None else "",
        code=_OUR_CODE if family is None else f"Transformers has `{family.architecture}` itself: no other code is run.",
        parameters=parameters,
        dtype=dtype,
        bos=tokenizer.bos_token,
        begin="" if adds_bos else tokenizer.bos_token,
        how="the tokenizer puts it there" if adds_bos else "write it there, as the tokenizer does not",
        architecture=_table(_architecture(checkpoint.config, fold_layer_scale)),
        figures=_table({"Steps": f"{checkpoint.step:,}", **figures}),
    )


def _table(cells: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells.items())])


def _architecture(config: ByteConfig, folded: bool) -> dict[str, str]:
    heads = f"{config.num_attention_heads} query heads of size {config.head_dim}"
    attention = [heads, f"{config.num_key_value_heads} key/value heads"]
    if config.pruned_heads is not None:
        attention.append(f"{sum(map(len, config.pruned_heads))} query heads pruned in all")
    if config.sliding_window is not None:
        attention.append(f"a window of {config.sliding_window} tokens")
    attention += ["biases"] * config.attention_bias + ["normalised queries and keys"] * config.qk_norm
    return {
        "Layers": f"{config.num_hidden_layers}, {_residual(config, folded)}",
        "Hidden size": str(config.hidden_size),
        "Attention": ", ".join(attention),
        "Feed-forward": _feed_forward(config),
        "Positions": _positions(config),
        "Context": f"{config.context_length} tokens",
        "Vocabulary": f"{config.vocab_size} tokens, head {'tied to' if config.tie_word_embeddings else 'apart from'} "
        "the embedding",
    }


def _residual(config: ByteConfig, folded: bool) -> str:
    scheme = {"pre_norm": "pre-norm", "deepnorm": "DeepNorm"}[config.residual]
    if config.parallel_residual:
        scheme += ", attention and feed-forward in parallel"
    if folded:
        return scheme + ", LayerScale folded into the projections"
    return scheme + ", LayerScale" * (config.layer_scale_init is not None)


def _feed_forward(config: ByteConfig) -> str:
    if config.num_experts == 0:
        return f"gated, {config.intermediate_size} wide, {config.hidden_act}"
    shared = f" and {config.num_shared_experts} shared" if config.num_shared_experts else ""
    return (
        f"{config.num_experts} experts, {config.num_experts_per_tok} for each token{shared}: gated, "
        f"{config.moe_intermediate_size} wide, {config.hidden_act}"
    )


def _positions(config: ByteConfig) -> str:
    if config.position_embedding == "none":
        return "none but the causal order"
    if config.position_embedding == "xpos":
        learnable = ", learnable zeta" * config.xpos_learnable
        return f"XPos, scale base {config.xpos_scale_base:g}{learnable}, theta {config.rope_theta:g}"
    scaling = config.rope_scaling
    scaled = f", {scaling.rope_type} scaling by {scaling.factor:g}" if scaling is not None else ""
    return f"RoPE, theta {config.rope_theta:g}{scaled}"


def _is_number(value: object) -> bool:
    # An integer may be beyond every float.
    return isinstance(value, int | float) and abs(value) < 1e300
