"""`python -m tests.mem0_trial`: mem0 on the trial of the memory, in an environment with `mem0ai` and `faiss-cpu`.

mem0 lets a language model decide what to keep. None that this project's tests can train writes the JSON that it asks
for, so here it stores what it is given (`infer=False`), which needs none. Its vectors are those of the memory's own
tests, counts of letters, and `Memory` gets the same for comparison.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.memory_talk import unrelated
from tests.memory_trial import QUESTIONS, Trial, says
from tests.test_stellarbyte.test_memory.embedders import Letters

SIZE = 256


def main() -> None:
    """Runs both on the same turns, and prints their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=0.2, help="of all counts of the trial")
    options = parser.parse_args()
    os.environ["MEM0_TELEMETRY"] = "False"
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder) / "trial.db", Letters(SIZE), None, 1, options.scale)
        trial.talk()
        print(json.dumps({"Memory": trial.figures()}, indent=2))
        print(json.dumps({"mem0": mem0_figures(trial, folder)}, indent=2))


def mem0_figures(trial: Trial, folder: str) -> dict[str, Any]:
    """What mem0 holds and finds after the same turns, updates and deletions."""
    os.environ["MEM0_DIR"] = folder
    from mem0 import Memory as Mem0

    letters = Letters(SIZE)
    store = Mem0.from_config(
        {
            "vector_store": {"provider": "faiss", "config": {"path": f"{folder}/faiss", "embedding_model_dims": SIZE}},
            "embedder": {"provider": "openai", "config": {"api_key": "none", "embedding_dims": SIZE}},
            "llm": {"provider": "openai", "config": {"api_key": "none"}},
            "history_db_path": f"{folder}/history.db",
        }
    )
    embed = lambda text, memory_action=None: letters.embed([text])[0].tolist()  # noqa: ARG005, E731
    store.embedding_model.embed = embed
    store.embedding_model.embed_batch = lambda texts, memory_action="add": [embed(text) for text in texts]  # noqa: ARG005
    seconds = []
    for turn in trial.turns:
        begun = time.perf_counter()
        store.add(turn, user_id="ann", infer=False)
        seconds.append(time.perf_counter() - begun)

    def held() -> list[dict[str, Any]]:
        return store.get_all(filters={"user_id": "ann"}, top_k=100_000)["results"]

    for fact in trial.deleted:
        for one in held():
            if says(one["memory"], fact, fact.answer):
                store.delete(one["id"])

    def found(question: str, limit: int = 5) -> list[str]:
        return [one["memory"] for one in store.search(question, filters={"user_id": "ann"}, top_k=limit)["results"]]

    kept = [fact for fact in trial.facts if fact not in trial.deleted]
    values = {fact: fact.update[1] if fact in trial.updated and fact.update else fact.answer for fact in kept}
    texts = [one["memory"] for one in held()]
    holders = {fact: sum(says(text, fact, values[fact]) for text in texts) for fact in kept}
    asked = unrelated(int(QUESTIONS * trial.scale), trial.seed + 4)
    return {
        "entries": len(texts),
        "junk": 1 - sum(holders.values()) / len(texts),
        "duplicates": sum(max(0, count - 1) for count in holders.values()) / len(texts),
        "recall@5": sum(any(says(text, fact, values[fact]) for text in found(fact.question)) for fact in kept)
        / len(kept),
        "false insertions": sum(bool(found(question)) for question in asked) / len(asked),
        "old values found": sum(
            any(says(text, fact, fact.answer) for text in found(fact.question, 20)) for fact in trial.updated
        ),
        "deleted facts found": sum(
            any(says(text, fact, fact.answer) for text in found(fact.said, 20)) for fact in trial.deleted
        ),
        "ms an add": 1e3 * sorted(seconds)[len(seconds) // 2],
    }


if __name__ == "__main__":
    main()
