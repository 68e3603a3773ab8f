"""Decides whether a config may go on with the run in its `output_dir`, as it began or amended."""

from dataclasses import dataclass
from typing import Any

from stellarbyte.config.build import build
from stellarbyte.config.nodes import locate
from stellarbyte.errors import UserError
from stellarbyte.places import place
from stellarbyte_jax.amendments import AMENDMENTS, Amendment, read_amendments
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, latest_step, load_metadata
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import (
    differing_fields,
    lora_config_from_dict,
    model_config_from_dict,
    run_config_from_dict,
    to_dict,
)
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.run_folder import check_is_run

Difference = tuple[str, Any, Any]

# Fields that may change when a run goes on. None of them changes the losses, but for steps that are not applied or come
# after the end: the data's content is compared without these fields.
_FREE_FIELDS = (
    "checkpoint.",
    "data.cache_",
    "data.chat_template",
    "data.ledger",
    "data.on_bad_record",
    "data.shards",
    "data.tokenizer",
    "distributed.",
    "mesh.",
    "output_dir",
    "training.early_stopping",
    "training.eval_steps",
    "training.eval_batches",
    "training.eval_tasks",
    "training.log_norms",
    "training.max_skipped_in_a_row",
    "training.on_not_finite",
    "training.project",
    "training.remat",
    "training.report_to",
)

# Fields of the model on which no weight's shape or meaning depends.
_MODEL_FIELDS = tuple(
    f"model.{name}"
    for name in (
        *("attention_dropout", "hidden_dropout", "residual_dropout", "drop_path_rate"),
        *("router_aux_loss_coef", "router_z_loss_coef", "moe_capacity_factor"),
        *("rope_theta", "rope_scaling", "max_position_embeddings", "sliding_window"),
    )
)

# What --amend does not change -> why; see also _fixed_fields.
_FIXED = {
    "model.": "the weights were made for it",
    "seed": "the order of the samples and all that is drawn follow from it",
    "lora": "it decides which weights there are",
    "init_from": "the run began with these weights",
    "training.prune": "what is pruned so far followed from it",
    "optimizer.optim": "each optimizer has a state of its own",
}


@dataclass(frozen=True)
class GoingOn:
    """How a run goes on: the amendments that it knows, and what this start changes.

    changes: field -> its value before and now; empty if nothing changes.
    before: the config that held until now; None if the run has none of ours, as an imported model.
    restarts_data: whether the run goes on with other data, from its first row on. If sources get weights, or no longer
        have any, their rows are others as well.
    """

    amendments: tuple[Amendment, ...] = ()
    changes: tuple[Difference, ...] = ()
    before: RunConfig | None = None
    restarts_data: bool = False


def check_same_run(config: RunConfig, tokenizer: Tokenizer, data: DataIdentity, *, amend: bool = False) -> GoingOn:
    """Refuses a config, tokenizer or data that are not those of the run in `output_dir`.

    amend: whether fields that allow it may differ from now on.

    Raises:
        UserError: something differs that must not.
    """
    run_dir = config.output_dir
    metadata, newest = load_metadata(run_dir)
    amendments = read_amendments(run_dir)
    pending = pending_amendments(metadata, amendments)
    before, known = None, metadata.data
    if "training" in metadata.config:
        held, where = (pending[-1].config, AMENDMENTS) if pending else (metadata.config, "checkpoints")
        if metadata.uncut is not None and not pending:  # the run's config has the model as it was at first
            held = {**held, "model": metadata.model | metadata.uncut}
        before = run_config_from_dict(held, f"{run_dir}/{where}")
        differing = differing_fields(before, config)
    else:  # an imported model
        differing = _differing_model(metadata, run_dir, config)
        lora = metadata.config.get("lora")
        before_lora = None if lora is None else lora_config_from_dict(lora, f"{run_dir}/checkpoints")
        if before_lora != config.lora:
            differing.append(("lora", lora, None if config.lora is None else to_dict(config.lora)))
        if config.init_from is not None:
            differing.append(("init_from", None, config.init_from))
    for amendment in pending:
        if amendment.data is not None:
            known = build(DataIdentity, locate(dict(amendment.data), f"{run_dir}/{AMENDMENTS}"))
    bound = [
        (name, was, now)
        for name, was, now in differing
        if not name.startswith(_FREE_FIELDS) and not _says_where(name, was, now, known, config)
    ]
    fixed = {name: why for name, *_ in bound if (why := _why_fixed(name, before, config)) is not None}
    if fixed or (bound and not amend):
        raise UserError(_refusal(run_dir, bound, fixed, amendments, newest))
    if newest > config.training.max_steps:
        if any(name == "training.max_steps" for name, *_ in bound):
            raise UserError(
                f"training.max_steps {config.training.max_steps} is less than the {newest} steps that {run_dir} has "
                f"done: set {newest} or more, or choose another output_dir"
            )
        raise UserError(
            f"{run_dir} holds a checkpoint of step {newest}, where the run has {config.training.max_steps} steps: "
            "no run wrote it under that name, so move it away"
        )
    mixed = config.data.weights is not None
    changed = None if known is None else data.differences(known, mixed=mixed)
    if changed is not None and not amend:
        raise UserError(
            f"{run_dir} holds a run on other data than data.shards {config.data.shards} has now ({changed}): name the "
            "run's own shards with --data.shards, go on with these from their first row by --amend, or choose another "
            "output_dir"
        )
    if Tokenizer(metadata.tokenizer_files, f"of {run_dir}").sha256 != tokenizer.sha256:
        raise UserError(
            f"{run_dir} holds a run with another tokenizer than {config.data.tokenizer}: choose another output_dir"
        )
    if changed is not None:
        told = [(name, was, now) for name, was, now in differing if name.startswith(("data.shards", "data.sources"))]
        bound = [*bound, *(difference for difference in told if difference not in bound)]
        bound = bound or [("data", "the run's own", changed)]
    restarts = changed is not None or any(name == "data.sequence_length" for name, *_ in bound)
    restarts = restarts or (before is not None and (before.data.weights is None) == mixed)
    return GoingOn(amendments, tuple(bound), before, restarts)


