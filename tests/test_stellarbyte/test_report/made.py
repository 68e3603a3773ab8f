"""Reports made by hand, with everything in them that a page can show."""

from dataclasses import replace

import numpy as np

from stellarbyte.report.architecture import Architecture, Attention, FeedForward, LayerGroup, Weight
from stellarbyte.report.flops import Flops, Work
from stellarbyte.report.measurements import (
    AttentionFacts,
    AttentionPattern,
    CurvePoints,
    Heads,
    Latency,
    LatencyPoint,
    Machine,
    MatrixFacts,
    Measured,
    StepStatistics,
    TensorStatistics,
    TokenLoss,
    TokenLosses,
    Weights,
)
from stellarbyte.report.memory import CacheMemory, ChipFit, Memory, TrainingMemory
from stellarbyte.report.parameters import LayerParameters, Parameters
from stellarbyte.report.report import Report

HOSTILE = '<script>alert("x")</script>&\x1b[31m $x_1$ 模型'
LAYERS, HIDDEN, VOCAB = 6, 256, 4096


def dense(name: str = "quickstart", **other: object) -> Report:
    """A small dense model of ours, of which only what is counted is known."""
    attention = Attention(4, 2, 64, 64, None, "xpos", False, False)
    feed_forward = FeedForward(704, True, "silu")
    weights = (
        *(Weight(f"self_attn.{n}_proj.weight", (w, HIDDEN), f"attention_{n}") for n, w in (("q", 256), ("k", 128))),
        Weight("self_attn.v_proj.weight", (128, HIDDEN), "attention_v"),
        Weight("self_attn.o_proj.weight", (HIDDEN, 256), "attention_o"),
        *(Weight(f"mlp.{n}_proj.weight", (704, HIDDEN), "feed_forward") for n in ("gate", "up")),
        Weight("mlp.down_proj.weight", (HIDDEN, 704), "feed_forward"),
        Weight("input_layernorm.weight", (HIDDEN,), "norms"),
        Weight("post_attention_layernorm.weight", (HIDDEN,), "norms"),
    )
    parts = {"attention_q": 65536, "attention_k": 32768, "attention_v": 32768, "attention_o": 65536}
    parts |= {"feed_forward": 540672, "norms": 512}
    one = sum(parts.values())
    whole = {"embedding": VOCAB * HIDDEN} | {part: LAYERS * number for part, number in parts.items()}
    total = sum(whole.values())
    shape = Architecture(
        model_type="stellarbyte",
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        context=512,
        tied=True,
        norm="rms_norm",
        residual="pre_norm",
        parallel=False,
        switches={"num_key_value_heads": 2, "initializer_range": 0.06, "tie_word_embeddings": True},
        groups=(LayerGroup(tuple(range(LAYERS)), attention, feed_forward, weights, one),),
        outside=(
            Weight("embed_tokens.weight", (VOCAB, HIDDEN), "embedding"),
            Weight("norm.weight", (HIDDEN,), "norms"),
        ),
    )
    layers = tuple(LayerParameters(n, parts, one, one) for n in range(LAYERS))
    report = Report(
        name=name,
        kind="run",
        path=f"runs/{name}",
        facts={"family": "stellarbyte", "trained": "step 400 of 400"},
        architecture=shape,
        parameters=Parameters(total, total, VOCAB * HIDDEN, total, whole, layers),
        memory=memory(total),
        flops=work(total),
        remarks=("the optimizer's state is not stored",),
    )
    return replace(report, **other)


