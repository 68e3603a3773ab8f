"""Writes the README.md of an export: what the model is, how to load it, what it learned from and how well."""

from collections.abc import Mapping

from convert.families.family import Family
from convert.run_checkpoint import RunCheckpoint
from convert.run_facts import PICTURE, RunFacts
from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.data.tokenizer import Tokenizer

_CARD = """\
---
{license}library_name: transformers
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

{data}## Training

{training}{picture}
"""

_OUR_CODE = (
    "`trust_remote_code=True` runs the two Python files beside the weights; `import stellarbyte_torch` makes it "
    "unnecessary."
)


def render(
    name: str,
    checkpoint: RunCheckpoint,
    dtype: str,
    parameters: int,
    facts: RunFacts,
    fold_layer_scale: bool = False,
    family: Family | None = None,
    license_id: str | None = None,
    has_picture: bool = False,
) -> str:
    """The card's Markdown, with YAML in front as the Hugging Face Hub reads it.

    Args:
        name: the name of the model, and of the folder to load it from.
        checkpoint: the checkpoint that was exported.
        dtype: the dtype of the weights.
        parameters: the number of parameters.
        facts: what is known of the training.
        fold_layer_scale: whether LayerScale is folded into the export's projections.
        family: the stock architecture that the model is exported as; None if it is our own.
        license_id: the licence's identifier on the Hub; None leaves it out.
        has_picture: whether the run's curves are in a file beside the card.
    """
    tokenizer = Tokenizer(checkpoint.tokenizer_files, "of the run")
    adds_bos = tokenizer.adds_bos
    return _CARD.format(
        name=name,
        license="" if license_id is None else f"license: {license_id}\n",
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
        data=f"## Data\n\n{_table(facts.data)}\n\n" if facts.data else "",
        training=_table({"Steps": f"{checkpoint.step:,}", **facts.figures, **facts.settings}),
        picture=f"\n\n![The curves of the training]({PICTURE})" if has_picture else "",
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
        narrowest, widest = min(config.intermediate_sizes), max(config.intermediate_sizes)
        return f"gated, {widest if narrowest == widest else f'{narrowest} to {widest}'} wide, {config.hidden_act}"
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