def pending_amendments(metadata: RunMetadata, amendments: tuple[Amendment, ...]) -> tuple[Amendment, ...]:
    """Those of a run's amendments that a checkpoint does not have in its config yet."""
    included = metadata.data_position.get("amendments", 0)
    return tuple(amendment for amendment in amendments if amendment.number > included)


def _why_fixed(name: str, before: RunConfig | None, config: RunConfig) -> str | None:
    """Why --amend does not change this field; None if it does."""
    if before is not None and name.startswith(_MODEL_FIELDS):
        return None
    fixed = _FIXED | ({} if before is None else _fixed_presences(before, config))
    return next((reason for field, reason in fixed.items() if name.startswith(field)), None)


def _fixed_presences(before: RunConfig, config: RunConfig) -> dict[str, str]:
    """Fields whose values may change, but by which a part of the state would come or go -> why not."""
    fixed = {}
    if (before.training.ema_decay is None) != (config.training.ema_decay is None):
        fixed["training.ema_decay"] = "the average is kept from the first step on or not at all"
    if None not in (before.training.distill, config.training.distill):
        fixed["training.distill.teacher_step"] = "the run learns from one checkpoint"
    if bool(before.optimizer.learning_rate_pattern) != bool(config.optimizer.learning_rate_pattern):
        fixed["optimizer.learning_rate_pattern"] = "the optimizer's state is another with such factors than without any"
    return fixed


def _refusal(
    run_dir: str, bound: list[Difference], fixed: dict[str, str], amendments: tuple[Amendment, ...], newest: int
) -> str:
    holds = f"{run_dir} holds a run with another config"
    for amendment in () if fixed else reversed(amendments):
        if any(name in amendment.changes and amendment.changes[name][0] == now for name, _, now in bound):
            return (
                f"{holds}: it was amended {amendment}, and this config is from before; go on with "
                f"{run_dir}/config.yaml, or change it back with --amend"
            )
    shown = ", ".join(f"{name} (was {was}, now {now})" for name, was, now in bound)
    elsewhere = f"choose another output_dir, and init_from {run_dir} to train on from its weights"
    if not fixed:
        return (
            f"{holds}: {shown}; a run goes on only as it began, since its learning rate and its batches follow from "
            f"these. Give them their old values; or let them change after step {newest} with --amend, which records "
            f"it; or {elsewhere}"
        )
    reasons = ", and ".join(f"{name} cannot change, because {reason}" for name, reason in fixed.items())
    rest = [name for name, *_ in bound if name not in fixed]
    others = f". What --amend can change is {', '.join(rest)}" if rest else ""
    return f"{holds}: {shown}; {reasons}: give the old value, or {elsewhere}{others}"


def _says_where(name: str, was: Any, now: Any, known: DataIdentity | None, config: RunConfig) -> bool:
    """Whether a field only says where something lies. Its content is then compared in another way."""
    if name.startswith("data.sources"):
        if name.endswith(".weight") or any("weight" in source and source["weight"] for source in _sources(was, now)):
            return False
        return known is not None or name.endswith(".path")
    if name == "training.distill.teacher":
        return was is not None and now is not None  # its weights are compared when they are read
    if name == "init_from" and config.lora is None:
        # The run's own checkpoint has the weights by now; the run that was named may have been moved.
        return was is not None and now is not None and latest_step(was) is None
    return name == "init_from"  # weights below adapters are compared when they are read


def _sources(*values: Any) -> list[dict[str, Any]]:
    """The sources in lists of them; none in other values."""
    return [source for value in values if isinstance(value, list) for source in value if isinstance(source, dict)]


def check_init_from(config: RunConfig, run_dir: str, tokenizer: Tokenizer) -> None:
    """Refuses a run whose weights are not for this config's model and tokenizer; raises UserError."""
    check_is_run(place(run_dir), "init_from")
    metadata, _ = load_metadata(run_dir)
    if metadata.base is not None:
        raise UserError(
            f"init_from {run_dir} holds adapters on {metadata.base.run_dir}: make one model of both with "
            "`stellarbyte convert to-hf` and a run of that with `from-hf`, and name it"
        )
    differing = _differing_model(metadata, run_dir, config)
    if differing:
        shown = ", ".join(f"{name} (there {a}, here {b})" for name, a, b in differing)
        raise UserError(f"init_from {run_dir} holds another model: {shown}; leave `model` out to take it from there")
    if Tokenizer(metadata.tokenizer_files, f"of {run_dir}").sha256 != tokenizer.sha256:
        raise UserError(
            f"init_from {run_dir} has another tokenizer than data.tokenizer {config.data.tokenizer}: "
            "prepare the data with the tokenizer that the weights were trained with"
        )


def _differing_model(stored: RunMetadata, run_dir: str, config: RunConfig) -> list[Difference]:
    theirs = model_config_from_dict(stored.model, f"{run_dir}/checkpoints")
    return [(f"model.{name}", a, b) for name, a, b in differing_fields(theirs, config.model)]
