"""Settings that no run can have: sizes of 10^12, numbers that are none, paths that lead to no folder."""

from collections.abc import Callable
from itertools import product

from hostile.case import Case, Cases, Command, World, stellarbyte, torch

_SIZES = (
    *("model.vocab_size", "model.hidden_size", "model.intermediate_size", "model.num_hidden_layers"),
    *("model.num_attention_heads", "model.num_key_value_heads", "model.head_dim", "model.num_experts"),
    *("model.max_position_embeddings", "model.num_shared_experts", "model.moe_intermediate_size"),
    *("model.sliding_window", "model.num_experts_per_tok", "training.max_steps", "training.batch_size"),
    *("training.eval_steps", "training.eval_batches", "training.attention_block_size", "data.sequence_length"),
    *("training.gradient_accumulation_steps", "checkpoint.save_steps", "checkpoint.save_total_limit"),
    *("training.quantize_group_size", "data.tokens_per_shard"),
    *("optimizer.warmup_steps", "mesh.slices", "mesh.tensor", "seed"),
)
_NUMBERS = (
    *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.adam_epsilon", "optimizer.max_grad_norm"),
    *("optimizer.adam_beta1", "optimizer.min_learning_rate_ratio", "data.validation_fraction", "model.rope_theta"),
    *("model.rms_norm_eps", "model.xpos_scale_base", "model.initializer_range", "model.layer_scale_init"),
    *("model.drop_path_rate", "model.attention_dropout", "model.moe_capacity_factor", "model.router_z_loss_coef"),
)
_WORDS: dict[str, tuple[str, ...]] = {
    "training.dtype": ("x" * 9000, "true", "float8"),
    "training.remat": ("'\\e[2J'", "[none]"),
    "training.quantize": ("w3", "4", "[w4]"),
    "data.kind": ("3", "chat"),
    "model.residual": ("deepnorm.", "[[[[]]]]"),
    "model.rope_scaling": ("{rope_type: linear, factor: .inf}", "{rope_type: yarn, factor: -1}", "{}", "7"),
    "model.pruned_heads": ("[[0], [99]]", "[[0, 0], []]", "[[0,1,2,3],[]]", "[]", "[[-1], []]", "[[99999999999], []]"),
    "mesh.rules": ("{hidden: [nowhere]}", "{nothing: [data]}", "{hidden: [1]}", "[data]", "{hidden: [data, data]}"),
    "mesh": ("{data: -1, tensor: -1}", "{data: 0}", "{fsdp: true}", "{data: -2}"),
    "distributed": (
        *("{coordinator_address: '::1'}", "{coordinator_address: 'h:99999'}", "{process_id: 5, num_processes: 2}"),
        *("{num_processes: 1048577}", "{start_timeout: 1000000000}", "{local_device_ids: [-1]}", "{lost_after: 0}"),
    ),
    "training.batch_size": ("2147483644",),
    "model.vocab_size": ("16777216", "2", "259"),
    "model.num_hidden_layers": ("16384",),
    "model.max_position_embeddings": ("1073741824",),
    "data.sequence_length": ("257",),
    "data.tokens_per_shard": ("1",),
    "optimizer.learning_rate": ("1e30", "1e-320"),
    "optimizer.adam_epsilon": ("1e-320",),
    "init_from": ("/etc/passwd", "''", "/dev/zero", "'a\\0b'", "3", "[run]", "/proc/self/fd"),
    "lora": ("{target_modules: all-linear}", "{}", "[]", "{target_modules: [], r: 4}", "{target_modules: x, r: 4}"),
    "data.sources": ("[]", "{}", "[[]]", "[{path: x, path: y}]", "[{}]", "[null]", "[{path: [x]}]", "corpus.jsonl"),
    "data.sources.0.fields": ("[]", "text", "{a: b}", "[[text]]", "[nowhere]", "['']"),
    "data.sources.0.template": ("'{'", "'{}'", "'{0}'", "'{text.__class__}'", "'{text!r:>1000000000}'", "''", "x"),
    "model": ("''", "nowhere.yaml", "/dev/zero", "run.yaml", "[]", "'a\\0b'"),
}  # fmt: skip
# Of a fine-tuning run.
_TORCH_SIZES = (
    *("data.sequence_length", "lora.r", "training.max_steps", "training.per_device_train_batch_size", "data.seed"),
    *("training.gradient_accumulation_steps", "training.warmup_steps", "training.save_steps", "training.eval_steps"),
    *("training.logging_steps", "training.save_total_limit", "training.dataloader_num_workers", "training.seed"),
    *("training.per_device_eval_batch_size", "early_stopping_patience", "training.num_train_epochs"),
)
_TORCH_NUMBERS = (
    *("training.learning_rate", "training.weight_decay", "training.max_grad_norm", "training.adam_epsilon"),
    *("lora.lora_alpha", "lora.lora_dropout", "data.validation_fraction", "training.label_smoothing_factor"),
    "training.warmup_ratio",
)
_TORCH_WORDS: dict[str, tuple[str, ...]] = {
    "lora.target_modules": ("[]", "''", "[nowhere]", "'(('", "'(a+)+$'", "[1, 2]", "{a: b}", "'.*'", "[lm_head, '']"),
    "lora.rank_pattern": ("{q_proj: 1000000000000}", "{'((': 2}", "[q_proj]", "{nowhere: 2}", "{q_proj: 1.5}"),
    "lora.alpha_pattern": ("{q_proj: .nan}", "{q_proj: 0}", "{'(a+)+$': 3}", "3"),
    "lora.layers_to_transform": ("[99]", "[-1]", "'x'", "[1000000000000]", "{}"),
    "lora.modules_to_save": ("[nowhere]", "lm_head", "['']", "[[lm_head]]"),
    "lora.init_lora_weights": ("nothing", "loftq", "3", "pissa_niter_1000000000000", "pissa_niter_x"),
    "lora.bias": ("many", "true"),
    "lora.layers": ("9-0", "0-1000000000000", "x", "-1", "'0,,1'"),
    "lora.activation": ("relu6x", "__import__('os')"),
    "training.lr_scheduler_type": ("nowhere", "3", "[cosine]"),
    "training.lr_scheduler_kwargs": ("{nothing: 1}", "{num_cycles: x}"),
    "training.optim": ("sgdd", "adamw_bnb_8bit", "galore_adamw"),
    "training.optim_args": ("x", "nothing=1", "lr=1", "=", "a=b=c"),
    "training.neftune_noise_alpha": ("1000000000000", ".nan", "1e9"),
    "training.dataloader_prefetch_factor": ("1000000000", "2"),
    "training.learning_rate": ("1e30", "1e-320"),
    "training.report_to": ("nowhere", "wandb", "[]"),
    "training.fsdp": ("nowhere", "full_shard"),
    "training.deepspeed": ("nowhere.json", "/dev/zero"),
    "training.accelerator_config": ("nowhere.json", "{nothing: 1}"),
    "training.eval_strategy": ("sometimes",),
    "training.bf16": ("maybe", "3"),
    "training.tf32": ("true",),
    "training.use_cpu": ("false", "x"),
    "training.ddp_backend": ("nowhere",),
    "training.torch_compile_backend": ("nowhere",),
    "training.debug": ("nowhere",),
    "training.activation_checkpointing_kwargs": ("{nothing: 1}", "[]"),
    "training": ("{activation_checkpointing: true, activation_checkpointing_kwargs: {nothing: 1}}", "[]", "3"),
    "data.chat_template": ("nowhere.jinja", "/dev/zero", "''", "/proc/self/mem"),
    "data.tokenizer": ("nowhere", "/dev/zero", "''", "/etc/passwd", "'a\\0b'"),
    "data.sources.0.format": ("alpaca2", "alpaca", "[messages]"),
    "data.sources": ("[]", "x", "[{}]", "[{path: ''}]", "[{path: 'a\\0b'}]", "[{path: '/dev/zero'}]"),
    "model": ("''", "nowhere", "/dev/zero", "/etc/passwd", "'a\\0b'", "../../../../etc", "'x y/z w'", "-"),
    "trainable": ("{layers: 0-1}", "{}", "3"),
    "quantization": ("nf4", "int3"),
    "dtype": ("float8", "float64", "3"),
}  # fmt: skip
# Where a run, its shards, its tokenizer and its text cannot be.
_PATHS = (
    *("''", "/dev/full", "/proc/sys/kernel/x", "/etc/passwd/x", '"a\\0b"', "n" * 300, "n/" * 5000, '"\\udcff"', "3.5"),
    *("[x]", "/dev/null", '"a\\nb\\e[2J/x"', "/sys/x"),
)
# Which command reads a section of the config; the others `pretrain` does.
_PLAN = ("plan", "--topology", "h100:1x1")
_READERS = {"data": ("prepare", "--data.shards=shards"), "model": _PLAN, "mesh": _PLAN}
_WORD = "on the command line a word is a name"
# What is rightly taken, and why.
_ACCEPTED: dict[tuple[str, str, str], str] = {
    ("output_dir", "3.5", "pretrain"): _WORD,
    ("output_dir", "[x]", "pretrain"): _WORD,
    ("output_dir", "3.5", "finetune"): _WORD,
    ("output_dir", "[x]", "finetune"): _WORD,
    ("data.shards", "3.5", "prepare"): _WORD,
    ("data.shards", "[x]", "prepare"): _WORD,
    ("data.kind", "chat", "prepare"): "plain text is a sample as well",
    ("data.tokens_per_shard", "1", "prepare"): "a shard for each document, as was asked for",
    ("data.seed", "1000000000000", "finetune"): "a seed may have 63 bits, all of which count",
    ("model.vocab_size", "16777216", "plan"): "a plan says that it does not fit",
    ("model.vocab_size", "259", "plan"): "a plan does not look at the tokenizer, which has more",
    ("model.num_hidden_layers", "16384", "plan"): "a plan says whether it fits",
    ("training.max_steps", "-1", "finetune"): "Transformers' own word for counting epochs",
    ("training.neftune_noise_alpha", "1e9", "finetune"): "noise that large is noise, and the numbers stay finite",
    ("training.learning_rate", "1e30", "finetune"): "two steps of it leave finite numbers, the best of which are kept",
    ("training.report_to", "[]", "finetune"): "the same as none",
    ("training.use_cpu", "false", "finetune"): "that is the default",
    ("lora.lora_alpha", "-0.5", "finetune"): "what an adapter has learnt may be subtracted",
}


