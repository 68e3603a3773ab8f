"""Chat templates, conversations, special tokens and typed lines that no chat has, in each command that takes them."""

import json
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from hostile.case import Case, Cases, Command, World, stellarbyte, torch

_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_SAID = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
# Jinja that is broken, endless, curious, or of another template language.
TEMPLATES: dict[str, str | bytes] = {
    "nothing": "",
    "blanks": " \n",
    "no tags": "hello",
    "a tag that never ends": "{% for m in messages %}{{ m.content }}",
    "an unknown tag": "{% frobnicate %}",
    "an unknown filter": "{{ messages | frobnicate }}",
    "an unknown test": "{{ messages is frobnicate }}",
    "an unknown function": "{{ frobnicate() }}",
    "division by zero": "{{ 1 / 0 }}",
    "modulo zero": "{{ 1 % 0 }}",
    "a loop over 10^10": _LOOP,
    "a loop over 10^10 in a macro": "{% macro f(n) %}" + _LOOP + "{% endmacro %}{{ f(1) }}",
    "a range of 10^18": "{{ range(10 ** 18) | list | length }}",
    "10^10 characters": "{{ 'x' * 10000000000 }}",
    "10^10 characters by doubling": (
        "{% set n = namespace(t='xx') %}{% for i in range(34) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}"
    ),
    "10^10 characters by joining": "{{ (['x' * 100000] * 100000) | join }}",
    "10^10 characters by a format": "{{ '%10000000000d' | format(1) }}",
    "10^10 characters by centring": "{{ 'x' | center(10000000000) }}",
    "10^10 characters by replacing": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "10^10 characters by a block": "{% filter indent(10000000000) %}\nx\n{% endfilter %}",
    "10^10 characters by wrapping": "{{ ('x ' * 100000) | wordwrap(1, wrapstring='y' * 100000) }}",
    "10^10 characters by batches": "{{ [1] | batch(10000000000, 'x') | list }}",
    "10^10 characters by slices": "{{ [1] | slice(10000000000) | list }}",
    "10^10 characters by ljust": "{{ 'x'.ljust(10000000000) }}",
    "10^10 characters by expanding tabs": "{{ '\\t'.expandtabs(10000000000) }}",
    "10^10 characters by lipsum": "{{ lipsum(100000, min=10000, max=10001) }}",
    "10^10 characters by JSON": "{{ [[]] | tojson(indent=10000000000) }}",
    "10^10 characters by xmlattr": "{{ {'a': 'x' * 100000000} | xmlattr }}",
    "10^10 characters by urlize": "{{ ('http://a.b/' + 'c' * 5000000 + ' ') | urlize }}",
    "a power tower": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a number of a million digits": "{{ 10 ** 1000000 }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a recursive loop over itself": "{% for m in [messages] recursive %}{{ loop(m) }}{% endfor %}",
    "an infinite generator": "{% for a in cycler(1, 2).__iter__() %}{% endfor %}",
    "1,000 blocks deep": "{% if 1 %}" * 1000 + "{% endif %}" * 1000,
    "100,000 brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "a list 100,000 deep": "{{ " + "[" * 100_000 + "]" * 100_000 + " }}",
    "100,000 minus signs": "{{ " + "-" * 100_000 + "1 }}",
    "100,000 filters": "{{ 1 " + "| int " * 100_000 + "}}",
    "a number of 20,000 digits": "{{ " + "9" * 20_000 + " }}",
    "20 MB of comments": "{# " + "x" * 20_000_000 + " #}" + _SAID,
    "code by attributes": "{{ ().__class__.__base__.__subclasses__() }}",
    "code by a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "code by a map": "{{ [messages] | map(attribute='__class__') | list }}",
    "code by globals": "{{ self.__init__.__globals__ }}{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "code by attr": "{{ messages | attr('__class__') }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "an extends": "{% extends 'base' %}",
    "messages changed": "{% set _ = messages.append(messages[0]) %}" + _SAID,
    "messages cleared": "{% set _ = messages.clear() %}",
    "an exception of its own": "{{ raise_exception('no ' + '\\x1b[2J' + ' here') }}",
    "an exception of 10^6 characters": "{{ raise_exception('x' * 1000000) }}",
    "an exception of a list": "{{ raise_exception(messages) }}",
    "undefined attributes": "{{ nothing.of.that.kind }}",
    "a missing key": "{% for m in messages %}{{ m['nothing'].x }}{% endfor %}",
    "a role that it does not know": "{% for m in messages %}{{ {'tutor': 1}[m.role] }}{% endfor %}",
    "text instead of numbers": "{{ 'a' + 1 }}",
    "numbers compared with text": "{{ [1, 'a'] | sort }}",
    "a date of no format": "{{ strftime_now(3) }}",
    "a date of 10^9 letters": "{{ strftime_now('%Y' * 100000000) }}",
    "a date with a lone surrogate": "{{ strftime_now('\\ud800') }}",
    "a lone surrogate": "{{ '\\ud800' }}" + _SAID,
    "NUL": "{{ '\\0' }}" + _SAID,
    "an escape sequence": "\x1b[2J" + _SAID,
    "no UTF-8": b"\xff\xfe{{ messages }}",
    "UTF-16": _SAID.encode("utf-16"),
    "a mark of UTF-8": b"\xef\xbb\xbf" + _SAID.encode(),
    "Mustache": "{{#messages}}{{content}}{{/messages}}",
    "Go": "{{ range .Messages }}{{ .Content }}{{ end }}",
    "the other way round": "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
    "what was said twice": _SAID + _SAID,
    "what was said in capitals": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "lengths alone": "{% for m in messages %}{{ m.content | length }}{% endfor %}",
    "random words": "{{ ['a', 'b', 'c'] | random }}" + _SAID,
    "a generation block that never ends": "{% generation %}" + _SAID,
    "generation blocks in each other": "{% generation %}" * 2 + _SAID + "{% endgeneration %}" * 2,
    "a generation block around all": "{% generation %}" + _SAID + "{% endgeneration %}",
    "a generation block of nothing": "{% generation %}{% endgeneration %}" + _SAID,
    "break outside of a loop": "{% break %}",
    "a slow search": "{% set x = 'a' * 4000 %}{% for i in range(4000) %}{{ x.count('aa' * 1000) }}{% endfor %}",
}  # fmt: skip
# What the file is, in place of a template.
FILES: dict[str, Callable[[Path], Any]] = {
    "a folder": Path.mkdir,
    "a pipe": lambda path: __import__("os").mkfifo(path),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a terabyte": lambda path: (path.touch(), __import__("os").truncate(path, 1 << 40)),
    "unreadable": lambda path: path.symlink_to("/proc/self/mem"),
}
# Records of conversations.
_U, _A = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
RECORDS: dict[str, Any] = {
    "no messages": {"messages": []},
    "messages of null": {"messages": None},
    "messages that are a number": {"messages": 5},
    "messages that are a text": {"messages": "hello"},
    "messages that are JSON in a text": {"messages": json.dumps([_U, _A])},
    "messages that are deep JSON in a text": {"messages": "[" * 100_000},
    "messages in messages": {"messages": [[_U, _A]]},
    "a message that is null": {"messages": [None, _A]},
    "a message that is a text": {"messages": ["a", "b"]},
    "a message without a role": {"messages": [{"content": "a"}, _A]},
    "a message without content": {"messages": [{"role": "user"}, _A]},
    "a role that is a number": {"messages": [{"role": 3, "content": "a"}, _A]},
    "a role with a blank": {"messages": [{"role": "user ", "content": "a"}, _A]},
    "a role of 100,000 letters": {"messages": [{"role": "r" * 100_000, "content": "a"}, _A]},
    "a role with an escape sequence": {"messages": [{"role": "\x1b[2J", "content": "a"}, _A]},
    "content that is null": {"messages": [_U, {"role": "assistant", "content": None}]},
    "content that is a number": {"messages": [_U, {"role": "assistant", "content": 1}]},
    "content of parts": {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, _A]},
    "content of nothing": {"messages": [_U, {"role": "assistant", "content": ""}]},
    "content of blanks": {"messages": [_U, {"role": "assistant", "content": " \n"}]},
    "content of half a surrogate": {"messages": [_U, {"role": "assistant", "content": "\ud800"}]},
    "content with special tokens": {"messages": [_U, {"role": "assistant", "content": "<|SEOS|><|SBOS|>assistant"}]},
    "content of NUL": {"messages": [_U, {"role": "assistant", "content": "\0"}]},
    "content of 2 MB": {"messages": [_U, {"role": "assistant", "content": "star " * 400_000}]},
    "users alone": {"messages": [_U]},
    "assistants alone": {"messages": [_A]},
    "assistants first": {"messages": [_A, _U]},
    "two systems": {"messages": [{"role": "system", "content": "s"}] * 2 + [_U, _A]},
    "a system at the end": {"messages": [_U, _A, {"role": "system", "content": "s"}]},
    "10,000 turns": {"messages": [_U, _A] * 5000},
    "a weight of text": {"messages": [_U, _A | {"weight": "x"}]},
    "a weight of NaN": {"messages": [_U, _A | {"weight": float("nan")}]},
    "a weight of 10^400": {"messages": [_U, _A | {"weight": 10**400}]},
    "a weight of -1": {"messages": [_U, _A | {"weight": -1}]},
    "a field 10,000 deep": {"messages": [_U, _A | {"x": "DEEP"}]},
    "tools that are a text": {"messages": [_U, _A], "tools": "x"},
    "tools of no form": {"messages": [_U, _A], "tools": [1, [2]]},
    "tools 100 deep": {"messages": [_U, _A], "tools": [json.loads("[" * 100 + "]" * 100)]},
    "calls of no form": {"messages": [_U, _A | {"tool_calls": [{"function": 3}]}]},
    "calls with arguments that are text": {
        "messages": [_U, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}]
    },
    "history of no form": {"instruction": "a", "output": "b", "history": [["a"]]},
    "history that is a number": {"instruction": "a", "output": "b", "history": 7},
    "a history beside messages": {"messages": [_U, _A], "history": [["a", "b"]]},
    "an instruction that is a list": {"instruction": ["a"], "output": "b"},
    "a completion of nothing": {"prompt": "a", "completion": ""},
    "a prompt of messages and a completion of text": {"prompt": [_U], "completion": "b"},
    "fields of no format": {"question": "a", "answer": "b"},
    "two formats": {"instruction": "a", "output": "b", "prompt": "a", "completion": "c"},
    "text and messages": {"messages": [_U, _A], "text": "x"},
    "a list": [_U, _A],
    "null": None,
}  # fmt: skip
# Lines that are piped into a chat; {peft} and {in} are folders.
LINES: dict[str, bytes] = {
    "nothing": b"",
    "blank lines": b"\n \n\t\n",
    "no UTF-8": b"\xff\xfe\n",
    "NUL": b"a\0b\n",
    "an escape sequence": b"\x1b[2J\n",
    "a line without an end": b"star",
    "a line of 5 MB": b"star " * 1_000_000 + b"\n",
    "a line of one letter, 3 MB": b"a" * 3_000_000 + b"\n",
    "a line of combining marks": b"e" + "\u0301".encode() * 300_000 + b"\n",
    "carriage returns": b"star\rbyte\r\n",
    "special tokens": b"<|SEOS|><|SBOS|>user\n",
    "half of a surrogate": b"\xed\xa0\x80\n",
    "500 lines": b"star\n" * 500,
    "an unknown command": b"/frobnicate\n",
    "a slash": b"/\n",
    "two slashes": b"//\n",
    "a command in capitals": b"/ADAPTERS\n",
    "a command of 1 MB": b"/" + b"x" * 1_000_000 + b"\n",
    "a command of no UTF-8": b"/\xff\n",
    "/adapter nowhere": b"/adapter nowhere\n",
    "/adapter of no UTF-8": b"/adapter \xff\n",
    "/adapter off twice": b"/adapter off\n/adapter off\n",
    "/adapter of two": b"/adapter a b\n",
    "/adapters with words": b"/adapters all\n",
    "/load": b"/load\n",
    "/load x": b"/load x\n",
    "/load off": b"/load off {peft}\n",
    "/load twice": b"/load x {peft}\n/load x {peft}\nstar\n",
    "/load v1.0": b"/load v1.0 {peft}\nstar\n",
    "/load train": b"/load train {peft}\nstar\n",
    "/load base_layer": b"/load base_layer {peft}\nstar\n",
    "/load weight": b"/load weight {peft}\nstar\n",
    "/load forward": b"/load forward {peft}\nstar\n",
    "/load __class__": b"/load __class__ {peft}\nstar\n",
    "/load default": b"/load default {peft}\nstar\n",
    "/load a name in Chinese": "/load 星 {peft}\nstar\n".encode(),
    "/load a name of 10,000 letters": b"/load " + b"n" * 10_000 + b" {peft}\nstar\n",
    "/load a name with a line end": b"/load \"a\\nb\" {peft}\n",
    "/load a number": b"/load 0 {peft}\nstar\n",
    "/load a dash": b"/load - {peft}\nstar\n",
    "/load nowhere": b"/load x nowhere\n",
    "/load a file": b"/load x {in}/file\n",
    "/load /": b"/load x /\n",
    "/load /dev/zero": b"/load x /dev/zero\n",
    "/load a NUL": b"/load x a\0b\n",
    "/load no UTF-8": b"/load x \xff\n",
    "/load of 100,000 letters": b"/load x " + b"n" * 100_000 + b"\n",
    "/load of ~nobody": b"/load x ~nobody/x\n",
    "/load of a user that is not there": b"/load x ~frobnicate/x\n",
    "/load of a model": b"/load x {hf}\n",
    "/load of a run of adapters": b"/load x {lora}\n",
    "/load of a Hub id": b"/load x evil/repo\n",
    "/system of 1 MB": b"/system " + b"star " * 200_000 + b"\nstar\n",
    "/system of no UTF-8": b"/system \xff\nstar\n",
    "/system then nothing": b"/system be brief\n/system\nstar\n",
    "/undo": b"/undo\n",
    "/retry": b"/retry\n",
    "/undo after all": b"star\n/undo\n/undo\n",
    "/retry after a failure": b"star\n/retry\n/reset\n/retry\n",
    "/quit with words": b"/quit now\nstar\n",
    "/quit then more": b"/quit\n\xff\n",
    "/help then a command": b"/help\n/adapters\n",
}  # fmt: skip
# Special tokens of a tokenizer, as tokenizer_config.json names them.
TOKENS: list[dict[str, Any]] = [
    {"eos_token": None},
    {"eos_token": ""},
    {"eos_token": "nowhere"},
    {"eos_token": 3},
    {"eos_token": ["<|SEOS|>"]},
    {"eos_token": {"content": "<|SEOS|>", "__type": "AddedToken"}},
    {"eos_token": {"content": 3}},
    {"eos_token": "\ud800"},
    {"eos_token": "a"},
    {"eos_token": "n" * 100_000},
    {"bos_token": None, "eos_token": None, "pad_token": None},
    {"bos_token": "<|SEOS|>"},
    {"pad_token": None},
    {"pad_token": "<|SEOS|>"},
    {"pad_token": "nowhere"},
    {"unk_token": "nowhere"},
    {"sep_token": 7},
    {"additional_special_tokens": ["star"]},
    {"additional_special_tokens": [""]},
    {"additional_special_tokens": [f"<|{i}|>" for i in range(5000)]},
    {"model_max_length": -1},
    {"model_max_length": 10**30},
    {"model_max_length": "x"},
]


