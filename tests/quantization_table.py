"""What each method of quantisation costs a model: `python -m tests.quantization_table MODEL` prints the table.

MODEL: a run, or a Hugging Face folder. --data TEXT: of a folder, what to calibrate and to measure on. --no-symmetric:
grids with zero points. --only WORD: rows whose name holds it. The options of calibration are those of `quantize`.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from convert.quantizing.making import Request, quantize
from stellarbyte.command_line import folder_or_bucket
from stellarbyte.places import Place
from stellarbyte.progress import Update
from stellarbyte_torch.library_words import hear_libraries
from stellarbyte_torch.quantization.report import Limits
from stellarbyte_torch.quantization.settings import Method, QuantizationSettings

# (bits, columns of a group) of the methods that round weights alone.
_GRIDS = ((4, 128), (4, 32), (3, 32))
_WEIGHTS: tuple[Method, ...] = ("rtn", "gptq", "awq")
_BOTH: tuple[Method, ...] = ("int8-dynamic", "smoothquant")


def main(arguments: Sequence[str]) -> int:
    """Quantises the model by each row's settings, and prints what its gate has measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.quantization_table", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=folder_or_bucket)
    parser.add_argument("--data", metavar="TEXT")
    parser.add_argument("--samples", type=int, default=128, metavar="N")
    parser.add_argument("--sequence-length", type=int, default=512, metavar="N")
    parser.add_argument("--symmetric", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", default="", metavar="WORD")
    options = parser.parse_args(arguments)
    hear_libraries("quantization_table")
    print("| | perplexity | growth | KL | of the context | top-1 | bits a weight | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for settings in _rows(options):
        if options.only in settings.words:
            _print_row(settings.words, measured(options.model, settings, options.data))
    return 0


def _rows(options: argparse.Namespace) -> Iterator[QuantizationSettings]:
    text = {"samples": options.samples, "sequence_length": options.sequence_length}
    for bits, group_size in _GRIDS:
        for method in _WEIGHTS:
            yield QuantizationSettings(
                method=method, bits=bits, group_size=group_size, symmetric=options.symmetric, **text
            )
    for method in _BOTH:
        yield QuantizationSettings.of(method, **text)


def measured(model: Place, settings: QuantizationSettings, data: str | None = None) -> dict[str, Any]:
    """The gate's report of a run or a folder of floats, quantised and thrown away.

    Raises:
        UserError: the model or its text cannot be quantised so.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            model=model,
            output=Path(folder) / "q",
            settings=settings,
            data=data,
            limits=Limits(inf, inf),
            force=False,
            step=None,
            device=None,
        )
        return quantize(request, _no_bar, lambda text: print(text, file=sys.stderr))


@contextmanager
def _no_bar(_name: str) -> Iterator[Update]:
    yield lambda _done, _whole: None


def _print_row(name: str, found: dict[str, Any]) -> None:
    held = found["held_out"]
    cells = (
        f"{held['perplexity_before']:.3f} -> {held['perplexity_after']:.3f}",
        f"{held['perplexity_increase']:+.2%}",
        f"{held['kl']:.2e}",
        f"{held['context_lost']:.3%}",
        f"{held['top_1_agreement']:.2%}",
        f"{found['weights']['bits_per_weight']:.2f}",
        f"{found['seconds']:.0f}",
    )
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
