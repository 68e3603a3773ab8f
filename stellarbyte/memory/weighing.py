"""Measures on a store's own entries how far its embedder's vectors can be trusted beside the words."""

import re

import numpy as np

from stellarbyte.memory.opening import Opened
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.scoring import ALONE
from stellarbyte.memory.word_index import Trust

# The entries that are looked for, and the fewest that tell anything.
_SAMPLE, _FEWEST = 64, 16
# A search that does not find the entry among so many counts 0.
_DEPTH = 20
# The least standard deviation of cosines: a few alike must not make the next one look like a find.
_LEAST_SPREAD = 0.02
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
    "How many players are on a volleyball team?",
    "Plan a three-day trip to Marrakesh.",
    "Write an email that asks a landlord to mend the heating.",
    "Which planets have rings?",
    "Rewrite this paragraph so that it sounds friendlier.",
    "Is a tomato a fruit or a vegetable?",
    "Compare electric cars with hybrid ones.",
    "What does the word serendipity mean?",
    "How long does it take to boil an egg?",
    "Give me ten names for a coffee shop.",
    "When was the printing press invented?",
    "Teach me the rules of backgammon.",
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
    "排球队有几名队员？",
    "帮我安排三天的西安旅行。",
    "写一封邮件，请房东修暖气。",
    "哪些行星有光环？",
    "把这段话改得更友好一些。",
    "西红柿是水果还是蔬菜？",
    "比较一下电动车和混合动力车。",
    "“缘分”这个词是什么意思？",
    "煮一个鸡蛋要多长时间？",
    "给咖啡店取十个名字。",
    "印刷术是什么时候发明的？",
    "教我五子棋的规则。",
)


def trust_in_vectors(store: Opened, embedder: Embedder, owner: str) -> Trust:
    """How far a user's vectors can be trusted; measured anew when there are twice or half as many entries."""
    entries, _, kept, weighed = store.tables.words.measured(owner)
    if not entries:
        return Trust()
    if kept is not None and weighed // 2 <= entries <= 2 * weighed:
        return kept
    trust = _measured(store, embedder, owner)
    if not store.connection.read_only:
        with store.connection.writing():
            store.tables.words.set_trust(owner, trust, entries)
    return trust


def _measured(store: Opened, embedder: Embedder, owner: str) -> Trust:
    """Entries are looked for by half of their words, as a search by vectors alone would; see Trust."""
    assert store.nearest is not None
    random = np.random.default_rng(18)
    asked = {
        entry.id: part for entry in store.tables.sampled(owner, _SAMPLE) if (part := _half(entry.text, random)) != ""
    }
    # At once, as a large store is read for it.
    searches = store.nearest.search(embedder.embed([*_STRANGERS, *asked.values()], queries=True), _DEPTH)
    cosines = [found[0][1] for found in searches[: len(_STRANGERS)] if found]
    if not cosines:
        return Trust()
    usual, spread = min(float(np.mean(cosines)), 0.9), max(float(np.std(cosines)), _LEAST_SPREAD)
    if len(asked) < _FEWEST:
        return Trust(usual=usual, spread=spread)
    enough = usual + ALONE * spread
    places = [
        next(
            (1 / place for place, (found, cosine) in enumerate(search, 1) if found == number and cosine >= enough), 0.0
        )
        for number, search in zip(asked, searches[len(_STRANGERS) :], strict=True)
    ]
    return Trust(float(np.mean(places)), usual, spread)


def _half(text: str, random: np.random.Generator) -> str:
    """Half of a text's words in their order, at least two; of Chinese a part in one piece. Empty: it is too short."""
    words = text.split()
    if len(words) >= 4:
        kept = sorted(random.choice(len(words), len(words) // 2, replace=False))
        return " ".join(words[place] for place in kept)
    signs = re.sub(r"\s", "", text)
    length = max(3, len(signs) // 2)
    if len(signs) < 2 * length:
        return ""
    first = int(random.integers(0, len(signs) - length))
    return signs[first : first + length]
