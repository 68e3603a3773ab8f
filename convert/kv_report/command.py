"""What `stellarbyte kv` does with its options, and what it prints and draws."""

import argparse
import json
import sys
from pathlib import Path

from convert.kv_report.measuring import Reader, Setting, measure, policies_of, settings_of
from convert.kv_report.picture import draw
from convert.kv_report.rows import CUE, rows_of
from convert.kv_report.table import table
from convert.quantizing.source import Source, open_source
from stellarbyte.errors import UserError
from stellarbyte.files import write_text
from stellarbyte.kv_cache.settings import KVBudget
from stellarbyte.looks.picture import check_folder
from stellarbyte.progress import progress

# Of a shorter prompt even the smallest budget keeps more than half.
_SHORTEST = 32


def run(options: argparse.Namespace) -> None:
    """Measures, prints the table or its JSON, and draws the picture if one is asked for."""
    if options.output is not None:
        if options.output.suffix != ".svg":
            raise UserError(f"-o {options.output} does not end in .svg, the format of the picture: name it so")
        check_folder("-o", options.output)
    if options.rows < 1:
        raise UserError(f"--rows {options.rows} must be at least 1")
    if options.lines < 1:
        raise UserError(f"--lines {options.lines} must be at least 1")
    source = open_source(options.model, options.step)
    length, prompt = _lengths(options, source)
    settings = _settings(options, prompt)
    sizes = (options.rows, length, prompt)
    rows = rows_of(options.data, source.encode(), source.bos, sizes, _say, options.lines)
    reader = _reader(options, source)
    with progress("measuring caches") as update:
        report = measure(reader, rows, prompt, settings, update)
    if options.output is not None:
        write_text(options.output, draw(f"{source.name}: a pruned cache after {prompt} tokens", report))
    print(json.dumps(report.to_dict()) if options.json else table(report))


def _lengths(options: argparse.Namespace, source: Source) -> tuple[int, int]:
    """The tokens of a row and of its prompt. Raises UserError: they do not fit the model or each other."""
    length = options.row_tokens or source.context
    if length > source.context:
        raise UserError(f"--row-tokens {length} is more than the model's context of {source.context}: lower it")
    prompt = options.prompt_tokens or length * 3 // 4
    if not _SHORTEST <= prompt <= length - CUE:
        raise UserError(
            f"a prompt of {prompt} tokens in a passage of {length} does not do: give --prompt-tokens from {_SHORTEST} "
            f"to {length - CUE}"
        )
    return length, prompt


def _settings(options: argparse.Namespace, prompt: int) -> list[Setting]:
    """All caches to compare. Raises UserError: a budget is of no use, or there is no such policy."""
    try:
        slots = [KVBudget.parse(word).of(prompt) for word in options.budgets.split(",")]
        names = options.policies.split(",") if options.policies is not None else policies_of(options.kv_shape)
        settings = settings_of(slots, names, options.kv_shape)
    except UserError as error:
        words = str(error).replace("--kv-budget", "--budgets").replace("--kv-policy", "--policies")
        raise UserError(words) from error
    if max(slots) >= prompt:
        raise UserError(
            f"--budgets has {max(slots)} tokens, and the prompt {prompt}: nothing would be dropped; give fewer tokens"
        )
    return settings


def _reader(options: argparse.Namespace, source: Source) -> Reader:
    if (options.model / "config.json").is_file():
        from convert.kv_report.torch_reader import TorchReader

        return TorchReader(Path(options.model), options.device)
    if options.device is not None:
        raise UserError(f"--device is for Hugging Face folders, and {options.model} is a run: leave it out")
    from convert.kv_report.jax_reader import JaxReader

    return JaxReader(options.model, source.step)


def _say(text: str) -> None:
    print(f"stellarbyte: {text}", file=sys.stderr)
