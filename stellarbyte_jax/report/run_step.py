"""Finds a step of a run once more: its weights, its config, and the rows that it read. It only reads the run."""

import dataclasses
from dataclasses import dataclass

import jax

from stellarbyte.config.build import build
from stellarbyte.config.nodes import locate
from stellarbyte.errors import UserError
from stellarbyte.metrics_file import records
from stellarbyte.places import Place
from stellarbyte_jax.amendments import AMENDMENTS, Amendment, read_amendments
from stellarbyte_jax.checkpoints.adapter_trees import Tree
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, checkpoint_steps, load_params
from stellarbyte_jax.checkpoints.lora_base import load_weights
from stellarbyte_jax.checkpoints.whole_model import base_params
from stellarbyte_jax.config import MeshConfig, RunConfig
from stellarbyte_jax.config_file import load_run_config, run_config_from_dict
from stellarbyte_jax.data.feed import Feed
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.loader import Batch, TrainLoader
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.report.drawn import drawn_params
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.amending import resume
from stellarbyte_jax.training.own_shards import with_own_shards
from stellarbyte_jax.training.same_run import GoingOn, pending_amendments


@dataclass(frozen=True)
class RunStep:
    """A step of a run, as it can be computed on one device.

    config: the run's config in this step. tokenizer: its tokenizer. params: the weights that are trained, after
    `checkpoint` steps; frozen: those below adapters. batch: the rows that the step read, with their samples. layout:
    where all of it lies. remarks: what differs from the step as it was.
    """

    config: RunConfig
    tokenizer: Tokenizer
    checkpoint: int
    params: Tree
    frozen: Tree
    batch: Batch
    layout: Layout
    remarks: tuple[str, ...]


def find_step(run_dir: Place, step: int) -> RunStep:
    """The step of a run, which may be going on.

    Raises:
        UserError: the run has no such step, or its weights or its data cannot be read.
    """
    checkpoint = max((found for found in checkpoint_steps(run_dir) if found < step), default=None)
    amendments = tuple(amendment for amendment in read_amendments(run_dir) if amendment.step < step)
    metadata: RunMetadata | None = None
    if checkpoint is None:
        config = _config(run_dir, None, amendments)
        params = _first_params(run_dir, config, step)
    else:
        params, metadata, _ = load_params(run_dir, checkpoint)
        config = _config(run_dir, metadata, amendments)
    if step > config.training.max_steps:
        raise UserError(
            f"--step {step} is more than training.max_steps {config.training.max_steps} of {run_dir}: name a lower one"
        )
    frozen = (
        {} if metadata is None or metadata.base is None else base_params(metadata.base, metadata, run_dir, load_params)
    )
    tokenizer = Tokenizer.load(config.data.tokenizer)
    known = None
    if metadata is not None:
        tokenizer, known = Tokenizer(metadata.tokenizer_files, str(run_dir)), metadata.data
    for amendment in () if metadata is None else pending_amendments(metadata, amendments):
        if amendment.data is not None:
            known = build(DataIdentity, locate(dict(amendment.data), f"{run_dir}/{AMENDMENTS}"))
    config, manifest = with_own_shards(config, known, run_dir, tokenizer, None)
    done = checkpoint or 0
    resumed = resume(config, DataIdentity.of(manifest), metadata, done, GoingOn(amendments), amend=False, writes=False)
    loader = TrainLoader(config.data, manifest, config.seed).mixed_by(resumed.segments)
    mesh = MeshConfig(data=1)
    layout = Layout.of(mesh, make_mesh(mesh, jax.devices()[:1]))
    feed = Feed(config, loader, layout, done, resumed.rows)
    left_out = resumed.guard.rows_left_out + _skipped_rows(run_dir, feed, done, step)
    batch = loader.batch(feed.take(step - 1, left_out))
    return RunStep(config, tokenizer, done, params, frozen, batch, layout, _remarks(config, done, step))


def _config(run_dir: Place, metadata: RunMetadata | None, amendments: tuple[Amendment, ...]) -> RunConfig:
    if metadata is None:
        if not (run_dir / "config.yaml").is_file():
            raise UserError(f"{run_dir} is no run of pretraining, which has steps: leave --step out")
        config = load_run_config(run_dir / "config.yaml")
        pending = amendments
    else:
        if "data" not in metadata.config:
            raise UserError(f"{run_dir} holds an imported model, which was trained by no steps: leave --step out")
        config = run_config_from_dict(metadata.config, str(run_dir))
        pending = pending_amendments(metadata, amendments)
    if pending:
        model = config.model
        config = run_config_from_dict(dict(pending[-1].config), f"{run_dir}/{AMENDMENTS}")
        if metadata is not None and metadata.uncut is not None:
            config = dataclasses.replace(config, model=model)
    training = config.training
    if metadata is not None and metadata.uncut is not None:
        training = dataclasses.replace(training, prune=None)
    # On one device each kernel gives the same numbers.
    training = dataclasses.replace(training, attention_kernel="auto", remat="none")
    return dataclasses.replace(config, training=training, output_dir=str(run_dir))


def _first_params(run_dir: Place, config: RunConfig, step: int) -> Tree:
    """The weights before the first step, if the run has saved no others before the step."""
    oldest, interval = min(checkpoint_steps(run_dir), default=None), config.checkpoint.save_steps
    if oldest is not None and interval is not None and step > interval:
        raise UserError(f"no checkpoint of {run_dir} from before step {step} is kept: name a step after {oldest}")
    if config.lora is not None:
        raise UserError(
            f"no checkpoint of {run_dir} from before step {step} is there, with the weights of its adapters"
        )
    if config.init_from is not None:
        return load_weights(config.init_from)[0]
    return drawn_params(config.model, config.seed)


def _skipped_rows(run_dir: Place, feed: Feed, done: int, step: int) -> int:
    """The rows of batches that were left out after the checkpoint and before the step."""
    path = run_dir / "divergence.jsonl"
    if not path.is_file():
        return 0
    found = [record for _, record in records(path) if record.get("done") == "skipped"]
    return sum(
        feed.rows(int(record["step"])) - feed.rows(int(record["step"]) - 1)
        for record in found
        if done < int(record["step"]) < step
    )


def _remarks(config: RunConfig, done: int, step: int) -> tuple[str, ...]:
    found = []
    if done != step - 1:
        found.append(f"the weights are those after step {done}, of the newest checkpoint from before step {step}")
    if config.training.prune is not None:
        found.append("gradients are those before training.prune has taken out what it prunes")
    return tuple(found)
