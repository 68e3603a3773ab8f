"""Careless command lines: arguments missing, doubled, empty, not UTF-8, huge, negative, of another kind, in use."""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.case import Case, Cases, Command, World, convert, stellarbyte, torch

Words = tuple[str | bytes, ...]
# A command that would do, of which each word in braces is a sound thing; what it writes is called out.
SOUND: dict[str, tuple[Callable[..., Command], Words]] = {
    "corpus": (stellarbyte, ("corpus", "stdlib", "out.jsonl")),
    "tokenizer train": (
        stellarbyte, ("tokenizer", "train", "--input", "{corpus.jsonl}", "--vocab-size", "300", "--output", "out"),
    ),
    "prepare": (stellarbyte, ("prepare", "{in}/run.yaml", "--data.shards=out")),
    "pretrain": (stellarbyte, ("pretrain", "{in}/run.yaml", "--output_dir=out")),
    "plan": (stellarbyte, ("plan", "{in}/run.yaml", "--topology", "h100:1x1")),
    "evaluate": (stellarbyte, ("evaluate", "{run}")),
    "evaluate on text": (stellarbyte, ("evaluate", "{run}", "--data", "{corpus.jsonl}")),
    "torch evaluate": (torch, ("evaluate", "{hf}", "--data", "{corpus.jsonl}")),
    "prune": (stellarbyte, ("prune", "{run}", "out", "--keep", "90%")),
    "info": (stellarbyte, ("info", "{run}")),
    "generate": (stellarbyte, ("generate", "{run}", "--prompt", "star", "--max-new-tokens", "4")),
    "to-hf": (convert, ("to-hf", "{run}", "out")),
    "from-hf": (convert, ("from-hf", "{hf}", "out")),
    "verify": (convert, ("verify", "{run}", "{in}/hf")),
    "to-peft": (convert, ("adapter", "to-peft", "{lora}", "out")),
    "from-peft": (convert, ("adapter", "from-peft", "{peft}", "out", "--base", "{run}")),
    "torch generate": (torch, ("generate", "{hf}", "--prompt", "star", "--max-new-tokens", "4")),
    "chat": (torch, ("chat", "{hf}", "--max-new-tokens", "4")),
    "chat of a run": (stellarbyte, ("chat", "{run}", "--max-new-tokens", "4")),
    "data preview": (torch, ("data", "preview", "{in}/finetune.yaml")),
    "finetune": (torch, ("finetune", "{in}/finetune.yaml", "--output_dir=out")),
    "merge": (torch, ("merge", "{hf}", "{peft}", "out")),
    "quantize": (
        stellarbyte,
        ("quantize", "{run}", "out", "--method", "rtn", "--bits", "8", "--group-size", "8", "--samples", "4"),
    ),
}  # fmt: skip
WRITING = ("corpus", "tokenizer train", "prepare", "pretrain", "prune", "to-hf", "from-hf", "to-peft", "from-peft")
WRITING += ("finetune", "merge", "quantize")  # into "out"

