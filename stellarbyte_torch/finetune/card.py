"""Writes the README.md of a fine-tuned model: its base, its data, how it was trained, its figures, how to load it."""

from pathlib import Path
from typing import Any

import yaml

from stellarbyte_torch.finetune.config import FinetuneConfig
from stellarbyte_torch.finetune.report import Summary, closing_rows

_CARD = """\
---
{metadata}---

# {title}

{what}

## Use

```python
{use}
```
{beside}
## Data

{data}

## Training

{settings}

## Figures

{figures}
"""

_STOCK_PEFT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}"{remote})
model = PeftModel.from_pretrained(base, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
_OURS = """\
from stellarbyte_torch.lora import load_lora
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = load_lora(base, "{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
_WHOLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}"{remote})
tokenizer = AutoTokenizer.from_pretrained("{folder}"{remote})"""


def write_card(folder: Path, config: FinetuneConfig, summary: Summary, *, samples: str, model_type: str) -> None:
    """Writes README.md over the form of forty questions that PEFT leaves.

    samples: a line about the data. model_type: the base's; a "stellarbyte" model is loaded with the code beside its
    weights, which needs trust_remote_code.
    """
    lora = config.lora
    activation = None if lora is None else lora.get("activation")
    target = str(summary["saved_in"])
    remote = ", trust_remote_code=True" if model_type == "stellarbyte" else ""
    template, beside = (_WHOLE, "") if lora is None else (_STOCK_PEFT, "")
    if remote:
        beside = "\n`import stellarbyte_torch` makes `trust_remote_code=True` needless.\n"
    if activation is not None:
        template = _OURS
        beside = (
            f"\nIt is a non-linear LoRA, with {activation} between A and B: stock PEFT cannot load it, and it "
            "cannot be merged\ninto its base. `stellarbyte chat` takes it with `--adapter`.\n"
        )
    trained = "all weights" if config.trainable is None else "some of the weights"
    kind = "A LoRA adapter" if lora is not None else f"A causal language model, fine-tuned in {trained}"
    metadata: dict[str, Any] = {
        "base_model": config.model,
        "library_name": "transformers" if lora is None else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["stellarbyte", *(["lora"] if lora is not None else [])],
    }
    text = _CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        title=Path(config.output_dir).name or "model",
        what=f"{kind}, made of `{config.model}` by `stellarbyte finetune`.",
        use=template.format(base=config.model, folder=target, remote=remote),
        beside=beside,
        data=_list({"sources": ", ".join(source.path for source in config.data.sources), "samples": samples})
        + "\n"
        + _list(_chosen(config.data, ("sequence_length", "packing", "loss_on", "chat_template"))),
        settings=_list({**_section("lora", lora), **_section("trainable", _fields(config.trainable))})
        + ("\n" if lora or config.trainable else "")
        + _list({**_section("training", config.training), "quantization": config.quantization, "dtype": config.dtype}),
        figures=_list(closing_rows(summary)),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _list(rows: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())


def _chosen(fields: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(fields, name) for name in names if getattr(fields, name) is not None}


def _fields(fields: Any) -> dict[str, Any]:
    return {} if fields is None else vars(fields)


def _section(name: str, fields: dict[str, Any] | None) -> dict[str, Any]:
    return {f"{name}.{field}": value for field, value in (fields or {}).items() if value not in (None, False)}
