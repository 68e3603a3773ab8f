"""What each command that runs in JAX does with its options; heavy libraries are imported once they are needed."""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from stellarbyte.command_line import report
from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupt, exit_code, interruptible
from stellarbyte.kv_cache.options import pruning_of
from stellarbyte.log_settings import LEVELS, log_settings
from stellarbyte.places import Place
from stellarbyte.progress import progress
from stellarbyte_jax.run_folder import check_not_moved

if TYPE_CHECKING:
    from stellarbyte.pruning.report import Report
    from stellarbyte.pruning.request import Request
    from stellarbyte_jax.config import RunConfig
    from stellarbyte_jax.evaluation.scorer import JaxScorer


def corpus(options: argparse.Namespace) -> None:
    """Write a corpus that is at hand."""
    if options.chat:
        from stellarbyte_jax.data.docstring_chat import write_stdlib_chat

        with interruptible():
            count, pairs = write_stdlib_chat(options.output, force=options.force)
        written = f"{count} conversations of {pairs} question/answer pairs"
    elif options.questions:
        from stellarbyte_jax.data.line_questions import write_line_questions

        with interruptible():
            written = f"{write_line_questions(options.output, force=options.force)} questions"
    else:
        from stellarbyte_jax.data.corpus import write_stdlib_corpus

        with interruptible():
            written = f"{write_stdlib_corpus(options.output, force=options.force)} documents"
    print(f"{written}, {options.output.stat().st_size / 1e6:.1f} MB in {options.output}")


def tokenizer_train(options: argparse.Namespace) -> None:
    """Train a tokenizer on text."""
    from stellarbyte_jax.config import SourceConfig
    from stellarbyte_jax.data.corpus import documents
    from stellarbyte_jax.data.tokenizer_training import train_tokenizer

    fields: dict[str, Any] = {} if options.field is None else {"fields": tuple(options.field)}
    sources = [SourceConfig(path, template=options.template, **fields) for path in options.input]

    def texts() -> Iterator[str]:
        with progress("text read", "B") as update:
            for document in documents(sources, options.on_bad_record, setting="--on-bad-record", progress=update):
                yield document.text

    with interruptible(), progress("merges learnt") as learning:
        tokenizer = train_tokenizer(
            texts(),
            options.vocab_size,
            options.output,
            options.special_tokens,
            learning=lambda: learning(0, None),
            pattern=options.pre_tokenizer,
            force=options.force,
        )
    print(f"{tokenizer.vocab_size} tokens in {options.output}")


def pretrain(options: argparse.Namespace) -> int:
    """Train a model; the exit code says whether it was interrupted."""
    from stellarbyte_jax.config_file import load_run_config

    options.before(options)
    config = load_run_config(options.config, options.overrides)
    folders = {"data.shards": config.data.shards, "data.tokenizer": config.data.tokenizer}
    if not any(word.partition("=")[0] == "--output_dir" for word in options.overrides):
        check_not_moved(options.config, config.output_dir, folders)
    from stellarbyte_jax.training.watching.diagnostics import Diagnostics, check_dump_folder, parse_profile

    profile = None if options.profile is None else parse_profile(options.profile, config.training.max_steps)
    if options.dump_hlo is not None:
        check_dump_folder(options.dump_hlo)
    from stellarbyte.display import Display

    settings = log_settings(options)
    interrupt, display = Interrupt(), Display(level=LEVELS[settings.level])
    with ExitStack() as stack:
        stack.enter_context(display)
        # JAX is imported only now: a mistake in the config need not wait for it.
        from stellarbyte_jax.config import DistributedConfig
        from stellarbyte_jax.processes.joined import joined
        from stellarbyte_jax.training.pretrain import pretrain

        processes = stack.enter_context(joined(config.distributed, functools.partial(report, "stellarbyte")))
        display.speak_as(processes.index, speaks=settings.includes(processes.index))
        config = dataclasses.replace(config, distributed=DistributedConfig())  # who trains a run is no part of it
        if config.training.remat == "auto":
            import jax

            from stellarbyte_jax.planning.auto_remat import resolve_remat

            config = resolve_remat(config, jax.devices())
        remarks = options.remarks
        if not options.no_memory_check:
            import jax

            from stellarbyte_jax.planning.fit import check_fits

            remarks = (*remarks, *filter(None, [check_fits(config, jax.devices())]))
        diagnostics = Diagnostics(profile, options.dump_hlo, remarks, settings)
        finished = pretrain(config, diagnostics, processes, interrupt, display, amend=options.amend)
    return 0 if finished else exit_code(interrupt.number)


