"""The options of `stellarbyte convert …`, and what each of its commands does with them."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.families.registry import FAMILIES
from convert.freed_memory import keep_freed
from stellarbyte.adapter_base import tell_warnings
from stellarbyte.command_line import folder_or_bucket
from stellarbyte.interrupt import interruptible

_STEP = "the checkpoint of step N, or `best` by the run's validations (default: the newest)"


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)


_step.__name__ = "step"  # argparse's word for it


def convert(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte convert`."""
    parser.description = "Carry models and adapters between runs and Hugging Face, bit for bit."
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    to_hf = _command(commands, "to-hf", "export a run's checkpoint as a folder that transformers loads")
    to_hf.add_argument("run_dir", metavar="RUN_DIR", type=folder_or_bucket, help="the output_dir of a run")
    to_hf.add_argument("hf_dir", metavar="HF_DIR", type=folder_or_bucket, help="the folder to write")
    to_hf.add_argument("--step", type=_step, metavar="N", help=_STEP)
    to_hf.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="the dtype of the weights (default float32, as in the run)",
    )
    to_hf.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="the most of a file, in KB, MB, GB or TB (default 5GB)"
    )
    to_hf.add_argument(
        "--force", action="store_true", help="replace the files of a model in HF_DIR that no export wrote"
    )
    to_hf.add_argument(
        "--fold-layer-scale",
        action="store_true",
        help="multiply LayerScale into o_proj and down_proj, so that the export needs none; its weights then differ",
    )
    to_hf.add_argument(
        "--ema", action="store_true", help="export the average of the weights that training.ema_decay keeps"
    )
    to_hf.add_argument(
        "--as",
        dest="family",
        choices=tuple(FAMILIES),
        help="as a model of Transformers' own, which loads without our code; `explain` says which ones it can be",
    )
    to_hf.add_argument("--license", metavar="ID", help="the licence for the model card, such as apache-2.0")
    to_hf.set_defaults(run=_told(_to_hf))

    to_gguf = _command(commands, "to-gguf", "export a run's checkpoint as a GGUF file for llama.cpp")
    to_gguf.add_argument("run_dir", metavar="RUN_DIR", type=folder_or_bucket, help="the output_dir of a run")
    to_gguf.add_argument("file", metavar="FILE", type=Path, help="the file to write, such as model-f16.gguf")
    to_gguf.add_argument("--step", type=_step, metavar="N", help=_STEP)
    to_gguf.add_argument(
        "--dtype",
        choices=("f32", "f16", "bf16", "q8_0"),
        default="f16",
        help="the dtype of the matrices (default f16); vectors stay in f32",
    )
    to_gguf.add_argument("--ema", action="store_true", help="export the average of the weights, as in to-hf")
    to_gguf.add_argument("--force", action="store_true", help="replace a file that is there")
    to_gguf.set_defaults(run=_told(_to_gguf))

    from_hf = _command(commands, "from-hf", "make a run directory of a Hugging Face folder")
    from_hf.add_argument(
        "hf_dir",
        metavar="HF_DIR",
        type=folder_or_bucket,
        help="a model's folder: ours, or a stock Llama and its kin",
    )
    from_hf.add_argument("run_dir", metavar="RUN_DIR", type=folder_or_bucket, help="the run directory to make")
    from_hf.set_defaults(run=_told(_from_hf))

    about = "prove that an export is its run, or that two folders hold the same model: weights, logits, gradients …"
    verify = _command(commands, "verify", about)
    verify.add_argument(
        "run_dir", metavar="RUN_DIR", type=folder_or_bucket, help="the output_dir of a run, or a Hugging Face folder"
    )
    verify.add_argument(
        "hf_dir",
        metavar="HF_DIR",
        type=folder_or_bucket,
        help="its export, or another folder; it gets a certificate.json, and with matplotlib a certificate.svg",
    )
    verify.add_argument(
        "--step", type=_step, metavar="N", help="the checkpoint of step N, or `best` (default: the exported one)"
    )
    verify.add_argument("--prompts", type=Path, metavar="FILE", help="a file, one prompt a line (default: our own)")
    verify.add_argument("--json", action="store_true", help="print the certificate instead of a summary")
    verify.set_defaults(run=_told(_verify))

    about = "tell which of Transformers' own architectures a model can be exported as, and why not as the others"
    explain = _command(commands, "explain", about)
    explain.add_argument(
        "model", metavar="MODEL", type=folder_or_bucket, help="a run, a model's folder, or the YAML file of a config"
    )
    explain.add_argument("--json", action="store_true", help="print one JSON object")
    explain.set_defaults(run=_told(_explain))

    push = _command(commands, "push", "upload an export to the Hugging Face Hub", more=", by its usual login")
    push.add_argument("folder", metavar="HF_DIR", type=Path, help="a folder that to-hf or adapter to-peft wrote")
    push.add_argument("repo", metavar="USER/NAME", help="the model's repository, which is made if need be")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", metavar="BRANCH", help="the branch to write (default: main)")
    push.add_argument("--message", metavar="TEXT", help="the message of the commit")
    push.set_defaults(run=_told(_push))

    _adapter_commands(commands)