# What is put behind a sound command.
BEHIND: dict[str, tuple[Words, ...]] = {
    "plan": (
        *(("--topology", word) for word in ("", "h100", "h100:0x1", "h100:-1x1", f"h100:{10**12}x1", "v5e:16x16x16")),
        *(("--topology", word) for word in ("nowhere:1x1", "h100:1x1x1x1x1", "H100:1x1", "v5e:٣x٣", "h100:1e3",
            "x" * 9000)),
        *(("--slices", word) for word in ("0", "-1", "x", "1" * 5000, "1.5", str(10**12))),
        *(("--tokens", word) for word in ("", "0", "-3", "nan", "inf", "1e400", "300Q", "B", "1_000", "٣B")),
        *(("--price", word) for word in ("nan", "-1", "inf", "x", "1e400")),
        *(("--picture", word) for word in ("", "{in}", "{in}/a/b.svg", "/dev/full", b"\xff.svg", "n" * 300)),
        ("--search", "--picture", "x.svg"), ("--search", "--compile"), ("--search", "--json"),
        ("--topology", "h100:1x1", "--topology", "h100:1x1"), ("--nothing",), ("--json", "yes"),
    ),
    "corpus": (("--chat", "yes"), ("--chat", "--chat"), ("more",), ("--force",)),
    "tokenizer train": (
        *(("--vocab-size", word) for word in ("0", "-1", "2", "258", "1e3", str(10**12), "9" * 5000, "x", "nan",
            "010")),
        *(("--special-tokens", word) for word in ("", "a", "<|SBOS|>", b"\xff", "n" * 100_000, "\x1b[2J", "star")),
        *(("--special-tokens", word, word) for word in ("<|a|>", "a")), ("--special-tokens",),
        *(("--field", word) for word in ("", "nowhere", b"\xff", "{text}")),
        *(("--template", word) for word in ("", "{", "{}", "{text.__class__}", "{nowhere}", "{text!r:>1000000000}",
            b"\xff")),
        *(("--input", word) for word in ("", "nowhere", "/dev/zero", "{in}/*.nothing", b"\xff", "n" * 300,
            "{tokenizer}")),
        ("--on-bad-record", "perhaps"), ("--output", ""), ("--output", "{in}/run.yaml"), ("--output", "{in}"),
    ),
    "prune": (
        *(("--keep", word) for word in ("0", "0%", "-1", "100%", "120%", "2%", "x", "", "nan", "90%,", "1e-9")),
        *(("--what", word) for word in ("", "experts", "neurons", "heads,heads", "heads,")),
        *(("--multiple", word) for word in ("0", "-1", str(10**12))), ("--importance", "x"), ("--by", "weight"),
        *(("--samples", word) for word in ("0", "-1", "x")), ("--device", "cpu"), ("--recover", "nowhere"),
        *(("--eval-batches", word) for word in ("0", "-1", str(10**12), "x")), ("--step", "3"), ("--step", "-4"),
        ("--data", "nowhere"), ("--data", ""), ("--data", "{run}"), ("--pareto", "nowhere/x.svg"),
    ),
    "evaluate": (
        *(("--step", word) for word in ("", "-1", "3", "x", "1" * 5000, str(2**63), "٣", "4.0", "04")),
        *(("--data.shards", word) for word in ("", "nowhere", "{run}", "{in}/run.yaml", "/dev/zero", b"\xff",
            "n" * 300)),
        ("{run}",), ("--json", "--json"), ("--data.sequence_length", "12"), ("--", "--json"),
    ),
    "evaluate on text": (
        *((option, word) for option in ("--window", "--stride", "--limit", "--batch-tokens")
            for word in ("", "0", "-1", "x", "1.5", str(10**12), "1" * 5000)),
        *(("--data", word) for word in ("", "nowhere", "{run}", "/dev/zero", b"\xff", "n" * 300, "a=", "a=nowhere")),
        *(("--compare", word) for word in ("", "nowhere", "{hf}", "{peft}", "{lora}", "{corpus.jsonl}")),
        *(("--tasks", word) for word in ("", "nowhere.jsonl", "{corpus.jsonl}", "{run}", "/dev/zero")),
        ("--text-field", "x"), ("--text-field", ""), ("--domain-field", "x"), ("--domain-field", b"\xff"),
        ("--device", "cpu"), ("--dtype", "float16"), ("--dtype", "x"), ("--few-shot", "1"), ("--kv-budget", "9"),
        ("--compare-step", "3"), ("--step", "3"), ("--data.shards", "x"), ("--ema",),
    ),
    "torch evaluate": (
        ("--device", "moon"), ("--dtype", "float8"), ("--step", "3"), ("--ema",), ("--window", "10000000"),
        ("--compare", "{peft}"), ("--compare", "{hf}", "--compare-step", "1"), ("--tasks", "nowhere.yaml"),
    ),
    "info": (("more",), ("--json", "--json"), ("--step", "4")),
    "generate": (
        *(("--temperature", word) for word in ("-1", "nan", "inf", "x", "1e400", "", "1e-320", "1e30")),
        *(("--top-k", word) for word in ("0", "-1", str(10**12), "1.5", "1" * 5000)),
        *((option, word) for option in ("--top-p", "--min-p") for word in ("0", "-1", "2", "nan", "x")),
        *(("--repetition-penalty", word) for word in ("0", "-1", "nan", "inf", "1e300", "1e-300")),
        *(("--max-new-tokens", word) for word in ("0", "-1", str(10**12), "x", "1" * 5000)),
        *(("--seed", word) for word in ("-1", str(2**64), str(2**32 + 1), "x", "1.5")),
        *(("--stop", word) for word in ("", b"\xff", "n" * 100_000)), ("--stop",),
        *(("--prompt", word) for word in ("", b"\xff", "star " * 20_000, "\x1b[2J", "-1")), ("--prompt",),
        ("--prompt", "a", ""), ("--prompt", "a", "star " * 300), ("--prompt", "a", "b", "c", "--temperature", "1"),
        *(("--draft", word) for word in ("", "nowhere", "{hf}", "{lora}", "/dev/zero", b"\xff")),
        *(("--draft", "{run}", "--draft-tokens", word) for word in ("0", "-1", str(10**12), "x")),
        ("--draft-tokens", "3"), ("--dtype", "float16"), ("--dtype", ""), ("--device", "cpu"), ("--step", "3"),
    ),
    "to-hf": (
        *(("--max-shard-size", word) for word in ("", "0", "-1GB", "5", "5QB", "nanGB", "1e400GB", "0.000001KB",
            "\u0661GB")),
        ("--dtype", "float16"), ("--step", "3"), ("--step", "-1"), ("--force", "--force"), ("--fold-layer-scale",),
            ("x",),
    ),
    "from-hf": (("--step", "0"), ("--force",), ("x",)),
    "verify": (
        *(("--prompts", word) for word in ("", "nowhere", "{in}", "/dev/zero", "/dev/null", "{in}/latin", "{in}/long",
            b"\xff")),
        ("--step", "2"), ("--step", "3"), ("x",),
    ),
    "to-peft": (
        *(("--base-model", word) for word in ("", b"\xff", "n" * 100_000, "\x1b[2J")), ("--step", "3"), ("--dtype",
            "float32"),
    ),
    "from-peft": (*(("--base", word) for word in ("", "nowhere", "{hf}", "{lora}", "{peft}", "/dev/zero", b"\xff")),),
    "torch generate": (
        *(("--temperature", word) for word in ("-1", "nan", "inf", "x", "1e400", "1e-320")),
        *(("--top-k", word) for word in ("0", "-1", str(10**12))), *(("--top-p", word) for word in ("0", "2", "nan")),
        *(("--repetition-penalty", word) for word in ("0", "nan", "1e300")), ("--min-p", "2"),
        *(("--max-new-tokens", word) for word in ("0", "-1", str(10**12), "1" * 5000)),
        *(("--seed", word) for word in ("-1", str(2**64), str(2**63))), ("--stop", ""), ("--stop", b"\xff"),
        *(("--prompt", word) for word in ("", b"\xff", "star " * 20_000)), ("--prompt", "a", "b"), ("--prompt",),
        *(("--device", word) for word in ("", "nowhere", "cuda", "cuda:99", "cpu:7", "meta", "mps", "-1")), ("--dtype",
            "int8"),
    ),
    "chat": (
        *(("--adapter", word) for word in ("", "=", "a=", "={peft}", "a b={peft}", "v1.0={peft}", "train={peft}",
            "off={peft}")),
        *(("--adapter", word) for word in (b"\xff={peft}", "a={hf}", "a={in}/run.yaml", "a=nowhere", "evil/repo",
            "/dev/zero")),
        ("--adapter", "a={peft}", "--adapter", "a={peft}"), ("--adapter", "{peft}", "--adapter", "{peft}"),
            ("--adapter",),
        *(("--system", word) for word in ("", b"\xff", "star " * 20_000)),
        *(("--chat-template", word) for word in ("", "nowhere", "{in}", b"\xff", "n" * 300, "stellarbyte")),
        ("--device", "nowhere"), ("--seed", "-1"), ("--max-new-tokens", "0"), ("--stop", ""), ("--prompt", "a"),
            ("--echo", "x"),
    ),
    "chat of a run": (
        *(("--step", word) for word in ("3", "-1", "x")), ("--adapter", "{peft}"), ("--device", "cpu"), ("--seed",
            "-1"),
        *(("--chat-template", word) for word in ("", "nowhere", "{in}", b"\xff")), ("--dtype", "float16"),
        ("--system", b"\xff"), ("--stop", ""), ("--temperature", "1e-320"), ("--max-new-tokens", "0"),
    ),
    "data preview": (
        *(("--samples", word) for word in ("", "0", "-1", "x", "1.5", "1" * 5000, str(10**12), "٣")),
        ("--json",), ("--data", "x"), ("--data.sources", "x"), ("x",), ("--data.nothing=1",), ("--=1",), ("-x", "1"),
            ("--data.",),
    ),
    "prepare": (
        ("x",), ("--",), ("--data",), ("--data.shards",), ("--data.nothing=1",), ("--data.sources.9.path=x",),
            ("--.=1",),
        ("--data.sources.-1.path=x",), ("--data.sources.x.path=x",), ("--data..shards=x",), (b"--data.\xff=1",),
            ("--seed=",),
        (b"--data.shards=\xff",), ("--data.shards=a", "--data.shards=b"), ("--Data.Shards=x",), ("--data.shards",
            "--seed"),
        ("--seed=1:30",), ("--seed=010",), ("--seed=1_000",), ("--seed=0x10",), ("--seed=yes",), ("--seed=1e3",),
            ("--seed=+1",),
        ("--seed=!!int 3",), ("--seed=*x",), ("--seed=[",), ("--seed=" + "[" * 100_000,),
            ("--" + "a." * 50_000 + "b=1",),
        ("--data.tokens_per_shard=1", "--data.tokens_per_shard=2"), ("--data={}",), ("--data=null",),
            ("--data.sources=null",),
    ),
    "pretrain": (
        *(("--profile", word) for word in ("", "1", "1:", "2:1", "-1:2", "0:1", "3:99", "x:y", f"1:{10**12}", "1:2:3",
            "1" * 5000)),
        *(("--dump-hlo", word) for word in ("", "{in}/run.yaml", "/dev/full", b"\xff", "n" * 300, "/proc/x")),
        ("--no-memory-check", "x"), ("--training.max_steps",), ("--training.max_steps=4", "x"), ("--model=[]",),
        ("--output_dir",), ("--output_dir=",), ("--output_dir={in}/run.yaml",), ("--output_dir={in}/shards",),
            ("--output_dir={in}/hf",),
        ("--init_from={hf}",), ("--init_from={peft}",), ("--init_from={shards}",), ("--mesh={data: 3}",),
            ("--lora.r=2",),
        ("--distributed.process_id=1",), ("--distributed.num_processes=2",), ("--training.dtype=float16",),
            ("--checkpoint=no",),
    ),
    "finetune": (
        ("--json", "--json"), ("x",), ("--output_dir",), ("--output_dir=",), ("--output_dir={in}/finetune.yaml",),
        ("--output_dir={in}/hf",), ("--output_dir={in}/run",), ("--model={run}",), ("--model={peft}",),
        ("--model={lora}",), ("--lora=",),
        ("--lora.r",), ("--lora.nothing=1",), ("--training.nothing=1",), ("--training.output_dir=x",), ("--model",),
            ("--trainable.x=1",),
        ("--training.report_to=foo",), ("--lora.layers_to_transform=[0]", "--lora.target_modules=.*q_proj"),
            ("--lora.r=010",),
        ("--lora.rank_pattern={nowhere: 4}",), ("--lora.alpha_pattern={nowhere: 4}",),
            ("--lora.exclude_modules=[nowhere]",),
        ("--lora.modules_to_save=[nowhere]",), ("--training.max_steps=1:30",), ("--dtype=float32", "--dtype=bfloat17"),
            (b"--model=\xff",),
    ),
    "merge": (("x",), ("--dtype", "int8"), ("--dtype",), ("--force",), ("--adapter", "x")),
    "quantize": (
        *(("--bits", word) for word in ("0", "-1", "5", "x", "1e1", "1" * 5000, "٨")),
        *(("--group-size", word) for word in ("", "0", "-8", "7", "16", "row", "x", str(10**12), "1" * 5000, "٨")),
        *(("--method", word) for word in ("", "magic", "gptq", "smoothquant")),
        *(("--samples", word) for word in ("0", "-1", "x", "1.5", str(10**12), str(2**20))),
        *(("--sequence-length", word) for word in ("0", "-1", "1", "x", str(10**12), str(2**20))),
        *(("--seed", word) for word in ("-1", "x", "1.5", str(2**64), "1" * 5000)),
        *(("--method", "gptq", "--damping", word) for word in ("0", "-1", "nan", "inf", "2", "x", "1e-300")),
        *((option, word) for option in ("--max-perplexity-increase", "--max-context-lost")
            for word in ("", "%", "-1%", "nan", "nan%", "1e400", "3", "0%", "x")),
        *(("--data", word) for word in ("", "nowhere", "/dev/zero", "/dev/null", "{in}", "{in}/latin", "{in}/pipe",
            b"\xff", "n" * 300, "{corpus.jsonl}", "{shards}", "{tokenizer}", "{run}")),
        *(("--step", word) for word in ("", "3", "-1", "x", "1" * 5000)),
        *(("--device", word) for word in ("", "nowhere", "cuda", "cuda:99", "meta", "-1")),
        ("--damping", "0.1"), ("--no-symmetric",), ("--head",), ("--embeddings",), ("--force", "--force"), ("x",),
        ("--json", "--json"), ("--samples",),
    ),
}  # fmt: skip
# A word, by what is given in its place: each of the sound things for another, what is empty, and what is no path.
INSTEAD: tuple[str | bytes, ...] = (
    *("", ".", "/", "nowhere", "n" * 300, "n/" * 5000, "a\nb", "\x1b[2J", b"\xff", "--", "-", "/dev/zero", "/dev/null"),
    *("{in}/run.yaml", "{run}", "{hf}", "{peft}", "{lora}", "{shards}", "{tokenizer}", "{corpus.jsonl}", "{in}/pipe"),
)
# What stands where a command is to write: name -> what makes it.
THERE: dict[str, Callable[[Path], Any]] = {
    "a file": lambda out: out.write_text("mine"),
    "a folder with a file of somebody's": lambda out: (out.mkdir(), (out / "mine.txt").write_text("mine")),
    "a pipe": os.mkfifo,
    "a link to nothing": lambda out: out.symlink_to("nowhere/at/all"),
    "a link to itself": lambda out: out.symlink_to(out.name),
    "a link to an empty folder": lambda out: ((out.parent / "else").mkdir(), out.symlink_to("else")),
    "a device": lambda out: out.symlink_to("/dev/full"),
    "an empty folder": Path.mkdir,
}
# Programs with nothing, or nothing that they know.
BARE: dict[str, tuple[Callable[..., Command], Words]] = {
    f"{program.__name__} {shown}": (program, words)
    for program in (stellarbyte, convert)
    for shown, words in {
        "alone": (), "of nothing": ("",), "of no UTF-8": (b"\xff",), "of an unknown command": ("frobnicate",),
        "of an escape sequence": ("\x1b[2J",), "of 100,000 letters": ("x" * 100_000,), "of an option": ("--nothing",),
        "with help": ("--help",), "with -h and more": ("-h", "\x1b[2J"), "of a dash": ("-",), "of two dashes": ("--",),
        "of a command in capitals": ("GENERATE",), "of a beginning": ("gen",), "with 10,000 words": ("x",) * 10_000,
    }.items()
}  # fmt: skip


