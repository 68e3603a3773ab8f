"""The architecture of a decoder, as a frozen dataclass that refuses contradictions when it is built."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from stellarbyte.contradictions import contradiction, special_token_mistake
from stellarbyte.errors import UserError

# The largest factor that XPos may put on a score in each compute dtype: a 256th of the largest finite value, which
# leaves room for the score itself. The numbers are written out so that checking a config imports no array library.
_LARGEST_FACTOR = {"float32": 3.4028235e38 / 256, "bfloat16": 3.3895314e38 / 256, "float16": 65504.0 / 256}

# XPos decays pair 0 the fastest: zeta_0 = 0.4 / 1.4 (Sun et al. 2022, arXiv:2212.10554).
XPOS_SMALLEST_ZETA = 0.4 / 1.4


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions stretch beyond the context of training, in Hugging Face's words and formulas.

    None leaves a value to its default.
    """

    rope_type: Literal["linear", "dynamic", "yarn", "llama3"]
    """The formula: linear divides every frequency by `factor`; dynamic (NTK) raises the base as a sequence outgrows
    max_position_embeddings; yarn stretches the slow pairs of channels alone (Peng et al. 2023, arXiv:2309.00071);
    llama3 is Llama 3.1's variant of that.
    """

    factor: float
    """How many times longer the context becomes; at least 1."""

    original_max_position_embeddings: int | None = None
    """Context length before the stretching, in tokens. llama3 needs it; for yarn the default is
    max_position_embeddings.
    """

    attention_factor: float | None = None
    """For yarn: the factor of the rotary cosines and sines, by which queries and keys grow. The default follows from
    mscale and mscale_all_dim, or is 0.1 · ln(factor) + 1.
    """

    beta_fast: float | None = None
    """For yarn: a pair of channels that turns more often than this within the original context keeps its frequency. The
    default is 32.
    """

    beta_slow: float | None = None
    """For yarn: a pair of channels that turns less often than this within the original context has its frequency
    divided by `factor`. The default is 1.
    """

    mscale: float | None = None
    """For yarn, together with mscale_all_dim: attention_factor becomes (0.1 · mscale · ln(factor) + 1) / (0.1 ·
    mscale_all_dim · ln(factor) + 1).
    """

    mscale_all_dim: float | None = None
    """For yarn, together with mscale: the scale in the divisor of that formula."""

    truncate: bool | None = None
    """For yarn: whether the bounds that follow from beta_fast and beta_slow are rounded to whole pairs of channels. The
    default is true.
    """

    low_freq_factor: float | None = None
    """For llama3: a pair of channels that turns less often than this within the original context has its frequency
    divided by `factor`.
    """

    high_freq_factor: float | None = None
    """For llama3: a pair of channels that turns more often than this within the original context keeps its frequency.
    It must be larger than low_freq_factor.
    """