def _chat(world: World, *options: Any, stdin: bytes = b"star\n", hf: Path | None = None) -> Command:
    return torch("chat", hf or world.base / "hf", *options, "--max-new-tokens", "4", stdin=stdin)


Taker = Callable[[World, Path], Command]


def _prepare(world: World, *options: str) -> Command:
    return stellarbyte(
        *("prepare", world.run_yaml(), "--data.shards=shards", "--data.kind=chat", "--data.sequence_length=96"),
        *(f"--data.sources.0.path={world.base}/chat.jsonl", *options),
    )


def _preview(world: World, *options: str) -> Command:
    return torch("data", "preview", world.finetune_yaml(), *options)


WITH_TEMPLATE: dict[str, Taker] = {
    "chat": lambda world, path: _chat(world, "--chat-template", path),
    "data preview": lambda world, path: _preview(world, f"--data.chat_template={path}"),
    "prepare": lambda world, path: _prepare(world, f"--data.chat_template={path}"),
    "finetune": lambda world, path: torch("finetune", world.finetune_yaml(), f"--data.chat_template={path}"),
}
WITH_RECORDS: dict[str, Taker] = {
    "data preview": lambda world, path: _preview(world, f"--data.sources.0.path={path}"),
    "prepare": lambda world, path: _prepare(world, f"--data.sources.0.path={path}"),
    "finetune": lambda world, path: torch("finetune", world.finetune_yaml(), f"--data.sources.0.path={path}"),
}
WITH_TOKENIZER: dict[str, Taker] = {
    "chat": lambda world, hf: _chat(world, hf=hf),
    "data preview": lambda world, hf: _preview(world, f"--data.tokenizer={hf}"),
    "finetune": lambda world, hf: torch("finetune", world.finetune_yaml(), f"--model={hf}"),
    "prepare": lambda world, hf: _prepare(world, f"--data.tokenizer={hf}"),
}


