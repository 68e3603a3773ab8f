"""`python -m tests.memory_trial`: what a memory keeps of a long conversation, and what it finds and never finds again.

500 facts in English and Chinese, half of them said twice, among 5,000 turns that nobody should remember; then 100 facts
get another value and 100 are deleted. Each turn goes through the gate as `stellarbyte chat --memory-write` sends it,
with what a search for it has recalled. No figure needs a model: without --embedder search goes by words alone.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.memory import Entry, Memory
from stellarbyte.memory.gate.sentences import sentences_of
from stellarbyte.memory.protocols import Embedder, Judge
from stellarbyte.memory.searching import How
from tests.memory_facts import Fact, facts
from tests.memory_talk import distractors, is_named, unrelated
from tests.packaged_embedders import packaged

FACTS, TURNS, AGAIN, UPDATES, DELETIONS, QUESTIONS = 500, 5_000, 250, 100, 100, 500


def main() -> None:
    """Runs the trial and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--embedder", metavar="FOLDER", help="for search by vectors and by both: a folder, or use or wordllama"
    )
    parser.add_argument("--judge", metavar="FOLDER", help="a model, for the rule of surprise")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts")
    parser.add_argument("--show", action="store_true", help="print what went wrong too")
    options = parser.parse_args()
    embedder: Embedder | None = None
    judge: Judge | None = None
    if options.embedder in ("use", "wordllama"):
        embedder = packaged(options.embedder, Path(tempfile.mkdtemp()))
    elif options.embedder:
        from stellarbyte.memory.embedders import open_embedder

        embedder = open_embedder(Path(options.embedder))
    if options.judge:
        from stellarbyte.memory.embedders import open_reader
        from stellarbyte.memory.judges import ModelJudge

        judge = ModelJudge(open_reader(Path(options.judge)))
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder) / "trial.db", embedder, judge, options.seed, options.scale)
        trial.talk()
        found = trial.figures()
    if options.show:
        for name, what in trial.wrong.items():
            print(name, *what[:40], sep="\n    ")
    print(json.dumps(found, indent=2, ensure_ascii=False))


class Cached:
    """An embedder that makes the vectors of known texts beforehand, many at once, and each once."""

    def __init__(self, embedder: Embedder, texts: list[str], queries: list[str]) -> None:
        self.name, self.hash, self.size, self._embedder = embedder.name, embedder.hash, embedder.size, embedder
        self.whitened = embedder.whitened
        self._known: dict[tuple[str, bool], np.ndarray] = {}
        self.embed(sorted(set(texts), key=len))
        self.embed(sorted(set(queries), key=len), queries=True)

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """The vectors, as the embedder makes them."""
        new = [text for text in texts if (text, queries) not in self._known]
        for first in range(0, len(new), 64):
            some = new[first : first + 64]
            vectors = self._embedder.embed(some, queries=queries)
            self._known.update(zip([(text, queries) for text in some], vectors, strict=True))
        return np.stack([self._known[text, queries] for text in texts])


