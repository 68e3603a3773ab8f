"""What the commands that generate text in JAX do with their options; heavy libraries are imported once needed."""

import argparse
import json
from typing import TYPE_CHECKING

from stellarbyte.command_line import StreamedAnswer, check_text, tell_of_full_context
from stellarbyte.errors import UserError
from stellarbyte.places import Place

if TYPE_CHECKING:
    from stellarbyte_jax.data.tokenizer import Tokenizer
    from stellarbyte_jax.inference.reader import JaxReader
    from stellarbyte_jax.model.causal_lm import ByteForCausalLM


def generate(options: argparse.Namespace) -> None:
    """Continue prompts, streaming where there is one."""
    import time

    from stellarbyte_jax.bounds import check_seed
    from stellarbyte_jax.inference.compile_time import CompileTime
    from stellarbyte_jax.inference.generate import Generator
    from stellarbyte_jax.inference.speculative import SpeculativeGenerator
    from stellarbyte_jax.inference.text import generate_text

    check_seed("--seed", options.seed)
    for prompt in options.prompt:
        check_text("--prompt", prompt)
    if options.draft_tokens is not None and options.draft is None:
        raise UserError("--draft-tokens counts what --draft guesses, which is not given: give both or none")
    if options.draft is not None and options.pruning is not None:
        raise UserError(
            f"--kv-budget {options.kv_budget} drops keys that a check of what --draft guesses may have to go back to: "
            "leave one of them out"
        )
    model, tokenizer, _ = _loaded(options, options.model, options.step)
    generator: Generator | SpeculativeGenerator = Generator(model, _cache_dtype(options), pruning=options.pruning)
    if options.draft is not None:
        draft, draft_tokenizer, _ = _loaded(options, options.draft, None)
        if draft_tokenizer.sha256 != tokenizer.sha256:
            raise UserError(
                f"--draft {options.draft} has another tokenizer than {options.model}: take one that shares it"
            )
        count = 4 if options.draft_tokens is None else options.draft_tokens
        generator = SpeculativeGenerator(model, draft, count, _cache_dtype(options))
    request = (
        generator,
        tokenizer,
        options.prompt,
        options.max_new_tokens,
        options.sampling,
        options.seed,
        options.stop,
    )

    if options.json or len(options.prompt) > 1:
        start = time.perf_counter()
        with CompileTime() as compiling:
            answers = generate_text(*request)
        seconds = time.perf_counter() - start
        for prompt, answer in zip(options.prompt, answers, strict=True):
            record = {"prompt": prompt, "text": answer.text, "prompt_tokens": answer.prompt_tokens}
            record |= {"new_tokens": answer.new_tokens, "seconds": seconds, "compile_seconds": compiling.seconds}
            record["tokens_per_second"] = answer.new_tokens / max(seconds - compiling.seconds, 1e-9)
            print(json.dumps(record, ensure_ascii=False) if options.json else prompt + answer.text)
    else:
        write = StreamedAnswer(options.prompt[0])
        answers = generate_text(*request, on_text=lambda _, text: write(text))
        write("\n")
    cuts = [answer.cut_at for answer in answers if answer.cut_at is not None]
    if cuts:
        tell_of_full_context(min(cuts), options.max_new_tokens, len(options.prompt))


def chat(options: argparse.Namespace) -> None:
    """Talk with a run's model, in the terminal or by piped lines."""
    from stellarbyte.chat.terminal import run_chat
    from stellarbyte.memory.chat_memory import recall_of
    from stellarbyte_jax.inference.chat import JaxChatSession
    from stellarbyte_jax.inference.reader import reader_of

    model, tokenizer, step = _loaded(options, options.model, options.step)
    session = JaxChatSession(
        model,
        tokenizer,
        options.sampling,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        stop=options.stop,
        chat_template=options.chat_template,
        cache_dtype=_cache_dtype(options),
        pruning=options.pruning,
    )
    with recall_of(options, lambda: reader_of(model, tokenizer, options.model, step)) as session.recall:
        run_chat(session, options)


def open_reader(run_dir: Place, *, device: str | None = None, dtype: str = "auto") -> "JaxReader":
    """The model of a run's newest checkpoint as a memory uses it. Raises UserError as `load_model` does.

    device: JAX itself chooses; a name has no effect. dtype: auto is float32.
    """
    from stellarbyte_jax.inference.reader import reader_of
    from stellarbyte_jax.training.load import load_model

    del device
    model, tokenizer, step = load_model(run_dir, None, "float32" if dtype == "auto" else dtype)
    return reader_of(model, tokenizer, run_dir, step)


def _loaded(
    options: argparse.Namespace, run_dir: Place, step: int | None
) -> tuple["ByteForCausalLM", "Tokenizer", int]:
    """A run's model as the options want it, its tokenizer and step. Runs are saved in float32, which auto keeps."""
    from stellarbyte_jax.training.load import load_model

    dtype = "float32" if options.dtype == "auto" else str(options.dtype)
    model, tokenizer, step = load_model(run_dir, step, dtype)
    return (model.in_int8() if options.quantize == "int8" else model), tokenizer, step


def _cache_dtype(options: argparse.Namespace) -> str | None:
    return {"float8": "float8_e4m3fn"}.get(options.kv_cache_dtype, options.kv_cache_dtype)