def memory(total: int) -> Memory:
    training = tuple(
        TrainingMemory(remat, 8, 512, "bfloat16", 4 * total, 4 * total, 8 * total, kept << 20, 20 << 20, "the loss")
        for remat, kept in (("none", 800), ("dots", 420), ("dots_without_batch", 300), ("full", 40))
    )
    lengths = tuple(1 << n for n in range(9, 16, 2))
    cache = tuple(
        CacheMemory(dtype, 256 * width, tuple((n, n * 256 * width) for n in lengths))
        for dtype, width in (("float32", 4), ("bfloat16", 2), ("int8", 1))
    )
    chips = tuple(
        ChipFit(chip, size << 30, {"none": size // 8, "full": size * 4 - 60}, {"bfloat16": size * 30})
        for chip, size in (("TPU v5e", 15), ("A100 40 GB", 39), ("H100", 79))
    )
    stored = {"float32": 4 * total}
    weights = {"float32": 4 * total, "bfloat16": 2 * total, "int8": total, "int4": total // 2}
    state = {"weights": 4 * total, "gradients": 4 * total, "optimizer": 8 * total}
    return Memory(4 * total, stored, weights, "adamw", state, training, cache, chips)


def work(total: int) -> Flops:
    def of(length: int, times: int) -> Work:
        parts = {"attention_projections": 0.24, "attention_scores": length / 8192, "feed_forward": 0.66, "head": 0.1}
        counted = {part: 2.0 * total * times * each for part, each in parts.items()}
        return Work(length, sum(counted.values()), counted, (1.0,) * LAYERS)

    again = {"dots": 0.2e6, "full": 2.2 * total}
    lengths = (512, 2048, 8192)
    return Flops(of(512, 3), again, tuple(of(n, 1) for n in lengths), tuple(of(n, 1) for n in lengths), 1000.0, True)


def measured_parts(text: str = "def main(path):\n    return 明天见 path.name\n") -> Measured:
    random = np.random.default_rng(0)
    points = tuple(
        LatencyPoint(phase, batch, length, 0.004 * batch**0.6, 0.006 * batch**0.6, 10, 250 * batch**0.4, *costs)
        for phase, *costs in (("prefill", 4e8, 1e7, "compute", 0.61), ("decode", 7e6, 1.4e7, "memory", 0.37))
        for batch in (1, 4, 16)
        for length in (128, 512)
    )
    machine = Machine("AMD EPYC 7B13", "float32", 1.8e11, 2.1e10, 2)
    tokens = tuple(text[n : n + 3] for n in range(0, len(text), 3))
    grid = tuple(tuple(float(v) for v in row) for row in random.gamma(2.0, 1.0, (LAYERS, 4)))
    rows = [random.dirichlet(np.ones(n + 1)) for n in range(len(tokens))]
    pattern = tuple((*map(float, row), *[0.0] * (len(tokens) - len(row))) for row in rows)
    patterns = tuple(AttentionPattern(n, n % 4, pattern, chosen) for n, chosen in enumerate(("first", "nearest")))
    losses = tuple(TokenLoss(each, None if n == 0 else float(random.gamma(1.5, 1.6))) for n, each in enumerate(tokens))
    names = [f"layers.{n}.{part}" for n in range(LAYERS) for part in ("attention", "feed_forward")]
    arrays = tuple(
        TensorStatistics(name, kind, n // 2, 0.3 + n / 10, 4.0 + n, 0.01 * n, int(kind == "gradient" and n == 7))
        for kind in ("activation", "gradient")
        for n, name in enumerate(names)
    )
    return Measured(
        latency=Latency("torch 2.9", machine, points),
        heads=Heads(((None, *grid[0][1:]), *grid[1:]), "The gradient of the loss with respect to a gate.", 2048),
        attention=AttentionFacts(tokens, patterns, 1024, grid, grid, tuple(tuple(v / 20 for v in row) for row in grid)),
        token_losses=TokenLosses(losses, 2.41, 1.37),
        step_statistics=StepStatistics(40, 40, (1, 2), 4096, 2.4, 1.1, arrays, "layers.3.feed_forward"),
    )


def whole(name: str = "quickstart", **other: object) -> Report:
    """The dense model with every measured part, and the curves of its run."""
    random = np.random.default_rng(1)
    names = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    matrices = [
        MatrixFacts(n, matrix, (256, 256), *map(float, random.uniform(0, 0.1, 3)), 180.0, random.uniform(), False, 0.4)
        for n in range(LAYERS)
        for matrix in names
    ]
    matrices.append(MatrixFacts(None, "embed_tokens", (VOCAB, HIDDEN), 0.01, 0.002, 7.0, None, None, False, None, 3))
    steps = tuple(range(1, 401))
    losses = tuple(float(v) for v in 8 * np.array(steps) ** -0.25 + random.normal(0, 0.08, 400))
    curves = {
        "loss": CurvePoints(steps, tuple(4096 * n for n in steps), losses),
        "validation_loss": CurvePoints((200, 400), (819200, 1638400), (2.3, 1.9)),
        "learning_rate": CurvePoints(steps, steps, tuple(1e-3 * (1 - n / 500) for n in steps)),
    }
    weights = Weights(tuple(matrices), {"small": "the share of numbers below a hundredth of the rms"}, "distribution")
    return dense(name, weights=weights, curves=curves, measured=measured_parts(), **other)


def experts(name: str = "moe") -> Report:
    """A model with experts, LayerScale, DropPath, a window and deepnorm; one layer is dense."""
    plain = dense(name, kind="config", path="configs/moe.yaml")
    (group,) = plain.architecture.groups
    kept = tuple(weight for weight in group.weights if weight.part != "feed_forward")
    inside = (
        Weight("mlp.router.weight", (8, HIDDEN), "router"),
        *(Weight(f"mlp.experts.{n}_proj.weight", (256, HIDDEN), "experts", 8) for n in ("gate", "up")),
        Weight("mlp.experts.down_proj.weight", (HIDDEN, 256), "experts", 8),
        *(Weight(f"mlp.shared_experts.{n}_proj.weight", (256, HIDDEN), "shared_experts") for n in ("gate", "up")),
        Weight("mlp.shared_experts.down_proj.weight", (HIDDEN, 256), "shared_experts"),
        Weight("attention_scale.weight", (HIDDEN,), "layer_scale"),
        Weight("feed_forward_scale.weight", (HIDDEN,), "layer_scale"),
    )
    assert group.attention is not None
    groups = (
        replace(group, layers=(0,)),
        replace(
            group,
            layers=tuple(range(1, LAYERS)),
            attention=replace(group.attention, window=128, positions="rope", qk_norm=True),
            feed_forward=FeedForward(256, True, "silu", 8, 2, 1, 256),
            weights=(*kept, Weight("self_attn.q_norm.weight", (64,), "norms"), *inside),
            parameters=1_900_000,
        ),
    )
    switches = {"num_experts": 8, "sliding_window": 128, "residual": "deepnorm", "drop_path_rate": 0.1}
    shape = replace(plain.architecture, groups=groups, switches=switches, residual="deepnorm", tied=False)
    parts = plain.parameters.parts | {"router": 12288, "experts": 9437184, "shared_experts": 1179648, "head": 1 << 20}
    total = sum(parts.values())
    numbers = replace(plain.parameters, parts=parts, total=total, active=total - 7077888, tied=0)
    return replace(plain, architecture=shape, parameters=numbers, memory=replace(plain.memory, stored=None))


def unknown(name: str = "gpt2") -> Report:
    """A family whose computation is not known: tensors alone."""
    plain = dense(name, kind="model", path="models/gpt2")
    (group,) = plain.architecture.groups
    groups = (replace(group, attention=None, feed_forward=None),)
    switches: dict[str, str | int | float | bool] = {}
    shape = replace(
        plain.architecture, model_type="gpt2", residual=None, norm=None, context=None, groups=groups, switches=switches
    )
    memory = replace(plain.memory, training=(), cache=())
    return replace(plain, architecture=shape, flops=None, memory=memory, facts={}, remarks=())


def weighed(name: str, init: str) -> Report:
    """The dense model, one of whose matrices was looked at."""
    facts = MatrixFacts(0, "self_attn.q_proj", (256, 256), 0.0, 0.0, 3.0, 180.0, 0.7, False, 0.4)
    definitions = {"small": "the share of numbers below a hundredth of the rms", "init_distance": f"from the {init}"}
    return dense(name, weights=Weights((facts,), definitions, init))
