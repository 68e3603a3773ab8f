"""`stellarbyte prepare`, `data audit` and the options of `tokenizer train`; heavy libraries are imported late."""

import argparse
import json
from pathlib import Path
from typing import Any

from stellarbyte.interrupt import interruptible
from stellarbyte.places import local
from stellarbyte.progress import progress
from stellarbyte_jax.checkpoints.folders import latest_step
from stellarbyte_jax.data.pre_tokenizers import DEFAULT, PATTERNS
from stellarbyte_jax.run_folder import check_is_run


def add_training_options(train: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte tokenizer train`."""
    train.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs, as data.sources.path"
    )
    train.add_argument(
        "--field", nargs="+", help="fields of records that hold text (default: those that --template names, or text)"
    )
    train.add_argument(
        "--template",
        help=r"""how fields are put together, such as '{title}\n{text}'; \n is a line end, \t a tab, \\ a backslash, and
        {{ a brace""",
    )
    train.add_argument(
        "--on-bad-record", choices=["fail", "skip"], default="fail", help="as data.on_bad_record (default: fail)"
    )
    train.add_argument("--vocab-size", type=int, required=True, metavar="N")
    train.add_argument("--output", type=Path, required=True, metavar="DIR")
    train.add_argument(
        "--special-tokens", nargs="*", default=[], metavar="TOKEN", help="beside <|SBOS|> <|SEOS|> <|PAD|>"
    )
    train.add_argument(
        "--pre-tokenizer",
        choices=list(PATTERNS),
        default=DEFAULT,
        help=f"""the pattern of the words that no merge crosses (default: {DEFAULT}); a GGUF needs one that llama.cpp
        knows: {", ".join(name for name in PATTERNS if name != "stellarbyte")}""",
    )
    train.add_argument("--force", action="store_true", help="replace another tokenizer that is in DIR")


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte prepare` that share it out among jobs."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--part", metavar="3/64", help="only the third of 64 parts, as an independent job; --merge 64 joins them"
    )
    what.add_argument("--merge", type=int, metavar="64", help="make the shards of all 64 parts, and delete these")


def audit(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte data audit`."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a pretraining run with data.ledger true")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_audit)


def prepare(options: argparse.Namespace) -> None:
    """Turn text or chat into token shards."""
    from stellarbyte_jax.config_file import load_run_config
    from stellarbyte_jax.data.parts import Part, merge, prepare_part
    from stellarbyte_jax.data.prepare import prepare

    if options.part is None:  # several jobs at once would all make the run of init_from
        options.before(options)
    config, folder = load_run_config(options.config, options.overrides), None
    if options.part is not None or options.merge is not None:
        local(config.data.shards, "data.shards", "parts are made and merged on a disk: name a folder that all jobs see")
    part = None if options.part is None else Part.parse(options.part)
    with interruptible(), progress(*("tokens",) if options.merge else ("bytes of sources", "B")) as update:

        def tell(done: Any) -> None:
            update(done.bytes_done, done.bytes_total)

        if part is not None:
            manifest = prepare_part(config.data, part, tell)
            folder = part.folder(Path(config.data.shards)) if manifest.part is not None else None
        elif options.merge is not None:
            manifest = merge(config.data, options.merge, tell)
        else:
            manifest = prepare(config.data, tell)
    unit = "samples" if manifest.samples is not None else "passages" if manifest.recipe.passages else "documents"
    for name, split in manifest.splits.items():
        print(f"{name}: {split.documents} {unit}, {split.tokens} tokens, {split.bytes} bytes of text")
    if manifest.samples is not None:
        print(manifest.samples.summary())
    print(f"token shards in {folder or config.data.shards}")


def _audit(options: argparse.Namespace) -> int:
    """Prove from a run's ledger that every sample came once an epoch; the exit code says whether it did."""
    from stellarbyte_jax.data.audit import audit, audit_json, audit_text

    check_is_run(options.run_dir, "RUN_DIR")
    with interruptible():
        found = audit(options.run_dir, latest_step(options.run_dir))
    print(json.dumps(audit_json(found)) if options.json else audit_text(found))
    return 1 if found.fault_count else 0
