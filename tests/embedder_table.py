"""How well embedders of a memory find texts: `python -m tests.embedder_table MODEL [EMBEDDER …]`.

The texts are the standard library's docstrings: a summary must find the rest of its docstring among all others.
For a model it shows its embeddings and its middle layer alone beside what the memory makes of both.
"""

import argparse
import ast
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np

from stellarbyte.memory import Memory, MemorySettings
from stellarbyte.memory.embedders import ModelEmbedder, open_embedder
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.reader import Reader
from stellarbyte.memory.whitening import fit_whitening
from stellarbyte.places import place


def docstrings(most: int) -> list[tuple[str, str]]:
    """(summary, rest) of docstrings, no summary twice."""
    found: dict[str, str] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                summary, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                if 25 < len(summary) < 200 and len(rest) > 80:
                    found[" ".join(summary.split())] = rest[:500]
    return list(found.items())[:most]


class Part(ModelEmbedder):
    """Of a model's states the embeddings or the middle layer alone; tokens count alike."""

    def __init__(self, reader: Reader, layer: int) -> None:
        super().__init__(reader)
        self._layer = layer

    def embed(self, texts, *, queries=False):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """As the states of layer `layer` are, float32 [texts, size]."""
        import torch

        reader = self._reader
        vectors = []
        for text in texts:
            ids = torch.tensor([[*reader.begin, *reader.tokens(text)[: reader.window - 1]]])
            with torch.no_grad():
                output = reader._model(ids, output_hidden_states=True)  # type: ignore[attr-defined]
            vectors.append(output.hidden_states[self._layer][0, len(reader.begin) :].mean(0).numpy())
        return np.stack(vectors)


def recalls(queries: np.ndarray, texts: np.ndarray, *, whitened: bool) -> list[float]:
    """The share of queries whose own text is the best, or among the best 5, by the cosine of whitened vectors."""
    whitening = fit_whitening(texts, len(texts), directions=whitened)
    scores = whitening(queries) @ whitening(texts).T
    ranks = (scores >= np.diag(scores)[:, None]).sum(1)
    return [float((ranks <= most).mean()) for most in (1, 5)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a run, or a model's folder")
    parser.add_argument("others", nargs="*", help="further embedders' folders")
    parser.add_argument("--most", type=int, default=1000)
    options = parser.parse_args()
    pairs = docstrings(options.most)
    print(
        f"{len(pairs)} docstrings; the summary finds its rest\n\n"
        "| | best | among 5 | ms a text |\n| --- | --- | --- | --- |"
    )
    own = open_embedder(place(options.model), "cpu")
    rows: list[tuple[str, Embedder]] = [(own.name, own)]
    if isinstance(own, ModelEmbedder) and hasattr(own._reader, "_model"):
        rows += [
            ("its embeddings alone", Part(own._reader, 0)),
            ("its middle layer alone", Part(own._reader, own._reader.layer)),
        ]
    rows += [(name, open_embedder(place(name), "cpu")) for name in options.others]
    for name, embedder in rows:
        started = time.perf_counter()
        texts = embedder.embed([rest for _, rest in pairs])
        queries = embedder.embed([summary for summary, _ in pairs], queries=True)
        each = (time.perf_counter() - started) / (2 * len(pairs))
        best, among = recalls(queries, texts, whitened=embedder.whitened)
        print(f"| {name} | {best:.1%} | {among:.1%} | {each * 1e3:.1f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "memory.db"
        with Memory(store, settings=MemorySettings(duplicate=1.0)) as memory:
            for number, (_, rest) in enumerate(pairs):
                memory.add(rest, source=str(number), kind="passage")
        with Memory(store, embedder=own) as memory:
            for how in ("words", "vectors", "hybrid"):
                found = [
                    [one.entry.source for one in memory.search(summary, 5, how=how, floor=0.0)] for summary, _ in pairs
                ]
                best = np.mean([sources[:1] == [str(number)] for number, sources in enumerate(found)])
                among = np.mean([str(number) in sources for number, sources in enumerate(found)])
                print(f"| a memory with {own.name}, {how} | {best:.1%} | {among:.1%} | |", flush=True)


if __name__ == "__main__":
    main()
