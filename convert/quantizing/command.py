"""What `stellarbyte quantize` does with its options, and what it shows and exits with."""

import argparse
import json
import sys
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.interrupt import interruptible
from stellarbyte.progress import progress
from stellarbyte_torch.library_words import hear_libraries

# The options that are fields of QuantizationSettings -> the fields. What is not given has the method's own default.
_FIELDS = ("bits", "group_size", "symmetric", "damping", "samples", "sequence_length", "seed")


def run(options: argparse.Namespace) -> int:
    """Quantises, prints the report, and returns 0 after PASS and 1 after FAIL."""
    hear_libraries("stellarbyte")
    # Imports come this late because they take seconds.
    from convert.quantizing.making import Request, quantize
    from stellarbyte_torch.quantization.report import Limits, page

    request = Request(
        model=options.model,
        output=options.output,
        settings=_settings(options),
        data=options.data,
        limits=Limits(options.max_perplexity_increase, options.max_context_lost),
        force=options.force,
        step=options.step,
        device=options.device,
        fit_groups=options.group_size is None,
    )
    with interruptible():
        found = quantize(request, progress, _say)
        print(json.dumps(found) if options.json else page(found))
        sys.stdout.flush()
    if found["written"]:
        return 0 if found["verdict"] == "PASS" else 1
    _say(f"{options.output} is not written: take more bits or smaller groups, or write it all the same with --force")
    _say(found["left"])
    return 1


def _settings(options: argparse.Namespace) -> Any:
    from stellarbyte_torch.quantization.settings import QuantizationSettings

    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    if given.get("group_size") == "row":
        given["group_size"] = None
    if options.method != "gptq" and "damping" in given:
        raise UserError(f"--damping is for --method gptq, and this is {options.method}: leave it out")
    if options.embeddings and options.method in ("smoothquant", "int8-dynamic"):
        raise UserError(
            f"--embeddings is for methods that round weights alone, and {options.method} rounds inputs as well: "
            "leave it out"
        )
    return QuantizationSettings.of(
        options.method, include_head=options.head, include_embeddings=options.embeddings, **given
    )


def _say(text: str) -> None:
    print(f"stellarbyte: {text}", file=sys.stderr)