def _command(commands: Any, name: str, about: str, more: str = "") -> argparse.ArgumentParser:
    """A command's parser. --help shows `about`, a phrase, in the list, and with `more` behind it as a sentence."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}{more}."
    )
    return parser


def _adapter_commands(commands: Any) -> None:
    adapter = _command(commands, "adapter", "carry adapters between runs and PEFT, bit for bit")
    directions = adapter.add_subparsers(title="commands", metavar="COMMAND", required=True)

    to_peft = _command(directions, "to-peft", "export a run's adapters as a folder that PEFT loads")
    to_peft.add_argument(
        "run_dir", metavar="RUN_DIR", type=folder_or_bucket, help="the output_dir of a run with `lora`"
    )
    to_peft.add_argument("adapter_dir", metavar="ADAPTER_DIR", type=folder_or_bucket, help="the folder to write")
    to_peft.add_argument("--step", type=_step, metavar="N", help=_STEP)
    to_peft.add_argument(
        "--base-model", metavar="HF_DIR", help="the model that the adapter is for, where PEFT will look for it"
    )
    to_peft.add_argument(
        "--force", action="store_true", help="replace the files of an adapter in ADAPTER_DIR that no export wrote"
    )
    to_peft.add_argument(
        "--ema", action="store_true", help="export the average of the adapters that training.ema_decay keeps"
    )
    to_peft.set_defaults(run=_told(_to_peft))

    from_peft = _command(directions, "from-peft", "make a run directory of an adapter that PEFT saved")
    from_peft.add_argument(
        "adapter_dir", metavar="ADAPTER_DIR", type=folder_or_bucket, help="a folder that to-peft or PEFT wrote"
    )
    from_peft.add_argument("run_dir", metavar="RUN_DIR", type=folder_or_bucket, help="the run directory to make")
    from_peft.add_argument(
        "--base",
        metavar="RUN_DIR",
        type=folder_or_bucket,
        required=True,
        help="the run whose newest weights the adapter is for",
    )
    from_peft.set_defaults(run=_told(_from_peft))


def _told(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command that tidies up after a signal, and tells what is to be known of adapters and their bases."""

    def run(options: argparse.Namespace) -> int:
        tell_warnings("stellarbyte")
        with interruptible():
            code = command(options)
            sys.stdout.flush()
            return code

    return run


# The converters are imported late, because their libraries take seconds; --help and a misspelt option need none.


def _to_hf(options: argparse.Namespace) -> int:
    keep_freed()
    from convert import hf_checkpoint
    from convert.bucket_folders import written_there
    from stellarbyte.progress import progress

    with progress("writing weights", "B") as update, written_there(options.hf_dir, options.force) as folder:
        done = hf_checkpoint.to_hf(
            options.run_dir,
            folder,
            step=options.step,
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
            force=options.force,
            fold_layer_scale=options.fold_layer_scale,
            ema=options.ema,
            family=options.family,
            license_id=options.license,
            progress=update,
        )
    print(f"{options.hf_dir}: step {done.step}, {done.parameters:,} parameters, {_megabytes(done.nbytes)} of weights")
    if done.zeros:
        small = f"{done.zeros:,} weights are too small for {options.dtype} and are zero in the export"
        print(f"stellarbyte: warning: {small}", file=sys.stderr)
    return 0


def _to_gguf(options: argparse.Namespace) -> int:
    from convert.gguf_export import to_gguf
    from stellarbyte.progress import progress

    with progress("writing weights", "B") as update:
        done = to_gguf(
            options.run_dir,
            options.file,
            step=options.step,
            dtype=options.dtype,
            ema=options.ema,
            force=options.force,
            progress=update,
        )
    for remark in done.remarks:
        print(f"stellarbyte: warning: {options.file}: {remark}", file=sys.stderr)
    print(f"{options.file}: step {done.step} as {done.family}, {_megabytes(done.nbytes)} in {options.dtype}")
    return 0


def _from_hf(options: argparse.Namespace) -> int:
    keep_freed()
    from convert import export_files, hf_checkpoint
    from convert.bucket_folders import read_here
    from stellarbyte.progress import progress

    with read_here(options.hf_dir) as folder, export_files.looking_for_changes(folder) as changed_since_export:
        with progress("writing weights", "B") as update:
            done = hf_checkpoint.from_hf(folder, options.run_dir, update)
        names = ", ".join(changed_since_export())
    if names:
        print(f"stellarbyte: warning: {options.hf_dir} has changed since it was exported: {names}", file=sys.stderr)
    print(f"{options.run_dir}: step {done.step}, {done.parameters:,} parameters from {options.hf_dir}")
    return 0


def _to_peft(options: argparse.Namespace) -> int:
    from convert import adapters
    from convert.bucket_folders import written_there

    with written_there(options.adapter_dir, options.force) as folder:
        done = adapters.to_peft(
            options.run_dir,
            folder,
            step=options.step,
            base_model=options.base_model,
            force=options.force,
            ema=options.ema,
        )
    size = f"{done.parameters:,} parameters, {_megabytes(done.nbytes)}"
    print(f"{options.adapter_dir}: step {done.step}, {size} of adapters")
    return 0


def _from_peft(options: argparse.Namespace) -> int:
    from convert import adapters
    from convert.bucket_folders import read_here

    with read_here(options.adapter_dir) as folder:
        done = adapters.from_peft(folder, options.run_dir, options.base)
    print(f"{options.run_dir}: step {done.step}, {done.parameters:,} parameters of adapters on {options.base}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from convert.verifying import command

    return command.run(options)


def _explain(options: argparse.Namespace) -> int:
    from convert.explain import explain, explain_text

    facts = explain(options.model)
    print(json.dumps(facts) if options.json else explain_text(facts))
    return 0


def _push(options: argparse.Namespace) -> int:
    from convert.hub import push

    where = {"private": options.private, "revision": options.revision}
    address, count = push(options.folder, options.repo, message=options.message, **where)
    print(f"{address}: {count} files of {options.folder}")
    return 0


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
