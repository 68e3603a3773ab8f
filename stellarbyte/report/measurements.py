"""The parts of a report that are measured on a model's weights, on a text or on a machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The most that this machine has reached, measured (Williams et al. 2009, doi:10.1145/1498765.1498785).

    Attributes:
        name: the processor's or the card's. dtype: that of the computation.
        flops: FLOPs a second of a large matmul.
        bandwidth: bytes a second of reading or copying an array as large as the model's weights, up to 256 MiB, since a
            small model's lie in caches.
        threads: those of a processor; None for an accelerator.
    """

    name: str
    dtype: str
    flops: float
    bandwidth: float
    threads: int | None = None


@dataclass(frozen=True)
class LatencyPoint:
    """One measurement of speed, with a cache of its own.

    Attributes:
        phase: prefill (the prompts of a batch) or decode (one token for each row of it).
        batch: rows. length: tokens of a prompt; in decode, tokens in the cache.
        median, p95: seconds of a pass, over `repeats` of them; the first ones, which warm up, are left out.
        tokens_per_second: of all rows together, at the median.
        flops: the FLOPs of a pass, as counted. nbytes: the bytes of weights, keys and values that it has to read.
        bound: compute or memory: what the roofline says that it waits for.
        reached: the shortest time that the roofline allows, as a share of the median.
        compile_seconds: the time of compiling, which is in no other figure; None where nothing is compiled.
    """

    phase: str
    batch: int
    length: int
    median: float
    p95: float
    repeats: int
    tokens_per_second: float
    flops: float
    nbytes: float
    bound: str
    reached: float
    compile_seconds: float | None = None


@dataclass(frozen=True)
class Latency:
    """Speed over batch and length. library: jax or torch, with its version. remark: what was left out, and why."""

    library: str
    machine: Machine
    points: tuple[LatencyPoint, ...]
    remark: str | None = None

    def fastest(self, phase: str) -> LatencyPoint | None:
        """The point of a phase with the most tokens a second; None if none was timed."""
        points = (point for point in self.points if point.phase == phase)
        return max(points, key=lambda point: point.tokens_per_second, default=None)


@dataclass(frozen=True)
class MatrixFacts:
    """What the numbers of one matrix look like. Those that are not finite count in no figure but their own.

    Attributes:
        layer: the layer's number; None outside the layers. matrix: its name in the layer, such as self_attn.q_proj.
        shape: its shape as it is stored, (out, in) in PyTorch's files. Of several experts it is that of one, and the
            figures are means over all of them.
        small: the share of numbers that are small. outliers: the share of outliers. largest: the largest magnitude,
            over the root mean square.
        effective_rank: exp of the entropy of the singular values. rank_share: that, over the smaller side of the shape.
            None where numbers are not finite.
        estimated: whether the rank is a randomised estimate.
        init_distance: the distance from the first weights, or from their distribution; None where neither is known.
        not_finite: how many numbers are NaN or infinite.
    """

    layer: int | None
    matrix: str
    shape: tuple[int, ...]
    small: float
    outliers: float
    largest: float
    effective_rank: float | None
    rank_share: float | None
    estimated: bool
    init_distance: float | None
    not_finite: int = 0


@dataclass(frozen=True)
class Weights:
    """The matrices' facts, and how each figure is defined: name of the figure -> a sentence.

    init: what init_distance is from: weights (the first ones, which are known) or distribution; None where it is None.
    """

    matrices: tuple[MatrixFacts, ...]
    definitions: dict[str, str]
    init: str | None = None
    remark: str | None = None


@dataclass(frozen=True)
class Heads:
    """What each query head is worth. importance: by layer, by head; None for a head that is pruned.

    method: how it is measured, in a sentence. tokens: on how many.
    """

    importance: tuple[tuple[float | None, ...], ...]
    method: str
    tokens: int


@dataclass(frozen=True)
class AttentionPattern:
    """The attention of one head over a text: weights[t][s] of query t on key s, each row summing to 1.

    chosen: why this head is shown; of all heads it is the one that looks most at the first token (first), nearest,
        farthest, at the fewest tokens (narrowest) or at the most (widest).
    """

    layer: int
    head: int
    weights: tuple[tuple[float, ...], ...]
    chosen: str


@dataclass(frozen=True)
class AttentionFacts:
    """How the heads attend on a text.

    Attributes:
        tokens: the text's first tokens, as text, which `patterns` are over. patterns: a few heads.
        read: how many tokens the figures below are means over; the first counts in none, since it sees itself alone.
        entropy: by layer, by head: mean entropy of a query's weights, in nats; None for a head that is pruned.
        distance: by layer, by head: mean distance to what is attended to, in tokens.
        first_token: by layer, by head: mean weight on the first token.
    """

    tokens: tuple[str, ...]
    patterns: tuple[AttentionPattern, ...]
    read: int
    entropy: tuple[tuple[float | None, ...], ...]
    distance: tuple[tuple[float | None, ...], ...]
    first_token: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class TokenLoss:
    """A token as text, and its loss in nats; None for the first, which nothing predicts.

    The texts of all tokens, one after the other, are the text; a token in the middle of a character has an empty one.
    """

    text: str
    loss: float | None


@dataclass(frozen=True)
class TokenLosses:
    """The losses over a text. mean: in nats a token. bits_per_byte: over the bytes of the tokens that have a loss."""

    tokens: tuple[TokenLoss, ...]
    mean: float
    bits_per_byte: float
    remark: str | None = None


@dataclass(frozen=True)
class CurvePoints:
    """A figure of a run: steps, the tokens trained on up to each of them, and values; all of one length."""

    steps: tuple[int, ...]
    tokens: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class TensorStatistics:
    """Statistics of one array of a step.

    Attributes:
        name: the array's. kind: activation, activation_gradient, parameter or gradient (of a parameter).
        layer: its layer's number; None outside the layers.
        rms: root of the mean square. largest: the largest magnitude. Both are of the finite values alone.
        zeros: the share of zeros. not_finite: how many values are NaN or infinite.
    """

    name: str
    kind: str
    layer: int | None
    rms: float
    largest: float
    zeros: float
    not_finite: int


@dataclass(frozen=True)
class StepStatistics:
    """What happens in a step of a run: its arrays in the order of computation.

    Attributes:
        step: the step whose batch is read, from 1. checkpoint: the step of the weights.
        samples: which rows of the data the batch holds, by their places in the run's order of samples.
        batch_tokens: the tokens of the batch that are trained on.
        loss: the cross-entropy, in nats a token. grad_norm: the norm of the gradient of all that is trained.
        tensors: the activations as they are made, their gradients as they are made, then parameters with theirs.
        first_not_finite: the name of the first array, in the order of computation, that holds a NaN or an infinity.
        remark: what differs from the step as it was; None if nothing does.
    """

    step: int
    checkpoint: int
    samples: tuple[int, ...]
    batch_tokens: int
    loss: float
    grad_norm: float
    tensors: tuple[TensorStatistics, ...]
    first_not_finite: str | None
    remark: str | None = None


@dataclass(frozen=True)
class Measured:
    """What a wing measures of a model; None where it was not asked for, or cannot be: then `remarks` says why."""

    latency: Latency | None = None
    heads: Heads | None = None
    attention: AttentionFacts | None = None
    token_losses: TokenLosses | None = None
    step_statistics: StepStatistics | None = None
    remarks: tuple[str, ...] = ()
