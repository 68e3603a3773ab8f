"""Makes the sound things that hostile cases are made of, by the commands themselves."""

import json
import random
import time
from pathlib import Path

from hostile.case import Case, convert, stellarbyte, torch
from hostile.forked import Child, Ending

_WORDS = ("star", "byte", "light", "deep field", "of the", "turns into", "falls through", "silence,", "until;", "é。")

_RUN = """\
output_dir: {base}/run
model: {{vocab_size: 320, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 4,
  num_key_value_heads: 2, max_position_embeddings: 256, xpos_scale_base: 64, initializer_range: 0.05}}
data: {{sources: [{{path: {base}/corpus.jsonl}}], tokenizer: {base}/tokenizer, shards: {base}/shards,
  sequence_length: 24, validation_fraction: 0.15}}
training: {{max_steps: 4, batch_size: 4, eval_steps: 2}}
optimizer: {{warmup_steps: 1}}
checkpoint: {{save_steps: 2}}
"""
_LORA = """\
output_dir: {base}/lora
init_from: {base}/run
lora: {{target_modules: [q_proj, down_proj], r: 2}}
data: {{sources: [{{path: {base}/corpus.jsonl}}], tokenizer: {base}/tokenizer, shards: {base}/shards,
  sequence_length: 24, validation_fraction: 0.15}}
training: {{max_steps: 2, batch_size: 4}}
optimizer: {{warmup_steps: 1}}
"""
_FINETUNE = """\
model: {base}/hf
output_dir: {base}/tuned
dtype: float32
data: {{sources: [{{path: {base}/chat.jsonl}}], sequence_length: 96, validation_fraction: 0.2}}
lora: {{r: 2, target_modules: [q_proj, v_proj]}}
training: {{max_steps: 2, per_device_train_batch_size: 4, report_to: none}}
"""
_COMMANDS = (
    lambda base: stellarbyte(
        *("tokenizer", "train", "--input", base / "corpus.jsonl", "--vocab-size", "320", "--output", base / "tokenizer")
    ),
    lambda base: stellarbyte("prepare", base / "run.yaml"),
    lambda base: stellarbyte("pretrain", base / "run.yaml"),
    lambda base: convert("to-hf", base / "run", base / "hf"),
    lambda base: stellarbyte("pretrain", base / "lora.yaml"),
    lambda base: convert("adapter", "to-peft", base / "lora", base / "peft"),
    lambda base: torch("finetune", base / "finetune.yaml"),
    lambda base: stellarbyte(
        *("quantize", base / "hf", base / "q", "--method", "rtn", "--bits", "8", "--group-size", "8", "--samples", "4"),
        *("--data", base / "corpus.jsonl", "--sequence-length", "24"),
    ),
)


def make_sound(base: Path, scratch: Path) -> None:
    """Fills `base` as `World` describes it.

    Raises RuntimeError: one of the commands does not do what it should.
    """
    draw = random.Random(0)
    base.mkdir(parents=True)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(2, 60))) for _ in range(16)]
    (base / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    talks = [
        [
            {"role": "user", "content": f"{n} {texts[n % 16][:20]}"},
            {"role": "assistant", "content": draw.choice(_WORDS)},
        ]
        for n in range(24)
    ]
    (base / "chat.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), "utf-8")
    for name, text in (("run", _RUN), ("lora", _LORA), ("finetune", _FINETUNE)):
        (base / f"{name}.yaml").write_text(text.format(base=base))
    for number, make in enumerate(_COMMANDS):
        ended = run(Case("sound", f"command {number}", lambda world, make=make: make(world.base)), base, scratch)
        if ended.code != 0:
            raise RuntimeError(f"sound input fails with exit code {ended.code}: {ended.err}")


def run(case: Case, base: Path, scratch: Path) -> Ending:
    """Runs one case to its end."""
    child = Child(case, base, scratch / case.name.replace(" ", "-"))
    while (ended := child.ending()) is None:
        time.sleep(0.01)
    return ended
