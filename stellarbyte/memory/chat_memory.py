"""The memory that the options of a chat ask for."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from stellarbyte.memory.chat_options import MOST_TOKENS, NONE
from stellarbyte.memory.embedders import ModelEmbedder, hear_libraries, open_embedder
from stellarbyte.memory.judges import ModelJudge
from stellarbyte.memory.memory import Memory
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.reader import Reader
from stellarbyte.memory.recall import Recall
from stellarbyte.places import place


@contextmanager
def recall_of(options: argparse.Namespace, reader: Callable[[], Reader]) -> Iterator[Recall | None]:
    """The memory that `add_memory_options` tells of, open inside the block; None without --memory.

    reader: gives the model that talks; it is called only if its vectors or losses are needed.

    Raises:
        UserError: an option has a bad value, or the store or the embedder cannot be used.
    """
    if options.memory is None:
        yield None
        return
    talking = cache(reader)
    judge = ModelJudge(talking()) if options.memory_write else None
    most = MOST_TOKENS if options.memory_tokens is None else options.memory_tokens
    embedder = _embedder(options, talking)
    with Memory(options.memory, embedder=embedder, judge=judge, user=options.memory_user or "") as memory:
        yield Recall(memory, options.memory_write, most, options.memory_floor)


def _embedder(options: argparse.Namespace, talking: Callable[[], Reader]) -> Embedder | None:
    if options.memory_embedder is None:
        return ModelEmbedder(talking())
    if options.memory_embedder == NONE:
        return None
    folder = place(options.memory_embedder)
    hear_libraries(folder)
    return open_embedder(folder, options.device)