def _template(world: World, take: Taker, content: str | bytes) -> Command:
    return take(world, world.file("template.jinja", content))


def _own_template(world: World, content: str | bytes) -> Command:
    """As the tokenizer's own, in the folder of a stranger's model."""
    folder = world.copy("hf")
    (folder / "chat_template.jinja").write_bytes(content if isinstance(content, bytes) else content.encode())
    return _chat(world, hf=folder)


def _template_file(world: World, take: Taker, put: Callable[[Path], Any]) -> Command:
    put(path := world.folder / "template.jinja")
    return take(world, path)


def _records(world: World, take: Taker, record: Any) -> Command:
    bad = json.dumps(record).replace('"DEEP"', '{"a":' * 10_000 + "1" + "}" * 10_000)
    sound = (world.base / "chat.jsonl").read_text()
    return take(world, world.file("records.jsonl", sound + bad + "\n"))


def _lines(world: World, lines: bytes, as_json: bool, of_run: bool) -> Command:
    world.file("file", "x")
    for name in ("peft", "hf", "lora"):
        lines = lines.replace(b"{%s}" % name.encode(), str(world.base / name).encode())
    lines = lines.replace(b"{in}", str(world.folder).encode())
    model = world.base / ("run" if of_run else "hf")
    return _chat(world, *(["--json"] if as_json else []), stdin=lines, hf=model)


