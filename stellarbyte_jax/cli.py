"""The command line `stellarbyte`."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from stellarbyte_jax.errors import UserError

PROGRAM = "stellarbyte"

# Exit codes: a mistake that the user can mend, and the shell's for Ctrl-C.
USER_ERROR, INTERRUPTED = 2, 130

# On a CPU, XLA takes a program's scratch anew from malloc for every call, and with it hundreds of thousands of page
# faults: with memory that is kept, in huge pages, a training step is about a tenth faster. glibc reads its tunables
# only when a process starts.
MALLOC_TUNABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=9000000000000000000"
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and not hasattr(options, "config"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    options.overrides = overrides
    if arguments is None and options.run is _pretrain:
        _restart_with_tuned_malloc()
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (| head); Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _restart_with_tuned_malloc() -> None:
    if sys.platform == "linux" and not MALLOC_TUNABLES.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC_TUNABLES})


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes read like all our others: one sentence, no usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{PROGRAM}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Pretrain decoder language models in JAX.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        added.set_defaults(run=run)
        return added

    corpus = command("corpus", _corpus, "write a corpus that is at hand on this machine")
    corpus.add_argument("name", choices=["stdlib"], help="stdlib: the Python standard library, one document a file")
    corpus.add_argument("output", type=Path, metavar="OUT.jsonl")

    tokenizer = commands.add_parser("tokenizer", help="train a tokenizer", description="Train a tokenizer.")
    train = tokenizer.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser).add_parser(
        "train", help="train a byte-level BPE on text", description="Train a byte-level BPE on text."
    )
    train.set_defaults(run=_tokenizer_train)
    train.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs, as data.sources.path"
    )
    train.add_argument("--field", nargs="+", default=["text"], help="fields of records that hold text (default: text)")
    train.add_argument("--template", help='how fields are put together, such as "{title}\\n{text}"')
    train.add_argument(
        "--on-bad-record", choices=["fail", "skip"], default="fail", help="as data.on_bad_record (default: fail)"
    )
    train.add_argument("--vocab-size", type=int, required=True, metavar="N")
    train.add_argument("--output", type=Path, required=True, metavar="DIR")
    train.add_argument(
        "--special-tokens", nargs="*", default=[], metavar="TOKEN", help="beside <|SBOS|> <|SEOS|> <|PAD|>"
    )

    overriding = "[--section.field value …] override fields of the config"
    prepare = command("prepare", _prepare, "turn text into token shards")
    prepare.add_argument("config", type=Path, metavar="CONFIG.yaml", help=overriding)
    pretrain = command("pretrain", _pretrain, "train a model, or go on training it")
    pretrain.add_argument("config", type=Path, metavar="CONFIG.yaml", help=overriding)

    evaluate = command("evaluate", _evaluate, "measure a run's model on its validation split")
    _run_dir_options(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    generate = command("generate", _generate, "continue a prompt with a run's model")
    _run_dir_options(generate)
    generate.add_argument("--prompt", required=True, metavar="TEXT", nargs="+", help="the text to continue, or several")
    generate.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0 (default): the likeliest token"
    )
    generate.add_argument("--top-k", type=int, metavar="N", help="sample from the N likeliest (default: from all)")
    generate.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the likeliest that reach probability P (default: from all)",
    )
    generate.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="stop after N tokens (default 128), or at <|SEOS|>"
    )
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="for sampling (default 0)")
    generate.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the computation (default float32)"
    )
    generate.add_argument("--json", action="store_true", help="print one JSON object a prompt instead of streaming")
    return parser


def _run_dir_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the output_dir of a pretraining run")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of step N (default: the newest)")


def _corpus(options: argparse.Namespace) -> None:
    from stellarbyte_jax.data.corpus import write_stdlib_corpus

    count = write_stdlib_corpus(options.output)
    print(f"{count} documents, {options.output.stat().st_size / 1e6:.1f} MB in {options.output}")


def _tokenizer_train(options: argparse.Namespace) -> None:
    from stellarbyte_jax.config import SourceConfig
    from stellarbyte_jax.data.corpus import documents
    from stellarbyte_jax.data.tokenizer_training import train_tokenizer

    sources = [SourceConfig(path, tuple(options.field), options.template) for path in options.input]

    def texts() -> Iterator[str]:
        done = 0
        with _progress("text read", "B") as update:
            for source in sources:
                for document in documents(source, options.on_bad_record):
                    done += len(document.text.encode())
                    update(done, None)
                    yield document.text

    tokenizer = train_tokenizer(texts(), options.vocab_size, options.output, options.special_tokens)
    print(f"{tokenizer.vocab_size} tokens in {options.output}")


def _prepare(options: argparse.Namespace) -> None:
    from stellarbyte_jax.config_file import load_run_config
    from stellarbyte_jax.data.prepare import prepare

    config = load_run_config(options.config, options.overrides)
    with _progress("bytes of sources", "B") as update:
        manifest = prepare(config.data, lambda progress: update(progress.bytes_done, progress.bytes_total))
    for name, split in manifest.splits.items():
        print(f"{name}: {split.documents} documents, {split.tokens} tokens, {split.bytes} bytes of text")
    print(f"token shards in {config.data.shards}")


def _pretrain(options: argparse.Namespace) -> int:
    from stellarbyte_jax.config_file import load_run_config

    config = load_run_config(options.config, options.overrides)
    # JAX is imported only now: a mistake in the config need not wait for it.
    from stellarbyte_jax.training.loop import pretrain

    finished = pretrain(config)
    if finished:
        print(f"{config.training.max_steps} steps done; checkpoints, config and metrics in {config.output_dir}")
    return 0 if finished else INTERRUPTED


def _evaluate(options: argparse.Namespace) -> None:
    from stellarbyte_jax.training.evaluation import evaluate_run

    with _progress("batches") as update:
        figures, step = evaluate_run(options.run_dir, options.step, update)
    if options.json:
        print(json.dumps({"step": step, **figures}))
        return
    print(f"step {step}, validation split of {figures['tokens']:.0f} tokens")
    for name in ("loss", "perplexity", "accuracy", "bits_per_byte"):
        print(f"  {name.replace('_', ' '):<14} {figures[name]:.4f}")


def _generate(options: argparse.Namespace) -> None:
    import time

    from stellarbyte_jax.data.tokenizer import StreamDecoder
    from stellarbyte_jax.inference.generate import Generator
    from stellarbyte_jax.inference.sampling import Sampling
    from stellarbyte_jax.training.load import load_model

    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    model, tokenizer, _ = load_model(options.run_dir, options.step, options.dtype)
    prompts = [[tokenizer.bos_token_id, *tokenizer.encode(prompt)] for prompt in options.prompt]
    # Up to the end of the context; a prompt that leaves no room at all is refused below.
    room = max(1, model.config.max_position_embeddings - max(map(len, prompts)))
    max_new_tokens = min(options.max_new_tokens, room)
    generator = Generator(model)

    if options.json or len(prompts) > 1:
        start = time.perf_counter()
        answers = generator.generate(prompts, max_new_tokens, sampling, options.seed)
        seconds = time.perf_counter() - start
        for prompt, tokens, answer in zip(options.prompt, prompts, answers, strict=True):
            text = tokenizer.decode(answer)
            record = {"prompt": prompt, "text": text, "prompt_tokens": len(tokens), "new_tokens": len(answer)}
            rate = {"tokens_per_second": len(answer) / seconds}
            print(json.dumps(record | rate, ensure_ascii=False) if options.json else prompt + text)
        return

    decoder, started, ended = StreamDecoder(tokenizer), False, False

    def write(text: str) -> None:
        nonlocal started
        # The prompt waits for the first new tokens, so that an error never follows half an answer.
        sys.stdout.write(text if started else options.prompt[0] + text)
        sys.stdout.flush()
        started = True

    def on_tokens(tokens_BN) -> None:  # type: ignore[no-untyped-def]
        nonlocal ended
        for token in tokens_BN[0].tolist():
            ended = ended or token == tokenizer.eos_token_id
            write("" if ended else decoder.push(token))

    generator.generate(prompts, max_new_tokens, sampling, options.seed, on_tokens)
    write(decoder.finish() + "\n")


@contextmanager
def _progress(what: str, unit: str = "") -> Iterator[Callable[[int, int | None], None]]:
    """A bar with rate and ETA on a terminal, nothing elsewhere; yields update(done so far, total or None)."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    amount = (bars.DownloadColumn(), bars.TransferSpeedColumn()) if unit == "B" else (bars.MofNCompleteColumn(),)
    columns = (bars.TextColumn(what), bars.BarColumn(), *amount, bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = None

        def update(done: int, total: int | None) -> None:
            nonlocal task
            # What was done before the first call, by an interrupted run, must not count in the rate.
            if task is None:
                task = progress.add_task(what, total=total, completed=done)
            progress.update(task, completed=done, total=total)

        yield update


if __name__ == "__main__":
    sys.exit(main())