def _filled(world: World, words: Words) -> list[str | bytes]:
    """The words with the paths of sound things in their braces."""
    made = []
    for word in words:
        filled = os.fsencode(word)
        for path in (*world.base.iterdir(), world.folder):
            name = b"{in}" if path == world.folder else b"{%s}" % path.name.encode()
            filled = filled.replace(name, os.fsencode(path))
        made.append(filled)
    return made


def _make(
    world: World, program: Callable[..., Command], words: Words, out: Callable[[Path], Any] | None = None
) -> Command:
    world.run_yaml()
    world.finetune_yaml()
    for name in ("hf", "run", "shards", "lora", "peft"):
        if any(os.fsencode(word).endswith(b"{in}/%s" % name.encode()) for word in words):
            world.copy(name)
    for name, content in (("latin", b"caf\xe9\n"), ("long", b"star " * 20_000)):
        world.file(name, content)
    os.mkfifo(world.folder / "pipe")
    if out is not None:
        out(world.folder / ("out.jsonl" if "out.jsonl" in words else "out"))
    return program(*_filled(world, words))


def _onto_input(command: str) -> Words | None:
    """The command with a copy of its input as its output."""
    names = {"prune": "run", "to-hf": "run", "from-hf": "hf", "to-peft": "lora", "from-peft": "peft", "merge": "hf"}
    names |= {"quantize": "run"}
    if command not in names:
        return None
    copied, given = "{in}/" + names[command], "{" + names[command] + "}"
    return tuple(copied if word in ("out", given) else word for word in SOUND[command][1])


