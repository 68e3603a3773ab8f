"""Configs that combine the switches of the architecture, so that any two values of two switches meet in one of them.

Of these are `rows` and `grid`, which tests that take no time go over in both tiers; `few_rows` are those of them that
what takes long goes over in the short tier, and `more_rows` are further ones for the long tier.
"""

import functools
import itertools
import random
from typing import Any

from stellarbyte_jax.config import ByteConfig, RopeScaling
from test_convert.models import tiny

Row = dict[str, str]  # switch -> the name of its value
Setting = tuple[str, str]

# Switch -> value -> the fields that it sets. Beyond max_position_embeddings, where there is scaling, the test goes.
SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "position": {
        "xpos": {"position_embedding": "xpos", "xpos_scale_base": 16.0},
        "xpos_learnable": {"position_embedding": "xpos", "xpos_scale_base": 16.0, "xpos_learnable": True},
        "rope": {"position_embedding": "rope"},
        "none": {"position_embedding": "none"},
        "linear": {"position_embedding": "rope", "rope_scaling": RopeScaling("linear", 2.5)},
        "dynamic": {
            "position_embedding": "rope",
            "rope_scaling": RopeScaling("dynamic", 3.0),
            "max_position_embeddings": 10,
        },
        "yarn": {
            "position_embedding": "rope",
            "rope_scaling": RopeScaling("yarn", 4.0, original_max_position_embeddings=16, beta_fast=4.0),
        },
        "llama3": {
            "position_embedding": "rope",
            "rope_theta": 100.0,
            "rope_scaling": RopeScaling(
                "llama3", 8.0, original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0
            ),
        },
    },
    "residual": {"pre_norm": {}, "deepnorm": {"residual": "deepnorm"}},
    "parallel": {"off": {}, "on": {"parallel_residual": True}},
    "layer_scale": {"off": {}, "on": {"layer_scale_init": 0.1}},
    "qk_norm": {"off": {}, "on": {"qk_norm": True}},
    "bias": {"off": {}, "on": {"attention_bias": True}},
    "window": {"off": {}, "2": {"sliding_window": 2}, "5": {"sliding_window": 5}},
    "kv_heads": {count: {"num_key_value_heads": int(count)} for count in ("4", "2", "1")},
    "tied": {"off": {}, "on": {"tie_word_embeddings": True}},
    "act": {name: {"hidden_act": name} for name in ("silu", "gelu", "gelu_pytorch_tanh", "relu")},
    "experts": {
        "dense": {},
        "top-1": {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        "top-2 shared": {"num_experts": 5, "num_shared_experts": 2, "moe_intermediate_size": 8},
        "not normalised": {"num_experts": 4, "norm_topk_prob": False, "moe_intermediate_size": 16},
        "capacity": {"num_experts": 4, "moe_capacity_factor": 0.6, "moe_intermediate_size": 16},
    },
    "widths": {"even": {}, "uneven": {"intermediate_size": (20, 9)}},
    "pruned": {"none": {}, "group": {}, "part": {}},  # the heads depend on the groups: see `_pruned_heads`
    "drop": {
        "off": {},
        "on": {"drop_path_rate": 0.3, "hidden_dropout": 0.1, "attention_dropout": 0.2, "residual_dropout": 0.1},
    },
    # No field of the config: how the cache is filled in the test of law 2, by another program in JAX.
    "prompt": {"at once": {}, "bit by bit": {}},
}

# Values that cannot meet.
CONTRADICTIONS: set[frozenset[Setting]] = {
    frozenset({("residual", "deepnorm"), ("layer_scale", "on")}),
    frozenset({("kv_heads", "1"), ("pruned", "group")}),  # no head would be left
    frozenset({("kv_heads", "4"), ("pruned", "part")}),  # each group is one head
} | {frozenset({("experts", kind), ("widths", "uneven")}) for kind in SWITCHES["experts"] if kind != "dense"}

MORE = 22