def plan(options: argparse.Namespace) -> None:
    """Foresee a run on a machine that is not here."""
    from stellarbyte.looks.picture import check_drawable, picture
    from stellarbyte_jax.config_file import load_run_config

    config = load_run_config(options.config, options.overrides)
    if options.topology == "cpu":
        _plan_here(options, config)
        return
    from stellarbyte_jax.planning.auto_remat import choose, plan_policies
    from stellarbyte_jax.planning.picture import memory_chart
    from stellarbyte_jax.planning.plan import make_plan
    from stellarbyte_jax.planning.report import compiled_text, plan_text, policies_text, search_text
    from stellarbyte_jax.planning.topology import parse_topology

    if options.price is not None and not 0 <= options.price < float("inf"):
        raise UserError(f"--price {options.price} is no price: give US dollars a chip and hour, such as 1.5")
    if options.search and (options.compile or options.picture is not None):
        raise UserError("--search prints a table of plans: leave --compile and --picture to a plan of one of them")
    if options.picture is not None:
        check_drawable(f"--picture {options.picture}")
    if options.slices is not None:
        config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=options.slices))
    topology = parse_topology(options.topology, config.mesh.slices)
    if options.search:
        from stellarbyte_jax.planning.search import search

        with progress("plans tried") as update:
            plans = search(config, topology, update)
        if options.json:
            print(json.dumps([plan.to_dict(options.tokens, options.price) for plan in plans]))
        else:
            print(search_text(plans))
        return
    policies = plan_policies(config, topology) if config.training.remat == "auto" else []
    plan = choose(policies) if policies else make_plan(config, topology)
    if options.picture is not None:
        try:
            options.picture.write_text(picture(memory_chart(plan)), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--picture {options.picture} cannot be written: {error.strerror}") from error
    if not options.json:
        # Before the compiler is asked: it may take long, or refuse what this says does not fit.
        print(plan_text(plan, options.tokens, options.price), flush=True)
        if policies:
            print("\n" + policies_text(policies, plan), flush=True)
    compiled = None
    if options.compile:
        from stellarbyte_jax.planning.compile_ahead import compile_ahead

        for remark in options.remarks:
            print(remark, file=sys.stderr)
        with progress(f"compiling for {topology}"):
            compiled = compile_ahead(plan.config, topology)
    if options.json:
        found = plan.to_dict(options.tokens, options.price)
        if policies:
            found["remat_policies"] = [policy.to_dict(options.tokens, options.price) for policy in policies]
        if compiled is not None:
            found["compiled"] = compiled.to_dict()
        print(json.dumps(found))
    elif compiled is not None:
        print("\n" + compiled_text(plan, compiled))


def _plan_here(options: argparse.Namespace, config: "RunConfig") -> None:
    """Tell the memory of a run on one CPU of this machine, by the compiler."""
    for name in ("slices", "tokens", "price", "search", "compile", "picture"):
        if getattr(options, name) not in (None, False):
            raise UserError(f"--topology cpu tells memory alone, by the compiler: leave --{name} out")
    from stellarbyte_jax.planning.auto_remat import with_remat
    from stellarbyte_jax.planning.compile_ahead import compile_here
    from stellarbyte_jax.planning.fit import host_memory
    from stellarbyte_jax.planning.report import here_facts, here_text

    if config.training.remat == "auto":
        config = with_remat(config, "none")  # as a run on CPUs takes it
    with progress("compiling for this machine's CPU"):
        facts = here_facts(config, compile_here(config), host_memory())
    print(json.dumps(facts) if options.json else here_text(facts))


def evaluate(options: argparse.Namespace) -> None:
    """Print a run's figures on its validation split."""
    pruning = pruning_of(options)
    if pruning is not None:
        with progress("evaluating with a pruned cache, batches") as update:
            from stellarbyte_jax.training.pruned_evaluation import evaluate_pruned

            halves, step = evaluate_pruned(
                options.model, pruning, options.step, update, options.shards, ema=options.ema
            )
        print(json.dumps({"step": step, **halves.to_dict()}) if options.json else f"step {step}, {halves.text()}")
        return
    with progress("evaluating, batches") as update:
        from stellarbyte_jax.training.evaluation import evaluate_run

        figures, step = evaluate_run(options.model, options.step, update, options.shards, ema=options.ema)
    if options.json:
        print(json.dumps({"step": step, **figures}))
        return
    print(f"step {step}, validation split of {figures['tokens']:.0f} tokens")
    for name in ("loss", "perplexity", "accuracy", "bits_per_byte"):
        print(f"  {name.replace('_', ' '):<14} {figures[name]:.4f}")


def prune(options: argparse.Namespace, request: "Request") -> "list[Report]":
    """Make a smaller run of a run's model."""
    with interruptible(), progress("pruning, validation batches") as update:
        from stellarbyte_jax.pruning.prune import prune_run

        return prune_run(
            options.model, options.output, request, step=options.step, shards=options.data, progress=update
        )


def scorer(run_dir: Place, step: int | None, dtype: str, *, ema: bool) -> "JaxScorer":
    """A run's model, as an evaluation uses it."""
    from stellarbyte_jax.evaluation.scorer import JaxScorer

    return JaxScorer(run_dir, step, dtype, ema=ema)


def task_model(
    run_dir: Place, batch_tokens: int, step: int | None, dtype: str, *, ema: bool
) -> tuple[Any, dict[str, Any]]:
    """A run's model as lm-eval's tasks use it, and what a report says of it."""
    from stellarbyte_jax.evaluation.task_model import RunTaskModel

    opened = scorer(run_dir, step, dtype, ema=ema)
    return RunTaskModel(opened, batch_tokens), opened.facts