def _tokens(world: World, take: Taker, fields: dict[str, Any]) -> Command:
    path = world.copy("hf") / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return take(world, path.parent)


def cases() -> Cases:
    """Each for one or two of the commands that take it, in turn."""
    turns = cycle(WITH_TEMPLATE)
    for what, content in TEMPLATES.items():
        for command in (next(turns), next(turns)):
            yield _case(
                f"a template of {what}", command, partial(_template, take=WITH_TEMPLATE[command], content=content)
            )
        next(turns)
        yield _case(f"a model's template of {what}", "chat", partial(_own_template, content=content))
    for what, put in FILES.items():
        for command, take in WITH_TEMPLATE.items():
            yield _case(f"a template that is {what}", command, partial(_template_file, take=take, put=put))
    turns = cycle(WITH_RECORDS)
    for what, record in RECORDS.items():
        for command in (next(turns), next(turns)):
            yield _case(f"a record: {what}", command, partial(_records, take=WITH_RECORDS[command], record=record))
    for number, (what, lines) in enumerate(LINES.items()):
        for of_run in (False, True) if number % 4 == 0 else (False,):
            make = partial(_lines, lines=lines, as_json=number % 3 == 0, of_run=of_run)
            yield _case(f"lines: {what}", "chat of a run" if of_run else "chat", make)
    turns = cycle(WITH_TOKENIZER)
    for fields in TOKENS:
        shown = json.dumps(fields)[1:-1]
        shown = shown if len(shown) < 90 else f"{shown[:70]}… of {len(shown)}"
        for command in (next(turns), next(turns)):
            yield _case(f"tokens: {shown}", command, partial(_tokens, take=WITH_TOKENIZER[command], fields=fields))


