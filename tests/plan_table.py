"""The planner's memory of a chip beside the real TPU compiler's, for many configs, as a Markdown table.

Run it as `python -m tests.plan_table [WORD …]` where libtpu is installed (extra tpu); words choose configs by
their names. Each config takes the compiler a minute or so. libtpu 0.0.52 compiles for one v5p or v6e chip only,
0.0.42.1 for many.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from typing import Any

from stellarbyte.chips import GIB
from stellarbyte.errors import UserError
from stellarbyte_jax.config import (
    ByteConfig,
    DataConfig,
    LoRAConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)
from stellarbyte_jax.planning.compile_ahead import compile_ahead
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.topology import parse_topology

SMALL = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 2048, "num_hidden_layers": 12}
MIDDLE = {
    **{"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4},
    **{"intermediate_size": 5632, "num_hidden_layers": 6},
}
LARGE = {
    **{"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"intermediate_size": 11008, "num_hidden_layers": 32},
}
HUGE = {
    **{"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8},
    **{"intermediate_size": 28672, "num_hidden_layers": 80},
}
SWITCHES = {"position_embedding": "xpos", "layer_scale_init": 0.1}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
FULL = {"remat": "full"}


@dataclass(frozen=True)
class Case:
    """A model's fields, and how and on what it is trained."""

    topology: str
    model: dict[str, Any]
    rows: int
    length: int = 2048
    training: dict[str, Any] = field(default_factory=dict)
    mesh: dict[str, Any] = field(default_factory=lambda: {"data": 1, "fsdp": -1})
    lora: LoRAConfig | None = None

    def config(self) -> RunConfig:
        """The run."""
        model = {
            "position_embedding": "rope",
            "max_position_embeddings": self.length,
            "vocab_size": 32000,
            **self.model,
        }
        data = DataConfig((SourceConfig("text"),), "tokenizer", "shards", sequence_length=self.length)
        return RunConfig(
            output_dir="run",
            model=ByteConfig(**model),
            data=data,
            training=TrainingConfig(
                **{"max_steps": 1000, "batch_size": self.rows, "dtype": "bfloat16", **self.training}
            ),
            optimizer=OptimizerConfig(),
            mesh=MeshConfig(**self.mesh),
            init_from=None if self.lora is None else "base",
            lora=self.lora,
        )


CASES = {
    "125m, one chip": Case("v5e:1x1", SMALL, 8),
    "125m, data 4": Case("v5e:2x2", SMALL, 32, mesh={"data": 4}),
    "125m, float32": Case("v5e:1x1", SMALL, 4, training={"dtype": "float32"}),
    "1b none": Case("v5e:4x4", MIDDLE, 16),
    "1b full": Case("v5e:4x4", MIDDLE, 64, training=FULL),
    "1b save_attention": Case("v5e:4x4", MIDDLE, 32, training={"remat": "save_attention"}),
    "1b dots_without_batch": Case("v5e:4x4", MIDDLE, 32, training={"remat": "dots_without_batch"}),
    "1b dots": Case("v5e:4x4", MIDDLE, 32, training={"remat": "dots"}),
    "1b offload, tensor 4": Case(
        "v5e:4x4", MIDDLE, 32, training={"remat": "offload"}, mesh={"data": 1, "fsdp": 4, "tensor": 4}
    ),
    "1b accumulation 4": Case("v5e:4x4", MIDDLE, 64, training={"gradient_accumulation_steps": 4}),
    "1b window": Case("v5e:2x2", MIDDLE | {"sliding_window": 1024}, 4, 4096, FULL),
    "1b two slices": Case("v5e:2x2", MIDDLE, 16, training=FULL, mesh={"data": 2, "fsdp": -1, "slices": 2}),
    "1b xpos, LayerScale": Case("v5e:4x4", MIDDLE | SWITCHES, 16),
    "1b tensor 4": Case("v5e:4x4", MIDDLE, 16, mesh={"data": 1, "fsdp": 4, "tensor": 4}),
    "1b context 4": Case("v5e:4x4", MIDDLE, 4, 16384, FULL, {"data": 1, "fsdp": 4, "context": 4}),
    "1b LoRA": Case("v5e:2x2", MIDDLE, 8, training=FULL, lora=LoRAConfig(target_modules="all-linear", r=16)),
    "experts, one chip each": Case("v5e:4x4", MIDDLE | EXPERTS, 16, training=FULL),
    "experts 4": Case("v5e:4x4", MIDDLE | EXPERTS, 16, training=FULL, mesh={"data": 1, "fsdp": 4, "expert": 4}),
    "1b v5p tensor 2": Case("v5p:2x2x2", MIDDLE, 16, training=FULL, mesh={"data": 1, "fsdp": 4, "tensor": 2}),
    "1b v6e": Case("v6e:4x4", MIDDLE, 32, training={"remat": "dots"}),
    "5.9b v5e:4x4": Case("v5e:4x4", LARGE, 16, training=FULL),
    "5.9b v5e:4x4 tensor 4": Case("v5e:4x4", LARGE, 16, training=FULL, mesh={"data": 1, "fsdp": 4, "tensor": 4}),
    "5.9b v5e:4x4 xpos, LayerScale": Case("v5e:4x4", LARGE | SWITCHES, 16, training=FULL),
    "5.9b v5e:16x16": Case("v5e:16x16", LARGE, 512, training=FULL),
    "5.9b v6e:16x16": Case("v6e:16x16", LARGE, 512, 4096, FULL),
    "8x7b v5e:16x16 expert 8": Case(
        "v5e:16x16",
        LARGE | EXPERTS | {"intermediate_size": 14336},
        256,
        training=FULL,
        mesh={"data": 1, "fsdp": 32, "expert": 8},
    ),
    "5.9b 128k v5e:16x16 context 16": Case(
        "v5e:16x16", LARGE, 16, 131072, FULL, {"data": 1, "fsdp": 16, "context": 16}
    ),
    "70b v5p:8x8x8": Case("v5p:8x8x8", HUGE, 512, 4096, FULL, {"data": 1, "fsdp": 128, "tensor": 4}),
}


def main(words: list[str]) -> None:
    """Print the table, a line as soon as it is known."""
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("tests.plan_table needs the TPU compiler: pip install 'stellarbyte[tpu]' in an environment of its own")
    print("| config | chips | predicted GiB | alive at once, compiled | error | with gaps, compiled |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name, case in CASES.items():
        if words and not any(word in name for word in words):
            continue
        topology = parse_topology(case.topology, case.mesh.get("slices", 1))
        try:
            plan = make_plan(case.config(), topology)
            line = f"| {name} | {topology} | {plan.memory.total / GIB:.3f}{'' if plan.fits else ', does not fit'} |"
            compiled = compile_ahead(case.config(), topology)
            error = plan.memory.total / compiled.peak - 1
            line += f" {compiled.peak / GIB:.3f} | {error:+.1%} | {compiled.total / GIB:.3f} |"
        except UserError as refusal:
            line = f"| {name} | {topology} | {refusal} |"
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
