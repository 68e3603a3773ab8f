"""Measures on a store's own entries how far its embedder's vectors can be trusted beside the words."""

import re

import numpy as np

from stellarbyte.memory.opening import Opened
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.searching import Query, search
from stellarbyte.memory.tables import Alive
from stellarbyte.memory.word_index import Trust

# The entries that are looked for, and the fewest that tell anything.
_SAMPLE, _FEWEST = 48, 16
# Of a store too small to measure.
_UNMEASURED = Trust(0.5, 0.3)
# Questions that few memories have an answer to.
_STRANGERS = (
    "What is the capital of Mongolia?",
    "Write a short poem about autumn leaves.",
    "How do I sort a list of numbers in Python?",
    "Explain the difference between mass and weight.",
    "Translate 'good evening' into Portuguese.",
    "Who painted the ceiling of the Sistine Chapel?",
    "Tell me a joke about penguins.",
    "Summarise the causes of the Thirty Years' War.",
    "Can you recommend a good book on astronomy?",
    "What's the square root of 1764?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "蒙古国的首都是哪里？",
    "写一首关于秋天落叶的诗。",
    "怎么用Python给一组数字排序？",
    "请解释质量和重量的区别。",
    "把“晚上好”翻译成葡萄牙语。",
    "西斯廷教堂的天顶画是谁画的？",
    "讲一个关于企鹅的笑话。",
    "总结三十年战争的起因。",
    "能推荐一本天文学的好书吗？",
    "一千七百六十四的平方根是多少？",
    "煎饼怎么做？",
    "天空为什么是蓝色的？",
)
# A search that finds the entry at this place or behind it counts 0.
_DEPTH = 20


def trust_in_vectors(store: Opened, embedder: Embedder, owner: str) -> Trust:
    """How far a user's vectors can be trusted beside words.

    Each of a sample of entries is looked for by a third of its words and a few of another entry. The weight is the
    fourth power of the mean reciprocal rank by vectors over that by words, because these queries are kinder to vectors
    than people's are. The cosine that wrong entries hardly reach is the highest that one had in these searches, or that
    of questions on anything. Both are kept in the store, and measured anew when it has twice or half as many entries.
    """
    entries, _ = store.tables.words.totals(owner)
    kept = store.tables.words.trust(owner)
    if kept is not None and kept[1] // 2 <= entries <= 2 * kept[1]:
        return kept[0]
    trust = _measured(store, embedder, owner) if entries >= _FEWEST else _UNMEASURED
    if not store.connection.read_only:
        with store.connection.writing():
            store.tables.words.set_trust(owner, trust, entries)
    return trust


def _measured(store: Opened, embedder: Embedder, owner: str) -> Trust:
    alive = Alive(0.0, -1.0)  # what has expired is as good as any other here
    sampled = store.tables.sampled(owner, _SAMPLE)
    random = np.random.default_rng(18)
    asked = {
        entry.id: f"{part} {_part(other.text, 6, random)}"
        for entry, other in zip(sampled, sampled[1:] + sampled[:1], strict=True)
        if (part := _part(entry.text, 3, random))
    }
    if len(asked) < _FEWEST:
        return _UNMEASURED
    vectors = embedder.embed(list(asked.values()), queries=True)
    ranks = {"words": 0.0, "vectors": 0.0}
    wrong = _of_strangers(store, embedder)
    for (number, text), vector in zip(asked.items(), vectors, strict=True):
        found = search(store.tables, store.nearest, owner, Query(text, vector), "hybrid", 4 * _DEPTH, 0.0, alive)
        places = next((one.ranks for one in found if one.entry.id == number), {})
        for part in ranks:
            place = places.get(part, _DEPTH)
            ranks[part] += 1 / place if place < _DEPTH else 0.0
        wrong = max(wrong, *(one.parts.get("cosine", 0.0) for one in found if one.entry.id != number), 0.0)
    weight = min(1.0, ranks["vectors"] / ranks["words"]) ** 4 if ranks["words"] else 1.0
    return Trust(weight, min(wrong, 0.99))


def _of_strangers(store: Opened, embedder: Embedder) -> float:
    """The highest cosine that a question on anything has with its nearest entry."""
    assert store.nearest is not None
    vectors = embedder.embed(_STRANGERS, queries=True)
    nearest = [found[0][1] for vector in vectors if (found := store.nearest.search(vector, 1))]
    return max(nearest, default=0.0)


def _part(text: str, share: int, random: np.random.Generator) -> str:
    """A `share`th of a text's words in their order, at least two; of Chinese a part in one piece. Empty: too short."""
    words = text.split()
    if len(words) >= 4:
        kept = sorted(random.choice(len(words), max(2, len(words) // share), replace=False))
        return " ".join(words[place] for place in kept)
    signs = re.sub(r"\s", "", text)
    length = max(3, len(signs) // share)
    if len(signs) < 2 * length:
        return ""
    first = int(random.integers(0, len(signs) - length))
    return signs[first : first + length]
