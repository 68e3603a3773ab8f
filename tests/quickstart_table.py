"""The quickstart's minutes spent in three ways: with Muon, with AdamW, and by Hugging Face Llama with torch's AdamW.

Run it as `python -m tests.quickstart_table`; on two cores it takes about four times as long as the quickstart's
training. It measures each side's speed first, and gives each as many steps as fit the time that the quickstart's own
training takes. All see the same rows in the same order, and their rates warm up and fall to 0 over the same shares of
their steps. None was tuned on the validation split.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / "configs" / "run" / "quickstart.yaml"
TRIAL_STEPS, COLD_STEPS = 16, 4
# The best of those tried for each, on other held-out text than the validation split.
ADAMW_RATE = 4e-3


def main() -> None:
    """Print the table, and what each side's learning rate was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="time to train (default: what the quickstart's steps take here)")
    parser.add_argument("--runs", type=Path, help="folder to keep the runs in, for `stellarbyte plot`")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = _measure(folder, options.seconds)
    if options.json:
        print(json.dumps(results))
        return
    print("| side | steps | tokens/s | seconds | bits/byte |\n| --- | --- | --- | --- | --- |")
    for name, row in results.items():
        print(
            f"| {name} | {row['steps']} | {row['tokens_per_second']:,.0f} | {row['seconds']:.0f} "
            f"| {row['bits_per_byte']:.3f} |"
        )


def _measure(folder: Path, seconds: float | None) -> dict[str, dict[str, float]]:
    import yaml

    corpus, tokenizer, shards = folder / "corpus.jsonl", folder / "tokenizer", folder / "shards"
    data = [f"--data.sources.0.path={corpus}", f"--data.tokenizer={tokenizer}", f"--data.shards={shards}"]
    fields = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    vocab_size = str(_vocab_size(fields["model"]))
    _stellarbyte("corpus", "stdlib", "--force", str(corpus))
    _stellarbyte("tokenizer", "train", "--input", str(corpus), "--vocab-size", vocab_size, "--output", str(tokenizer))
    _stellarbyte("prepare", str(CONFIG), *data)
    adamw = ["--optimizer.optim=adamw", f"--optimizer.learning_rate={ADAMW_RATE}"]
    steps, warmup = fields["training"]["max_steps"], fields["optimizer"]["warmup_steps"]
    share = warmup / steps

    def ours(name: str, overrides: list[str], steps: int) -> dict[str, float]:
        sizes = [f"--training.max_steps={steps}", f"--optimizer.warmup_steps={round(share * steps)}"]
        run = folder / name
        _stellarbyte("pretrain", str(CONFIG), *data, *overrides, *sizes, f"--output_dir={run}")
        return _of_run(run)

    def rate(overrides: list[str]) -> float:
        """Seconds a step."""
        with tempfile.TemporaryDirectory() as trial:
            sizes = [f"--training.max_steps={TRIAL_STEPS}", "--optimizer.warmup_steps=1", "--training.eval_batches=1"]
            _stellarbyte("pretrain", str(CONFIG), *data, *overrides, *sizes, f"--output_dir={trial}/run")
            return _of_run(Path(trial) / "run")["seconds"] / TRIAL_STEPS

    seconds = seconds or rate([]) * steps
    results = {"StellarByte, Muon": ours("muon", [], round(seconds / rate([])))}
    results["StellarByte, AdamW"] = ours("adamw", adamw, round(seconds / rate(adamw)))
    config = str(folder / "adamw" / "config.yaml")
    results["Hugging Face Llama, torch's AdamW"] = _llama(config, seconds, share)
    return results


def _stellarbyte(*words: str) -> None:
    print(f"stellarbyte {' '.join(words)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "stellarbyte", *words], check=True, stdout=sys.stderr)


def _vocab_size(model: dict[str, Any] | str) -> int:
    import yaml

    if isinstance(model, str):
        model = yaml.safe_load((CONFIG.parent / model).read_text(encoding="utf-8"))
    assert isinstance(model, dict)
    return model["vocab_size"]


def _of_run(run: Path) -> dict[str, float]:
    """Of a step that compiled, the median's time is counted."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if "loss" in record]
    times = [record["tokens"] / record["tokens_per_second"] for record in steps if record["tokens_per_second"]]
    median = statistics.median(times)
    return {
        "steps": len(steps),
        "tokens_per_second": statistics.median(record["tokens"] for record in steps) / median,
        "seconds": sum(times) + median * (len(steps) - len(times)),
        "bits_per_byte": [r["validation_bits_per_byte"] for r in records if "validation_bits_per_byte" in r][-1],
    }


def _llama(config_path: str, seconds: float, warmup_share: float) -> dict[str, float]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from stellarbyte_jax.config_file import load_run_config
    from stellarbyte_jax.data.loader import Take, TrainLoader, validation_batches
    from stellarbyte_jax.data.manifest import Manifest
    from stellarbyte_jax.data.tokenizer import Tokenizer

    run = load_run_config(config_path)
    shape, training, optim = run.model, run.training, run.optimizer
    manifest = Manifest.load(Path(run.data.shards))
    loader = TrainLoader(run.data, manifest, run.seed)

    def fresh() -> tuple[LlamaForCausalLM, torch.optim.Optimizer]:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            intermediate_size=shape.intermediate_size,
            tie_word_embeddings=shape.tie_word_embeddings,
            initializer_range=shape.initializer_range,
            attn_implementation="sdpa",
        )
        model = LlamaForCausalLM(config)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        gains = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": gains, "weight_decay": 0.0}]
        betas = (optim.adam_beta1, optim.adam_beta2)
        return model, torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)

    def loss_of(model: LlamaForCausalLM, batch: dict[str, Any], reduction: str = "mean") -> torch.Tensor:
        ids, labels = (torch.from_numpy(batch[name]).long() for name in ("input_ids", "labels"))
        logits = model(ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction=reduction)

    def train(steps: int, warmup: int) -> tuple[LlamaForCausalLM, list[float]]:
        model, optimizer = fresh()
        times = []
        size = training.batch_size
        batches = loader.batches(lambda step: Take(step * size, range(size)))
        for step, batch in zip(range(steps), batches, strict=False):
            began = time.perf_counter()
            rate = min((step + 1) / max(warmup, 1), (steps - step) / max(steps - warmup, 1)) * ADAMW_RATE
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss_of(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - began)
            if step % 50 == 0:
                print(f"Llama: step {step} of {steps}", file=sys.stderr, flush=True)
        return model, times

    steps = round(seconds / statistics.median(train(TRIAL_STEPS, 1)[1][COLD_STEPS:]))
    model, times = train(steps, round(warmup_share * steps))
    lengths = torch.from_numpy(Tokenizer.load(run.data.tokenizer).byte_lengths).double()
    nats = text_bytes = 0.0
    with torch.no_grad():
        for batch in validation_batches(run.data, manifest, training.batch_size):
            nats += loss_of(model, batch, "sum").item()
            labels = torch.from_numpy(batch["labels"]).long()
            text_bytes += lengths[labels[labels != -100]].sum().item()
    tokens = training.batch_size * run.data.sequence_length
    return {
        "steps": steps,
        "tokens_per_second": tokens / statistics.median(times),
        "seconds": sum(times),
        "bits_per_byte": nats / math.log(2) / text_bytes,
    }


if __name__ == "__main__":
    main()