def cases() -> Cases:
    """Of both wings."""
    given = [*product(_SIZES, ("1000000000000", "-1")), *product(_NUMBERS, (".nan", "1e400", "-0.5"))]
    given += [(name, value) for name, values in _WORDS.items() for value in values]
    for name, value in given:
        first, *rest = _READERS.get(name.partition(".")[0], ("pretrain",))

        def make(world: World, first: str = first, rest: list[str] = rest, word: str = f"--{name}={value}") -> Command:
            return stellarbyte(first, world.run_yaml(), *rest, word)

        yield _case(name, value, make, first)
    for name, value in product(("output_dir", "data.shards", "data.tokenizer", "data.sources.0.path"), _PATHS):
        first = "pretrain" if name == "output_dir" else "prepare"

        def make(world: World, first: str = first, word: str = f"--{name}={value}") -> Command:
            return stellarbyte(first, world.run_yaml(), word)

        yield _case(name, value, make, first)

    given = [*product(_TORCH_SIZES, ("1000000000000", "-1")), *product(_TORCH_NUMBERS, (".nan", "1e400", "-0.5"))]
    given += [(name, value) for name, values in _TORCH_WORDS.items() for value in values]
    given += product(("output_dir", "data.sources.0.path"), _PATHS)
    for name, value in given:

        def make(world: World, word: str = f"--{name}={value}") -> Command:
            return torch("finetune", world.finetune_yaml(), word)

        yield _case(name, value, make, "finetune")


def _case(name: str, value: str, make: Callable[[World], Command], command: str) -> Case:
    shown = value if len(value) < 40 else f"{value[:30]}… of {len(value)}"
    told = "stellarbyte: transformers: Passing `fsdp` as a string is deprecated" if name == "training.fsdp" else ""
    return Case("settings", f"{name}={shown} ({command})", make, _ACCEPTED.get((name, value, command), ""), told=told)