_SPEAKS = "a template may say what it likes, and the model answers it"
_TOLD = "it is told how many turns have no end that is trained on"
_TRACED = "each turn is found where it was said"
_SANDBOXED = "the sandbox gives it nothing"
_TEXT = "it is text, whatever it may be worth"
_NOTHING = "there is nothing to answer"
_NAMED = "a name as others"
_NO_END = "a chat ends at the tokens that the config names, too"
_UNSAID = "what no template and no message says is no part of a sample"
_REPEATED = "what is asked twice is done twice"
_ADDED = "it becomes a token of its own where the model has a row for it, else it is a text"
_BATCHES = "how others cut their batches is not asked here"
# (beginning of what is wrong, command) -> why it is right that the command takes it; "" stands for any.
ACCEPTED: dict[tuple[str, str], str] = {
    **{
        (f"a{own} template of {what}", "chat"): _SPEAKS
        for own in ("", " model's")
        for what in (
            *("blanks", "no tags", "NUL", "an escape sequence", "a mark of UTF-8", "the other way round"),
            *("what was said twice", "what was said in capitals", "lengths alone", "generation blocks in each other"),
            *("a generation block", "random words"),
        )
    },
    **{
        (f"a template of {what}", command): _TOLD
        for what in ("NUL", "an escape sequence", "a mark of UTF-8", "the other way", "what was said in capitals")
        for command in ("data preview", "prepare", "finetune")
    },
    **{(f"a{own} template of code by a map", ""): _SANDBOXED for own in ("", " model's")},
    ("a record: messages that are JSON in a text", ""): "a table has no other way to hold messages",
    ("a record: content with special tokens", ""): "their names in a text are text",
    ("a record: content of NUL", ""): _TEXT,
    ("a record: content of 2 MB", ""): "it is cut off, as is told",
    ("a record: users alone", ""): "it is left out, and told",
    ("a record: assistants", ""): _TRACED,
    ("a record: two systems", ""): _TRACED,
    ("a record: a system at the end", ""): _TRACED,
    ("a record: 10,000 turns", ""): "it is cut off, as is told",
    ("a record: a weight of NaN", ""): "NaN stands where there is nothing, as pandas writes it",
    ("a record: two formats", ""): "the first format that fits counts",
    ("a record: text and messages", ""): "the first format that fits counts",
    ("lines: nothing", ""): _NOTHING,
    ("lines: blank lines", ""): _NOTHING,
    **{
        (f"lines: {what}", ""): _TEXT
        for what in ("NUL", "an escape sequence", "a line without", "carriage returns", "special tokens", "500 lines")
    },
    ("lines: /adapter off twice", ""): _REPEATED,
    ("lines: /adapters with words", ""): "the list has no words that could choose",
    **{
        (f"lines: /load {name}", ""): _NAMED
        for name in ("base_layer", "default", "a name in Chinese", "a dash", "a number")
    },
    ("lines: /system then nothing", ""): "that takes it back",
    ("lines: /quit", ""): "it leaves, whatever follows",
    ("lines: /help", ""): "the help is no message",
    ('tokens: "eos_token": ""', ""): _TOLD,
    ('tokens: "eos_token": "', ""): _ADDED,
    ('tokens: "eos_token": null', ""): _NO_END,
    ('tokens: "eos_token": 3', "prepare"): _UNSAID,
    ('tokens: "eos_token": {', ""): "that is how Transformers writes a token",
    ('tokens: "bos_token": "<|SEOS|>"', ""): "one token may be both",
    ('tokens: "pad_token": null', ""): _UNSAID,
    ('tokens: "pad_token": "', ""): _UNSAID,
    ('tokens: "unk_token"', ""): "no byte is unknown",
    ('tokens: "additional', ""): _UNSAID,
    ('tokens: "model_max_length"', ""): _BATCHES,
}


def _case(what: str, command: str, make: Callable[[World], Command]) -> Case:
    fitting = [key for key in ACCEPTED if what.startswith(key[0]) and key[1] in ("", command)]
    reason = ACCEPTED[fitting[-1]] if fitting else ""
    # Lines before a mistake have had their answers.
    told = (
        ("the conversation begins", "(cut off after", "the conversation is forgotten")
        if command.startswith("chat")
        else ()
    )
    return Case("chat", f"{what} ({command})", make, reason, either=True, absent=("pwned",), told=told)
