"""Makes the vectors of entries that have none, and all of them anew for another embedder."""

import json
from collections.abc import Callable

from stellarbyte.memory.opening import Opened, told_embedder
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.vector_table import Reached

# Texts that are embedded at once.
_BATCH = 256


class MissingVectors:
    """Makes the vectors of a user's entries that were written where there was no embedder."""

    def __init__(self, store: Opened, embedder: Embedder, owner: str) -> None:
        self._store, self._embedder, self._owner = store, embedder, owner
        self._since: Reached | None = None

    def make(self) -> None:
        """Makes those that are missing now; after the first time it looks only at what was written since."""
        reached = self._store.tables.vectors.reached(self._owner)
        if reached == self._since:
            return
        since = self._since if self._since and self._since.epoch == reached.epoch else None
        if since is not None or not self._store.tables.vectors.is_complete(self._owner):
            embed_missing(self._store, self._embedder, self._owner, since)
        self._since = reached


def embed_missing(
    store: Opened,
    embedder: Embedder,
    owner: str,
    since: Reached | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Makes the vectors of a user's entries that have none.

    since: when all of them had one; None: they never had.
    on_batch: is told how many were made, after each batch; None: nobody is.
    """
    assert store.nearest is not None
    after = 0
    while not store.connection.read_only:
        missing = store.tables.vectors.missing(owner, after, _BATCH, since)
        if not missing:
            return
        vectors = embedder.embed([text for _, text in missing])
        columns = [store.nearest.to_column(vector) for vector in vectors]
        with store.connection.writing():
            # One may be deleted or changed by now.
            there = dict(store.tables.vectors.missing(owner, after, 2 * _BATCH, since))
            found = zip(missing, columns, strict=True)
            store.tables.vectors.write(
                owner, [(number, column) for (number, text), column in found if there.get(number) == text]
            )
        after = missing[-1][0]
        if on_batch is not None:
            on_batch(len(missing))


def forget_vectors(store: Opened, embedder: Embedder) -> None:
    """Deletes all vectors, and notes the embedder that is to make the next ones."""
    with store.connection.writing():
        store.tables.vectors.clear()
        store.tables.set_meta("embedder", json.dumps(told_embedder(embedder)))
    store.connection.scrub()