@dataclass(frozen=True)
class ByteConfig:
    """Architecture of a StellarByte decoder, in Hugging Face's words.

    Raises:
        UserError: a field is out of range, or two fields contradict each other.
    """

    vocab_size: int = 32000
    """Number of tokens in the vocabulary; token ids run from 0 to vocab_size - 1."""

    hidden_size: int = 768
    """Width of the residual stream, in channels."""

    intermediate_size: int | tuple[int, ...] = 3072
    """Width of the feed-forward network, in channels: one number, or a list with one for each layer. With experts it is
    only the default of moe_intermediate_size.
    """

    num_hidden_layers: int = 12
    """Number of layers, each of attention and a feed-forward network."""

    num_attention_heads: int = 12
    """Number of query heads in each layer."""

    num_key_value_heads: int | None = None
    """Number of key and value heads in each layer; it must divide num_attention_heads, which is its default. A smaller
    number is grouped-query attention, and 1 is multi-query attention.
    """

    head_dim: int | None = None
    """Width of a head, in channels. The default is hidden_size / num_attention_heads."""

    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    """Activation of the gated feed-forward network: silu (SwiGLU), gelu (GeGLU), gelu_pytorch_tanh (GeGLU with the tanh
    approximation of GELU) or relu (ReGLU).
    """

    max_position_embeddings: int = 2048
    """Context length: the largest number of tokens in a sequence. Only rope_scaling of type dynamic lets the model be
    used beyond it.
    """

    rms_norm_eps: float = 1e-5
    """Constant that RMSNorm adds to the mean of squares before it takes the root."""

    initializer_range: float = 0.02
    """Standard deviation of freshly drawn weights. The output projections of a layer are drawn smaller, as `residual`
    requires.
    """

    tie_word_embeddings: bool = False
    """Whether the output head uses the matrix of the input embeddings."""

    position_embedding: Literal["xpos", "rope", "none"] = "xpos"
    """How attention knows positions: xpos is rotary embeddings with scores that decay with distance (Sun et al. 2022,
    arXiv:2212.10554), rope is plain rotary embeddings (Su et al. 2021, arXiv:2104.09864), and none leaves positions to
    the causal mask.
    """

    rope_theta: float = 10000.0
    """Base of the rotary frequencies, for xpos and rope. A larger base makes the slow pairs of channels turn more
    slowly, which suits long contexts.
    """

    rope_scaling: RopeScaling | None = None
    """How rotary positions stretch beyond the context of earlier training, with position_embedding rope; null for no
    stretching.
    """

    xpos_scale_base: float = 512.0
    """Scale of XPos' decay, in tokens: the larger it is, the more slowly scores decay with distance. A value too small
    for max_position_embeddings is refused.
    """

    xpos_learnable: bool = False
    """Whether training adapts XPos' decay, one number for each pair of channels of a head."""

    sliding_window: int | None = None
    """Number of positions that a token sees, itself included, as in Mistral; null lets it see all earlier ones."""

    attention_bias: bool = False
    """Whether the four projections of attention have biases."""

    qk_norm: bool = False
    """Whether queries and keys pass an RMSNorm over each head's channels, as in Qwen3."""

    residual: Literal["pre_norm", "deepnorm"] = "pre_norm"
    """How a branch f joins the residual stream x: pre_norm is x + f(norm(x)), and deepnorm is norm(alpha · x + f(x))
    with alpha = (2 · num_hidden_layers)^(1/4) (Wang et al. 2022, arXiv:2203.00555).
    """

    parallel_residual: bool = False
    """Whether attention and the feed-forward network of a layer read the same input and are added at once, instead of
    one after the other.
    """

    layer_scale_init: float | None = None
    """First value of LayerScale's gains, one trained gain for each channel of a branch (Touvron et al. 2021,
    arXiv:2103.17239); null for no LayerScale.
    """

    drop_path_rate: float = 0.0
    """Probability with which training drops a whole branch of the last layer for one sequence (DropPath, Huang et al.
    2016). The probability rises linearly with depth, from 0 in the first layer.
    """

    hidden_dropout: float = 0.0
    """Probability with which training drops a channel of the token embeddings."""

    attention_dropout: float = 0.0
    """Probability with which training drops an attention weight, after the softmax."""

    residual_dropout: float = 0.0
    """Probability with which training drops a channel of a branch before the branch joins the residual stream."""

    num_experts: int = 0
    """Number of routed experts in each layer; 0 for a dense feed-forward network."""

    num_experts_per_tok: int = 2
    """Number of routed experts that work on each token."""

    num_shared_experts: int = 0
    """Number of experts that work on every token, besides the routed ones."""

    moe_intermediate_size: int | None = None
    """Width of an expert, in channels. With experts the default is intermediate_size."""

    moe_capacity_factor: float | None = None
    """Largest number of choices that an expert serves in a row in training, as a multiple of an even share; what comes
    later in the row goes without that expert. null drops nothing.
    """

    norm_topk_prob: bool = True
    """Whether the weights of a token's chosen experts are rescaled to a sum of 1."""

    router_aux_loss_coef: float = 0.01
    """Coefficient of the load-balance loss, which keeps the experts evenly used (Fedus et al. 2021, arXiv:2101.03961);
    0 for none.
    """

    router_z_loss_coef: float = 0.001
    """Coefficient of the router's z-loss, which keeps its logits small (Zoph et al. 2022, arXiv:2202.08906); 0 for
    none.
    """

    pruned_heads: tuple[tuple[int, ...], ...] | None = None
    """Query heads that have been taken out: one ascending list of head numbers for each layer; null if none has been.
    `stellarbyte prune` sets it.
    """

    bos_token_id: int = 0
    """Id of the token that begins a document."""

    eos_token_id: int = 1
    """Id of the token that ends a document; generation stops there."""

    pad_token_id: int = 2
    """Id of the token that fills up short rows; it is never trained on."""

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        sizes = self.intermediate_size
        if not isinstance(sizes, int) and len(sizes) == self.num_hidden_layers and len(set(sizes)) == 1:
            object.__setattr__(self, "intermediate_size", sizes[0])  # so that a model is said in one way alone
        if self.moe_intermediate_size is None and self.num_experts > 0 and isinstance(self.intermediate_size, int):
            object.__setattr__(self, "moe_intermediate_size", self.intermediate_size)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.rope_scaling is not None:
            scaling = dataclasses.asdict(self.rope_scaling)
            fields["rope_scaling"] = {name: value for name, value in scaling.items() if value is not None}
        complaint = contradiction(fields) or special_token_mistake(fields)
        if complaint is not None:
            raise UserError(complaint)
        self.check_xpos_range("float32")

    def check_xpos_range(self, dtype: str) -> None:
        """Refuses XPos factors that overflow `dtype` somewhere in the context.

        A score multiplies a query's factor and a key's factor, each at most zeta_0^(-r / base) with r =
        max_position_embeddings / 2. Both reach that value in a score that the causal mask hides, but that must still
        be finite.

        Raises:
            UserError: xpos_scale_base is too small; the sentence names the smallest that fits.
        """
        if self.position_embedding != "xpos":
            return
        decay = self.max_position_embeddings * math.log(1 / XPOS_SMALLEST_ZETA)
        smallest_base = math.ceil(decay / math.log(_LARGEST_FACTOR[dtype]))
        if self.xpos_scale_base < smallest_base:
            raise UserError(
                f"xpos_scale_base {self.xpos_scale_base} lets XPos leave the range of {dtype} within "
                f"max_position_embeddings {self.max_position_embeddings}: use at least {smallest_base}"
            )

    @property
    def intermediate_sizes(self) -> tuple[int, ...]:
        """The width of each layer's feed-forward network."""
        sizes = self.intermediate_size
        return (sizes,) * self.num_hidden_layers if isinstance(sizes, int) else tuple(sizes)

    @property
    def stochastic(self) -> bool:
        """Whether training uses any kind of dropout."""
        return any((self.drop_path_rate, self.hidden_dropout, self.attention_dropout, self.residual_dropout))

    @property
    def context_length(self) -> int:
        """The number of positions that the model can be used at; dynamic scaling multiplies max_position_embeddings."""
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic":
            return int(self.max_position_embeddings * self.rope_scaling.factor)
        return self.max_position_embeddings
