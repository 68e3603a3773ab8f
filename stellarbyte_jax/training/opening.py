"""Says what a run is about to train, on what, and from where."""

import jax
from jax.sharding import Mesh

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.feed import Feed
from stellarbyte_jax.data.loader import TrainLoader
from stellarbyte_jax.training.state import Params


def opening(
    config: RunConfig, params: Params, frozen: Params, loader: TrainLoader, feed: Feed, mesh: Mesh, step: int
) -> str:
    """The line that a run begins with, and how often it reads each source. step: the number of steps that are done."""
    trained, below = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, frozen))
    parameters = f"{trained / 1e6:.1f} M parameters"
    if frozen:
        parameters = f"{trained:,} parameters of adapters on {below / 1e6:.1f} M"
    devices = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    stage = feed.stage(step)
    tokens_a_step = f"{stage.batch_size * config.data.sequence_length} tokens a step"
    if stage != config.stages[-1]:
        tokens_a_step += f" at first, in rows of {stage.sequence_length}"
    origin = "from scratch" if config.init_from is None else f"from the weights of {config.init_from}"
    if step:
        origin = f"going on after step {step}"
    if config.training.distill is not None:
        origin += f", taught by {config.training.distill.teacher}"
    line = (
        f"{parameters}, {len(loader)} rows of {config.data.sequence_length} tokens, {tokens_a_step}, "
        f"{mesh.size} {jax.default_backend()} device(s) ({devices}), {config.training.dtype}, "
        f"remat {config.training.remat}, {origin}"
    )
    return "\n".join([line, *loader.repeats(feed.rows(config.training.max_steps))])