class Trial:
    """One conversation and what is asked after it."""

    def __init__(
        self, path: Path, embedder: Embedder | None, judge: Judge | None, seed: int, scale: float = 1.0
    ) -> None:
        self.seed, self.scale, self.has_vectors = seed, scale, embedder is not None
        chosen = facts(FACTS, seed)
        random_ = random.Random(seed + 1)
        random_.shuffle(chosen)
        self.facts = chosen[: int(FACTS * scale)]
        changeable = [fact for fact in self.facts if fact.update is not None]
        self.updated = changeable[: int(UPDATES * scale)]
        rest = [fact for fact in self.facts if fact not in self.updated]
        self.deleted = rest[: int(DELETIONS * scale)]
        self.turns = self._turns()
        if embedder is not None:
            asked = [fact.question for fact in self.facts] + unrelated(int(QUESTIONS * scale), seed + 4)
            said = [sentence for turn in self.turns for sentence, _ in sentences_of(turn)]
            embedder = Cached(embedder, said, [*self.turns, *asked])
        self.memory = Memory(path, embedder=embedder, judge=judge)
        self.wrong: dict[str, list[Any]] = {}
        self.seconds: list[float] = []

    def _turns(self) -> list[str]:
        """All turns in a random order: an update after its fact, and a fact's second mention after its first."""
        random_ = random.Random(self.seed + 2)
        said = [(random_.random() * 0.6, fact.said) for fact in self.facts]
        said += [
            (random_.uniform(0.6, 0.7), fact.again) for fact in random_.sample(self.facts, int(AGAIN * self.scale))
        ]
        said += [(random_.uniform(0.8, 1), fact.update[0]) for fact in self.updated if fact.update]
        said += [(random_.random(), turn) for turn in distractors(int(TURNS * self.scale), self.seed + 3)]
        return [turn for _, turn in sorted(said)]

    def talk(self) -> None:
        """Says all turns, then deletes facts."""
        for number, turn in enumerate(self.turns):
            if number and number % 500 == 0:
                print(f"{number:,} of {len(self.turns):,} turns", file=sys.stderr, flush=True)
            recalled: list[Entry] = [one.entry for one in self.memory.search(turn)]
            begun = time.perf_counter()
            self.memory.add_turn(turn, recalled=recalled)
            self.seconds.append(time.perf_counter() - begun)
        for fact in self.deleted:
            self.memory.delete([entry.id for entry in self.memory.list() if says(entry.text, fact, fact.answer)])

    def figures(self) -> dict[str, Any]:
        """What the store holds, and what searches find."""
        kept = [fact for fact in self.facts if fact not in self.deleted]
        values = {fact: fact.update[1] if fact in self.updated and fact.update else fact.answer for fact in kept}
        entries = self.memory.list()
        holders = {fact: [entry for entry in entries if says(entry.text, fact, values[fact])] for fact in kept}
        facts_held = [entry for held in holders.values() for entry in held]
        junk = [entry.text for entry in entries if entry not in facts_held]
        doubles = [[entry.text for entry in held] for held in holders.values() if len(held) > 1]
        lost = [fact.said for fact in kept if not holders[fact]]
        result: dict[str, Any] = {
            "entries": len(entries),
            "facts kept": f"{len(kept) - len(lost)} of {len(kept)}",
            "junk": len(junk) / len(entries),
            "duplicates": sum(len(double) - 1 for double in doubles) / len(entries),
        }
        self.wrong |= {"junk": junk, "duplicates": doubles, "lost": lost}
        for how in ("hybrid", "words", "vectors") if self.has_vectors else ("words",):
            result[how] = self._searches(how, kept, values)
        all_text = "\n".join(entry.text for entry in entries)
        result["full context"] = {"recall": 1 - len(lost) / len(kept), "characters": len(all_text)}
        times = sorted(self.seconds)
        result["ms a turn"] = {"median": 1e3 * times[len(times) // 2], "p99": 1e3 * times[len(times) * 99 // 100]}
        return result

    def _searches(self, how: How, kept: list[Fact], values: dict[Fact, str]) -> dict[str, Any]:
        """What searches find of the facts that are kept, by both languages and by each, and what they should not."""
        hits = {fact: self.memory.search(fact.question, how=how) for fact in kept}
        right = {fact: [says(one.entry.text, fact, values[fact]) for one in hits[fact]] for fact in kept}
        asked = unrelated(int(QUESTIONS * self.scale), self.seed + 4)
        false = {question: found for question in asked if (found := self.memory.search(question, how=how))}
        stale = [
            fact.said
            for fact in self.updated
            for one in self.memory.search(fact.question, 20, how=how, floor=0)
            if says(one.entry.text, fact, fact.answer)
        ]
        ghosts = [
            fact.said
            for fact in self.deleted
            for one in self.memory.search(f"{fact.question} {fact.said}", 20, how=how, floor=0)
            if says(one.entry.text, fact, fact.answer)
        ]
        self.wrong[f"missed by {how}"] = [
            (fact.question, fact.said, [(round(one.score, 2), one.entry.text) for one in hits[fact][:2]])
            for fact in kept
            if not any(right[fact])
        ]
        self.wrong[f"false by {how}"] = [
            (q, round(f[0].score, 2), f[0].entry.text, f[0].parts) for q, f in false.items()
        ]
        self.wrong[f"old values by {how}"], self.wrong[f"deleted by {how}"] = stale, ghosts

        texts = [entry.text for entry in self.memory.list()]
        strange = [question for question in asked if not is_named(question, texts)]

        def shares(facts_: list[Fact], questions: list[str]) -> dict[str, float]:
            return {
                "recall@5": statistics.fmean(any(right[fact]) for fact in facts_),
                "first": statistics.fmean(right[fact][:1] == [True] for fact in facts_),
                "false insertions": statistics.fmean(question in false for question in questions),
            }

        english = [fact for fact in kept if fact.language == "en"], [one for one in asked if one.isascii()]
        chinese = [fact for fact in kept if fact.language == "zh"], [one for one in asked if not one.isascii()]
        return {
            **shares(kept, asked),
            "false insertions, topics that no fact names": statistics.fmean(question in false for question in strange),
            "English": shares(*english),
            "Chinese": shares(*chinese),
            "old values found": len(stale),
            "deleted facts found": len(ghosts),
        }


def says(text: str, fact: Fact, value: str) -> bool:
    """Whether a text holds the value of a fact and names its subject, whatever the words around."""
    return value in text and fact.key in text.lower()


if __name__ == "__main__":
    main()
