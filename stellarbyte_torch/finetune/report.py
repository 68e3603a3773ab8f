"""Words and figures about a fine-tuning run, before it starts and after it has ended."""

import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainingArguments

from stellarbyte.host_memory import peak_resident_bytes
from stellarbyte.lora_values import is_number, is_whole
from stellarbyte_torch.finetune.progress import FinetuneProgress
from stellarbyte_torch.finetune.trainer import FinetuneTrainer

Summary = dict[str, Any]


def opening(name: str, model: Any, samples: str, arguments: TrainingArguments, checkpoint: Path | None) -> str:
    """Two lines before training: the model, how much of it trains and on which devices; then the data (`samples`)."""
    total, trained = parameters(model)
    start = "" if checkpoint is None else f", going on after step {checkpoint.name.rpartition('-')[2]}"
    if isinstance(model, PeftModel):
        name = f"{name} ({(total - trained) / 1e6:.1f} M) with its adapter"
    return (
        f"{name}: {total / 1e6:.1f} M parameters, {trained:,} ({trained / total:.2%}) of them trained, "
        f"on {arguments.world_size} {arguments.device.type} device(s){start}\n{samples}"
    )


def summarise(trainer: FinetuneTrainer, progress: FinetuneProgress, folder: Path | None) -> Summary:
    """The figures of a run, ready for JSON; `folder` is where the result goes, None if the run was interrupted.

    Validation losses are means over trained tokens, before the first step and for the model that is kept. Speed and
    memory are those of this process since it started; padding does not count as tokens.
    """
    state = trainer.state
    total, trained = parameters(trainer.accelerator.unwrap_model(trainer.model))
    evaluations = [record for record in state.log_history if "eval_loss" in record]
    losses = [record["loss"] for record in state.log_history if "loss" in record]
    keeps_best = trainer.args.load_best_model_at_end and state.best_metric is not None
    before = evaluations[0]["eval_loss"] if evaluations and evaluations[0]["step"] == 0 else None
    after = state.best_metric if keeps_best else evaluations[-1]["eval_loss"] if evaluations else None
    return {
        "finished": folder is not None,
        "steps": state.global_step,
        "best_step": state.best_global_step if keeps_best else state.global_step,
        "parameters": total,
        "trainable_parameters": trained,
        "train_loss_first": losses[0] if losses else None,
        "train_loss_last": losses[-1] if losses else None,
        "validation_loss_before": before,
        "validation_loss_after": after,
        "tokens_per_second": progress.tokens / progress.seconds if progress.seconds else None,
        "peak_memory_bytes": _peak_memory(trainer.args.device),
        "device": trainer.args.device.type,
        "saved_in": None if folder is None else str(folder),
    }


def parameters(model: Any) -> tuple[int, int]:
    """The number of all parameters and of those that train."""
    if isinstance(model, PeftModel):
        trained, total = model.get_nb_trainable_parameters()  # counts the original weights of a quantised base
        return total, trained
    # DeepSpeed's ZeRO-3 leaves a parameter empty on this process, but keeps its size.
    sizes = [
        (getattr(parameter, "ds_numel", parameter.numel()), parameter.requires_grad) for parameter in model.parameters()
    ]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def is_summary(content: Any) -> bool:
    """Whether `content`, read from a file that anybody may have written, has the form that `summarise` gives."""
    counts = ("steps", "best_step", "parameters", "trainable_parameters")
    figures = ("train_loss_first", "train_loss_last", "validation_loss_before", "validation_loss_after")
    return (
        isinstance(content, dict)
        and content.get("finished") is True
        and all(is_whole(content.get(name), 0) for name in counts)
        and content["parameters"] > 0
        and all(
            name in content and (content[name] is None or is_number(content[name]))
            for name in (*figures, "tokens_per_second", "peak_memory_bytes")
        )
        and all(isinstance(content.get(name), str) for name in ("device", "saved_in"))
    )


def closing_table(summary: Summary) -> str:
    """The figures of a run that has ended, one a line."""
    rows = {**closing_rows(summary), "saved in": str(summary["saved_in"])}
    return "\n".join(f"{name:<16} {value}" for name, value in rows.items())


def closing_rows(summary: Summary) -> dict[str, str]:
    """The results of a run, name -> words."""
    trained, total = summary["trainable_parameters"], summary["parameters"]
    rows = {"trained": f"{trained:,} of {total:,} parameters ({trained / total:.2%})"}
    before, after = summary["validation_loss_before"], summary["validation_loss_after"]
    if after is not None:
        shown_before = "" if before is None else f"{before:.4f} (perplexity {_perplexity(before)}) before, "
        kept = "" if summary["best_step"] == summary["steps"] else f": the best, of step {summary['best_step']}"
        rows["validation loss"] = f"{shown_before}{after:.4f} (perplexity {_perplexity(after)}) after{kept}"
    if summary["train_loss_last"] is not None:
        first, last = summary["train_loss_first"], summary["train_loss_last"]
        rows["training loss"] = f"{first:.4f} at step 1, {last:.4f} at step {summary['steps']}"
    if summary["tokens_per_second"] is not None:
        rows["speed"] = f"{summary['tokens_per_second']:,.0f} tokens/s, padding not counted"
    if summary["peak_memory_bytes"] is not None:
        where = "of the GPU" if summary["device"] == "cuda" else "of the process"
        rows["peak memory"] = f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB {where}"
    return rows


def _peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.2f}" if loss < 700 else "beyond all numbers"
