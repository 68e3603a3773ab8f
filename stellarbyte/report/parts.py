"""The groups of parts that a report draws in one colour each."""

from collections.abc import Iterable, Mapping

from stellarbyte.layer_ranges import layer_ranges

# A group's parts of parameters.PARTS, and the number of its colour.
_GROUPS: dict[str, tuple[tuple[str, ...], int]] = {
    "embedding": (("embedding", "positions"), 0),
    "attention": (("attention_q", "attention_k", "attention_v", "attention_qkv", "attention_o"), 1),
    "feed_forward": (("feed_forward",), 2),
    "experts": (("experts",), 4),
    "shared_experts": (("shared_experts",), 7),
    "router": (("router",), 8),
    "norms": (("norms", "layer_scale"), 6),
    "adapters": (("adapters",), 3),
    "head": (("head",), 5),
    "other": (("other",), 9),
}
_GROUP_OF = {part: group for group, (parts, _) in _GROUPS.items() for part in parts}
# The parts of flops.PARTS that have colours of their own.
_OF_WORK = {"attention_projections": 1, "attention_scores": 3}


def group_of(part: str) -> str:
    """The group of a part of parameters.PARTS."""
    return _GROUP_OF.get(part, "other")


def grouped(parts: Mapping[str, int]) -> dict[str, int]:
    """Group -> its number, of the groups that there are, in a fixed order."""
    sums = dict.fromkeys(_GROUPS, 0)
    for part, number in parts.items():
        sums[group_of(part)] += number
    return {group: number for group, number in sums.items() if number}


def colour_of(name: str) -> int:
    """The number of the colour of a group, or of a part of flops.PARTS."""
    return _OF_WORK[name] if name in _OF_WORK else _GROUPS.get(name, _GROUPS["other"])[1]


def in_words(numbers: Iterable[int]) -> str:
    """Ascending numbers with runs of them joined: 0-3, 7."""
    return layer_ranges(numbers).replace("-", "\N{EN DASH}").replace(",", ", ")