def config_of(row: Row) -> ByteConfig:
    """The tiny model whose switches are set so."""
    fields = {k: v for switch, value in row.items() for k, v in SWITCHES[switch][value].items()}
    return tiny(**fields, pruned_heads=_pruned_heads(row))


def _pruned_heads(row: Row) -> tuple[tuple[int, ...], ...] | None:
    if row["pruned"] == "none":
        return None
    if row["pruned"] == "group":  # in one layer a whole group; with groups of one head, in the other layer two of them
        return ((1,), (0, 3)) if row["kv_heads"] == "4" else ((0, 1), ())
    return ((1,), (0, 2)) if row["kv_heads"] == "2" else ((3,), (0, 2))


@functools.cache
def rows() -> tuple[Row, ...]:
    """Settings of all switches, the same in every session; greedily, each covers as many new pairs as it can."""
    generator = random.Random(0)  # of the first seeds the one that needs the fewest rows
    uncovered, chosen = possible_pairs(), []
    while uncovered:
        start = generator.choice(sorted(map(sorted, uncovered)))
        candidates = [_completed(dict(start), uncovered, generator) for _ in range(20)]
        best = max(candidates, key=lambda row: len(uncovered & pairs(row)))
        uncovered -= pairs(best)
        chosen.append(best)
    return tuple(chosen)


@functools.cache
def few_rows() -> tuple[Row, ...]:
    """Some of `rows`, in which each value of each switch stands at least once; each brings as many as it can."""
    missing = {(switch, value): 1 for switch, values in SWITCHES.items() for value in values}
    left, chosen = list(rows()), []
    while any(missing.values()):
        best = max(left, key=lambda row: sum(missing[setting] > 0 for setting in row.items()))
        left.remove(best)
        chosen.append(best)
        missing |= {setting: max(0, missing[setting] - 1) for setting in best.items()}
    return tuple(chosen)


@functools.cache
def more_rows() -> tuple[Row, ...]:
    """`MORE` settings at random, none of them in `rows`."""
    generator = random.Random(0)
    chosen: list[Row] = []
    while len(chosen) < MORE:
        row = _completed({}, set(), generator)
        if row not in (*rows(), *chosen):
            chosen.append(row)
    return tuple(chosen)


def _completed(row: Row, uncovered: set[frozenset[Setting]], generator: random.Random) -> Row:
    for switch in generator.sample(sorted(SWITCHES), len(SWITCHES)):
        if switch in row:
            continue
        allowed = [value for value in SWITCHES[switch] if not pairs(row | {switch: value}) & CONTRADICTIONS]
        gains = [len(uncovered & pairs(row | {switch: value})) for value in allowed]
        row[switch] = generator.choice(
            [value for value, gain in zip(allowed, gains, strict=True) if gain == max(gains)]
        )
    return row


def pairs(row: Row) -> set[frozenset[Setting]]:
    """Every two settings of a row."""
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def possible_pairs() -> set[frozenset[Setting]]:
    """Every two values of two switches that can meet."""
    return {
        frozenset({(a, x), (b, y)})
        for a, b in itertools.combinations(SWITCHES, 2)
        for x, y in itertools.product(SWITCHES[a], SWITCHES[b])
    } - CONTRADICTIONS


@functools.cache
def grid() -> dict[str, ByteConfig]:
    """Test id -> config; any two switches meet in one of these."""
    return {name_of(row): config_of(row) for row in rows()}


def name_of(row: Row) -> str:
    """A test id, made of the switches that are on."""
    first = {switch: next(iter(values)) for switch, values in SWITCHES.items()}
    named = [row["position"], row["act"], f"kv{row['kv_heads']}"]
    for switch, value in row.items():
        if switch not in ("position", "act", "kv_heads") and value != first[switch]:
            named.append(switch if value == "on" else f"{switch}_{value}" if value.isdigit() else value)
    return "-".join(named).replace(" ", "_")
