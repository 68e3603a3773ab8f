"""The small files of a quantised folder: those of the float folder, but for what says that it is quantised."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.config import CONFIG, MODEL_TYPE
from convert.hf_checkpoint import modeling_files
from convert.shards import INDEX
from convert.staged_folder import CERTIFICATE, MANIFEST
from convert.staged_folder import PICTURE as CERTIFICATE_PICTURE
from stellarbyte.file_manifest import MANIFEST as FILE_MANIFEST
from stellarbyte.files import write_json, write_text
from stellarbyte.reading import MIB, read_text
from stellarbyte_torch.quantization.picture import PICTURE
from stellarbyte_torch.quantization.report import REPORT

_CARD = "README.md"
# What is another model's, or is written anew.
_NOT_COPIED = {INDEX, CONFIG, MANIFEST, FILE_MANIFEST, CERTIFICATE, CERTIFICATE_PICTURE, REPORT, PICTURE, _CARD}
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx)")


def write_small_files(source: Path, folder: Path, fields: Mapping[str, Any], quantization: Mapping[str, Any]) -> None:
    """Writes config.json, and copies the tokenizer and what else goes along.

    fields: the content of the float folder's config.json. quantization: its quantization_config.

    Raises:
        OSError, UserError: the disk is full, or a file cannot be read.
    """
    write_json(folder / CONFIG, {**fields, "quantization_config": dict(quantization)}, sort_keys=True)
    for path in sorted(source.iterdir()):
        skipped = path.name in _NOT_COPIED or _WEIGHTS.fullmatch(path.name)
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".py" and not skipped:
            shutil.copyfile(path, folder / path.name)
    if fields.get("model_type") == MODEL_TYPE:  # an older export's code may know no quantised experts
        for path in modeling_files():
            shutil.copyfile(path, folder / path.name)


def write_card(source: Path, folder: Path, report: Mapping[str, Any]) -> None:
    """Writes the model card: the float folder's, and a table of what quantising has done."""
    card = read_text(source / _CARD, MIB) if (source / _CARD).is_file() else f"# {folder.name}\n"
    write_text(folder / _CARD, f"{card.rstrip()}\n\n{_section(report)}")


def _section(report: Mapping[str, Any]) -> str:
    held, weights, size = (report[name] for name in ("held_out", "weights", "size"))
    rows = {
        "method": report["how"],
        "calibrated on": f"{report['calibration']['rows']} rows of {report['calibration']['length']} tokens",
        "perplexity of held-out text": f"{held['perplexity_before']:.4f} before, {held['perplexity_after']:.4f} after "
        f"({held['perplexity_increase']:+.2%})",
        "Kullback-Leibler divergence": f"{held['kl']:.2e} nats a token, {held['context_lost']:.2%} of what the context "
        "tells the model",
        "the same likeliest token": f"{held['top_1_agreement']:.2%}",
        "quantised": f"{weights['quantised'] / weights['all']:.1%} of {weights['all']:,} weights, "
        f"{weights['bits_per_weight']:.2f} bits a weight in all",
        "size": f"{size['before'] / 1e6:,.1f} MB before, {size['after'] / 1e6:,.1f} MB after",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"""## Quantised

The weights are in the format of compressed-tensors, which vLLM reads, and Transformers after
`pip install compressed-tensors`. `{REPORT}` has the error of each layer.

| | |
| --- | --- |
{table}
"""
