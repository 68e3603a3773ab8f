"""Laws 5 and 6 on meshes and processes: worst relative differences of losses to one device, as Markdown tables.

Run it as `python -m tests.pods_table processes` or `python -m tests.pods_table meshes`; each takes some ten minutes.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS, RESUMED_AT = 10, 5
MODELS: dict[str, dict[str, Any]] = {
    "dense": {},
    "windowed": {"sliding_window": 6, "tie_word_embeddings": True, "residual": "deepnorm"},
    "moe": {"num_experts": 4, "num_shared_experts": 1, "moe_intermediate_size": 8},
}
# (processes, devices of each) -> meshes. Of a mesh, the last axes lie within a process as far as its devices go.
JOBS: dict[tuple[int, int], list[dict[str, int]]] = {
    (2, 1): [{"data": 2}, {"data": 1, "fsdp": 2}, {"data": 1, "tensor": 2}, {"data": 1, "context": 2}],
    (2, 2): [{"data": 1, "fsdp": 2, "tensor": 2}],
    (4, 1): [{"data": 4}, {"data": 1, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "slices": 2}],
}
JOBS_OF_EXPERTS = {(2, 1): [{"data": 1, "expert": 2}], (4, 1): [{"data": 1, "expert": 2, "tensor": 2}]}
MESHES: dict[str, dict[str, int]] = {
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "data 4, tensor 2": {"data": 4, "tensor": 2},
    "fsdp 4, tensor 2": {"data": 1, "fsdp": 4, "tensor": 2},
    "2 slices": {"data": 2, "fsdp": 4, "slices": 2},
    "expert 4": {"data": 2, "expert": 4},
    "context 4": {"data": 2, "context": 4},
    "all but data": {"data": 1, "fsdp": 2, "context": 2, "tensor": 2},
}


def main(what: str) -> None:
    """Print one of the tables."""
    from tests import conftest  # noqa: F401 - it tells JAX of eight devices

    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as folder:
        {"processes": over_processes, "meshes": across_meshes}[what](Path(folder))


def over_processes(folder: Path) -> None:
    """Law 5 for 2 and 4 processes."""
    from stellarbyte_jax.config_file import save_config
    from test_jax.jobs import Job
    from test_jax.runs import losses

    print("| model | processes x devices | mesh | difference |\n| --- | --- | --- | --- |")
    for name, fields in MODELS.items():
        config = _config(folder / f"{name}-alone", {"data": 1}, fields)
        alone = _on_one_device(config)
        jobs = itertools.chain(JOBS.items(), JOBS_OF_EXPERTS.items() if name == "moe" else ())
        for number, ((count, devices), meshes) in enumerate(jobs):
            for mesh in meshes:
                run = _config(folder / f"{name}-{number}-{'-'.join(mesh)}", mesh, fields)
                save_config(run, folder / "config.yaml")
                with Job(folder / "config.yaml", count, devices) as job:
                    ends = job.ends(timeout=300)
                assert all(code == 0 for code, *_ in ends), ends
                axes = ", ".join(f"{axis} {size}" for axis, size in mesh.items())
                difference = _difference(losses(run.output_dir), alone)
                print(f"| {name} | {count} x {devices} | {axes} | {difference:.1e} |", flush=True)


def across_meshes(folder: Path) -> None:
    """Law 6 for each pair of meshes: written on one, read on another; experts, so that every axis does something."""
    from stellarbyte_jax.config import MeshConfig
    from stellarbyte_jax.training.pretrain import pretrain
    from test_jax.runs import losses

    fields = MODELS["moe"]
    alone = _on_one_device(_config(folder / "alone", {"data": 1}, fields))
    print(f"| written on | {' | '.join(MESHES)} |\n{'| --- ' * (len(MESHES) + 1)}|")
    for written_on, mesh in MESHES.items():
        config = _config(folder / "written", mesh, fields)
        _interrupt_after(RESUMED_AT)
        assert not _quietly(pretrain, config)
        cells = []
        for read_on in MESHES.values():
            again = dataclasses.replace(config, output_dir=str(folder / "read"), mesh=MeshConfig(**read_on))
            shutil.copytree(config.output_dir, again.output_dir)
            assert _quietly(pretrain, again)
            cells.append(f"{_difference(losses(again.output_dir), alone):.1e}")
            shutil.rmtree(again.output_dir)
        shutil.rmtree(config.output_dir)
        print(f"| {written_on} | {' | '.join(cells)} |", flush=True)


def _config(output_dir: Path, mesh: dict[str, int], fields: dict[str, Any]) -> Any:
    from stellarbyte_jax.config import MeshConfig
    from test_jax.conftest import VOCAB_SIZE, twelve_steps
    from test_jax.tiny import tiny_config

    config = twelve_steps(_data(output_dir.parent), output_dir)
    return dataclasses.replace(
        config,
        model=tiny_config(vocab_size=VOCAB_SIZE, initializer_range=0.05, **fields),
        training=dataclasses.replace(config.training, max_steps=STEPS, batch_size=8),
        mesh=MeshConfig(**mesh),
    )


def _data(folder: Path) -> Any:
    import json

    import numpy as np

    from stellarbyte_jax.config import DataConfig, SourceConfig
    from stellarbyte_jax.data.prepare import prepare
    from stellarbyte_jax.data.tokenizer_training import train_tokenizer
    from test_jax.conftest import VOCAB_SIZE, WORDS

    corpus, tokenizer, shards = (folder / name for name in ("corpus.jsonl", "tokenizer", "shards"))
    data = DataConfig((SourceConfig(str(corpus)),), str(tokenizer), str(shards), sequence_length=24)
    if not corpus.exists():
        generator = np.random.default_rng(0)
        texts = [" ".join(generator.choice(WORDS, generator.integers(2, 60))) for _ in range(64)]
        corpus.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        train_tokenizer(texts, VOCAB_SIZE, tokenizer, report=lambda _: None)
        prepare(data, report=lambda _: None)
    return data


def _on_one_device(config: Any) -> list[float]:
    import functools

    import jax

    from stellarbyte_jax.sharding import make_mesh
    from stellarbyte_jax.training import loop
    from stellarbyte_jax.training.pretrain import pretrain
    from test_jax.runs import losses

    loop.make_mesh = functools.partial(make_mesh, devices=jax.devices()[:1])
    assert _quietly(pretrain, config)
    loop.make_mesh = make_mesh
    return losses(config.output_dir)


def _quietly(pretrain: Any, config: Any) -> bool:
    with contextlib.redirect_stdout(sys.stderr):
        return pretrain(config)


def _interrupt_after(at: int) -> None:
    from stellarbyte_jax.training.watching.metrics import MetricsLog

    train = MetricsLog.train

    def train_then_stop(self: Any, step: int, values: Any) -> None:
        train(self, step, values)
        if step == at:
            MetricsLog.train = train
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsLog.train = train_then_stop


def _difference(found: list[float], expected: list[float]) -> float:
    assert len(found) == len(expected) == STEPS
    return max(abs(a / b - 1) for a, b in zip(found, expected, strict=True))


if __name__ == "__main__":
    main(sys.argv[1])
