"""Bits per byte of a run, of its export and by lm-eval on the same text: `python -m tests.evaluation_table RUN TEXT…`.

It needs lm-eval (extra eval), and prints a line for each window.
"""

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert import hf_checkpoint
from stellarbyte.evaluation.measuring import measure
from stellarbyte.evaluation.texts import Sources, Text, read_texts
from stellarbyte.evaluation.windows import Windows
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_torch.evaluation.scorer import TorchScorer

_BATCH_TOKENS = 4096


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.evaluation_table", description=str(__doc__).splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    options = parser.parse_args()
    texts = read_texts(Sources.of(options.texts, "text", None, None), print)
    size = sum(len(text.text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        hf_checkpoint.to_hf(options.run, Path(folder) / "hf")
        run, export = JaxScorer(options.run), TorchScorer(Path(folder) / "hf")
    print(f"{len(texts)} documents of {size:,} bytes")
    print("| window | the run, in JAX | its export, in PyTorch | lm-eval | lm-eval, bos scored |")
    print("| --- | --- | --- | --- | --- |")
    window = run.positions
    while window >= 64:
        windows = Windows(window, window)
        ours = [measure(scorer, texts, windows, _BATCH_TOKENS).whole.bits_per_byte for scorer in (run, export)]
        theirs = [by_lm_eval(export, texts, window, add_bos=add) / size for add in (False, None)]
        print(f"| {window} | " + " | ".join(f"{bits:.6f}" for bits in (*ours, *theirs)) + " |", flush=True)
        window //= 2


def by_lm_eval(export: TorchScorer, texts: Sequence[Text], window: int, add_bos: bool | None) -> float:
    """The bits of the texts by lm-eval's own class for Transformers."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model: Any = HFLM(
        export.model,
        tokenizer=export.tokenizer,
        backend="causal",
        batch_size=max(1, _BATCH_TOKENS // window),
        max_length=window,
        add_bos_token=add_bos,
    )
    requests = [Instance("loglikelihood_rolling", {}, (text.text,), 0) for text in texts]
    return -sum(model.loglikelihood_rolling(requests, disable_tqdm=True)) / math.log(2)


if __name__ == "__main__":
    main()