def _all() -> Iterator[tuple[str, Callable[[World], Command]]]:
    for what, (program, words) in BARE.items():
        yield what, partial(_make, program=program, words=words)
    for number, (command, (program, words)) in enumerate(SOUND.items()):
        first = 2 if words[0] in ("tokenizer", "adapter", "data") else 1
        yield f"{command}: nothing behind it", partial(_make, program=program, words=words[:first])
        yield f"{command}: --help", partial(_make, program=program, words=(*words[:first], "--help"))
        for place in range(first, len(words)):
            shown = os.fsdecode(words[place])
            yield (
                f"{command}: without {shown}",
                partial(_make, program=program, words=(*words[:place], *words[place + 1 :])),
            )
            doubled = (*words[: place + 1], words[place], *words[place + 1 :])
            yield f"{command}: {shown} twice", partial(_make, program=program, words=doubled)
        paths = [place for place, word in enumerate(words) if place >= first and os.fsdecode(word).startswith("{")]
        for turn, word in enumerate(INSTEAD):
            for place in paths[(turn + number) % len(paths) :][:1] if paths else ():
                if word != words[place]:
                    given = (*words[:place], word, *words[place + 1 :])
                    shown = f"{_shown(word)} for {os.fsdecode(words[place])}"
                    yield f"{command}: {shown}", partial(_make, program=program, words=given)
        for behind in BEHIND.get(command, ()):
            shown = " ".join(map(_shown, behind))
            yield f"{command}: {shown}", partial(_make, program=program, words=(*words, *behind))
    for command in WRITING:
        program, words = SOUND[command]
        for what, put in THERE.items():
            yield f"{command}: onto {what}", partial(_make, program=program, words=words, out=put)
        if (given := _onto_input(command)) is not None:
            yield f"{command}: onto its own input", partial(_make, program=program, words=given)


def _shown(word: str | bytes) -> str:
    text = ascii(os.fsdecode(word))[1:-1]
    return text if len(text) < 40 else f"{text[:20]}… of {len(text)}"


def cases() -> Cases:
    """Of every command."""
    for what, make in _all():
        reason = next((reason for pattern, reason in ACCEPTED.items() if re.search(pattern, what)), "")
        yield Case("command lines", what, make, reason, either=True, codes=(1,) if "verify: --step" in what else ())


_LAST = "of an option that is given twice, the last counts"
_OTHER = "it is of another kind that the command takes as well"
_BYTES = "the name of a file may be any bytes"
_FINITE = "a finite number, whatever it may be good for"
_BESIDE = "what it writes has names of its own, which nothing there has"
# What is wrong, as an expression -> why it is right that the command takes it; the first that fits counts.
ACCEPTED: dict[str, str] = {
    r"(with help|with -h and more|: --help)$": "the help was asked for",
    r"^tokenizer train: .*corpus.* twice$": "what is read already is not read again, as is told",
    r"^tokenizer train: --special-tokens( \\x1b\[2J)?$": "none is none, and any name is a name that text cannot have",
    r"^tokenizer train: --output \{in\}$": _BESIDE,
    r"^prepare: without --data": "the config names shards, which are there",
    r"^(pretrain|finetune): without --output_dir": "the config names a folder",
    r"^(prepare|pretrain|finetune): --(data.shards|output_dir)=out twice$": _LAST,
    r"^prepare: --data.shards=a|^prepare: --data.tokens_per_shard=1|^plan: .*--topology h100:1x1 --topology": _LAST,
    r"^prepare: --seed=(010|0x10|\+1|!!int 3)$": "a whole number, as YAML 1.2 reads it",
    r"^(pretrain: --dump-hlo|plan: --picture) \\udcff": _BYTES,
    r"^(pretrain|finetune): --output_dir=\{in\}": _BESIDE,
    r"^plan: --tokens (1_000|\\u0663B)$": "a number, as Python reads it",
    r"^plan: --search --json$": "plans in JSON",
    r"^(evaluate|prune|generate|chat.*|to-hf): \{(lora|hf|run)\} for \{(run|hf)\}$": _OTHER,
    r"^evaluate: --step 04$": "four",
    r"^(evaluate on text|torch evaluate): \{(lora|hf|run)\} for ": _OTHER,
    r"^evaluate on text: --limit 10*$": "as many documents as there are",
    r"^evaluate on text: --batch-tokens 10*$": "as many windows as there are",
    r"--json --json$": "what is asked twice is done once",
    r"^corpus: --chat --chat$": "what is asked twice is done once",
    r"generate: --stop n": "it never comes, so that nothing stops there",
    r"^generate: --draft \{lora\}$": _OTHER,
    r"^to-peft: --base-model ": "it is handed on to PEFT, which is to look there",
    r"^to-hf: --max-shard-size \\u0661GB": "a digit of any script",
    r"--force --force$": "what is asked twice is done once",
    r"^torch generate: \{(run|lora)\} for": _OTHER,
    r"generate: --seed 9223372036854775808$": "PyTorch's seeds have 64 bits",
    r"generate: --device cpu:7$": "PyTorch numbers the CPU as anybody likes",
    r"^chat.*: --(system|chat-template) ": "nothing is said, so that nothing of it is needed",
    r"^data preview: --samples (0|10*|\\u0663)$": "as many as there are, none included",
    r"^finetune: --lora=$": "null is no adapter, and then all weights train",
    r"^finetune: --lora.r=010$": "ten, as YAML 1.2 reads it",
    r": onto (an empty folder|a link to (an empty folder|nothing))$": "there it belongs",
    r": onto a folder with a file of somebody's$": _BESIDE,
    r"^prune: --eval-batches 10*$": "as many batches as there are",
    r"^info: ": _OTHER,
    r"^(torch )?generate: star twice$": "two prompts",
    r"^(torch )?generate: without --max-new-tokens": "the default counts",
    r"generate: --temperature 1e30$": _FINITE,
    r"generate: --max-new-tokens 10*$": "to the end of the context, as is told",
    r"generate: --prompt (-1|a.*|\\x1b.*)?$": "a prompt is any text, of which there may be several",
}
