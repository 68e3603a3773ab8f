"""Memory: the one door to a store of texts."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.memory.audit import Audit, audit
from stellarbyte.memory.checks import checked_text, checked_time, stated
from stellarbyte.memory.embedding import MissingVectors, embed_missing, forget_vectors
from stellarbyte.memory.entries import Decision, Entry, Found, Kind
from stellarbyte.memory.gate.frames import frames_of
from stellarbyte.memory.gate.gate import Gate
from stellarbyte.memory.gate.rule import Candidate, Verdict
from stellarbyte.memory.gate.sentences import sentences_of
from stellarbyte.memory.judging import judged
from stellarbyte.memory.opening import open_store, with_embedder
from stellarbyte.memory.protocols import Embedder, Judge
from stellarbyte.memory.removal import alive_by, purge, remove
from stellarbyte.memory.searching import How, Query, check_search, search
from stellarbyte.memory.settings import MemorySettings
from stellarbyte.memory.transfer import Loaded, export, load
from stellarbyte.memory.weighing import trust_in_vectors
from stellarbyte.memory.word_index import Trust

Entries = list[Entry]


class Memory:
    """A store of texts of one user, in an SQLite file or a PostgreSQL database.

    Processes and threads may share a store. Each method is a transaction of its own: when it returns, what it did is on
    disk; if it raises, nothing has happened.

    Args:
        place: a file, or a URL such as postgresql://host/database.
        embedder: makes the vectors. None: search is by words alone.
        judge: tells how surprising a turn is. None: the gate does without that rule.
        user: the namespace that is read and written; no method but `forget` reaches another one.
        settings: replaces the store's settings. None: they stay; a new store gets the defaults.
        create: whether a store that is not there is made.

    Raises:
        UserError: the store cannot be opened, or its vectors are of another embedder.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        embedder: Embedder | None = None,
        judge: Judge | None = None,
        user: str = "",
        settings: MemorySettings | None = None,
        create: bool = True,
    ) -> None:
        checked_text(user, "user")
        self.user, self._embedder, self._judge = user, embedder, judge
        self._lock, self._store = threading.RLock(), open_store(place, embedder, user, settings, create)
        self._tables, self._made = self._store.tables, dict[str, np.ndarray]()
        self._missing = None if embedder is None else MissingVectors(self._store, embedder, user)

    @property
    def name(self) -> str:
        """The store, as sentences name it."""
        return self._store.connection.name

    @property
    def by_words_alone(self) -> bool:
        """Whether there is no embedder, so that search goes by words alone."""
        return self._store.nearest is None

    @property
    def settings(self) -> MemorySettings:
        """The store's settings; setting them is for all its processes."""
        return self._store.settings()

    @settings.setter
    def settings(self, settings: MemorySettings) -> None:
        with self._store.connection.writing():
            self._tables.set_meta("settings", settings.to_json())

    def add(
        self,
        text: str,
        *,
        source: str = "",
        kind: Kind = "note",
        recalled: Sequence[Entry] = (),
        expires: float | None = None,
    ) -> Decision:
        """Remembers a text if the gate lets it in, and logs what the gate has decided.

        source: where it comes from.
        kind: "note" if the user has asked for it, "turn" for a sentence of a conversation, "passage" for a piece of a
            document; each kind has rules of its own.
        recalled: the entries that the prompt of this turn held, which must not come back as new ones.
        expires: the time, in seconds since 1970, from which on it is deleted; None: never, but for retention_days.

        Raises:
            UserError: the text is empty or too long, or the store cannot be written.
        """
        text, source, expires = stated(text), checked_text(source, "source"), checked_time(expires, "expires")
        vector = self._made.pop(text, None)
        if vector is None and self._embedder is not None:
            vector = self._embedder.embed([text])[0]
        candidate = Candidate(text, source, kind, tuple(recalled), expires, vector)
        candidate = judged(candidate, self._judge, self._verdict, lambda *asked: self.search(*asked, floor=0.0))
        with self._lock, self._store.connection.writing():
            purged = purge(self._tables, self.settings, alive_by(self.settings))
            decision = self._gate().decide(candidate)
        if purged or decision.outcome == "replaced":
            self._store.connection.scrub()
        return decision

    def prepare(self, texts: Sequence[str]) -> None:
        """Makes the vectors of texts that `add` gets next, at once, which takes less time than one after the other."""
        if self._embedder is not None and texts:
            wanted = [stated(text) for text in texts]
            self._made = dict(zip(wanted, self._embedder.embed(wanted), strict=True))

    def add_turn(
        self, turn: str, *, source: str = "chat", recalled: Sequence[Entry] = (), earlier: Sequence[str] = ()
    ) -> list[Decision]:
        """Takes each sentence that a user has said to the gate; "remember that …" makes a note of one.

        earlier: what the user has said before, from the oldest: "no, it's Max" corrects a sentence of that.

        Raises:
            UserError: where `add` does, but for a turn without any text.
        """
        return [
            self.add(sentence, source=source, kind="note" if asked else "turn", recalled=recalled)
            for sentence, asked in sentences_of(checked_text(turn, "turn"), earlier)
        ]

    def search(self, query: str, limit: int = 5, *, how: How = "hybrid", floor: float | None = None) -> list[Found]:
        """The entries that answer the query best, the best first.

        how: "words", "vectors", or "hybrid" for both, joined by scores; without an embedder that is "words".
        floor: the least score, from 0 to 1; None: the store's.

        Raises UserError: how is "vectors" and there is no embedder, or the store cannot be read.
        """
        check_search(query, limit, how, floor, has_embedder=self._embedder is not None)
        with self._lock:
            vector, trust = None, Trust()
            if self._embedder is not None and self._missing is not None and how != "words" and query.strip():
                self._missing.make()
                trust = trust_in_vectors(self._store, self._embedder, self.user)
                vector = self._embedder.embed([query], queries=True)[0]
            with self._store.connection.reading():
                settings = self.settings
                least = settings.floor if floor is None else floor
                asked, alive = Query(query, vector, trust), alive_by(settings)
                return search(self._tables, self._store.nearest, self.user, asked, how, limit, least, alive)

    def count_uses(self, ids: Iterable[int]) -> None:
        """Counts that entries were recalled into a prompt, where the store can be written."""
        if not self._store.connection.read_only:
            with self._store.connection.writing():
                self._tables.used(list(self._own(ids)), time.time())

    def get(self, entry_id: int) -> Entry | None:
        """The entry with this id; None: there is none, or it is another user's."""
        return self._own([entry_id]).get(entry_id)

    def update(self, entry_id: int, text: str, *, source: str | None = None) -> Entry:
        """Gives an entry another text; the old one goes into its history. Raises UserError: there is no such entry."""
        text, now = stated(text), time.time()
        vector = None if self._embedder is None else self._embedder.embed([text])[0]
        with self._lock, self._store.connection.writing():
            entry = self.get(entry_id)
            if entry is None:
                raise UserError(f"{self.name} has no entry {entry_id}: `stellarbyte memory list` shows which there are")
            source = entry.source if source is None else source
            self._tables.change_text(entry, text, source=source, now=now, reason="updated by the user")
            self._tables.set_frames(entry_id, self.user, sorted({frame.key for frame in frames_of(text)}))
            if vector is not None and self._store.nearest is not None:
                self._tables.vectors.write(self.user, [(entry_id, self._store.nearest.to_column(vector))])
            decision = Decision("updated", "updated by the user", {}, entry_id, None, now, self.user, source)
            self._tables.decisions.write(decision, self.settings.log_entries)
            return self._own([entry_id])[entry_id]

    def delete(self, ids: Iterable[int]) -> int:
        """Deletes entries, their history, vectors, words and texts in the log; returns how many there were."""
        with self._lock:
            with self._store.connection.writing():
                own = list(self._own(ids))
                settings, now = self.settings, time.time()
                for number in own:
                    remove(self._tables, number, self.user, "deleted", "deleted by the user", settings, now)
            if own:
                self._store.connection.scrub()
        return len(own)

    def forget(self, user: str | None = None) -> int:
        """Deletes all that the store has of a user, the log too; None: of this one. Returns the number of entries."""
        with self._lock:
            with self._store.connection.writing():
                count = self._tables.forget(self.user if user is None else user)
            self._store.connection.scrub()
        return count

    def history(self, entry_id: int) -> list[dict[str, Any]]:
        """The texts that an entry had: text, source, since, until, reason; from the oldest."""
        return self._tables.histories([entry_id])[entry_id] if self.get(entry_id) else []

    def log(self, limit: int = 100, *, outcome: str | None = None, entry: int | None = None) -> list[Decision]:
        """What the gate has decided, and what has happened to entries, the newest first."""
        return self._tables.decisions.read(self.user, limit=limit, outcome=outcome, entry=entry)

    def users(self) -> dict[str, int]:
        """The users of the store, and how many entries each has."""
        return {owner: self._tables.words.totals(owner)[0] for owner in self._tables.words.owners()}

    def export(self, path: str | Path) -> int:
        """Writes the entries and their histories to a file of JSON lines; returns how many there are."""
        return export(self._store, self.user, Path(path), alive_by(self.settings))

    def load(self, path: str | Path) -> Loaded:
        """Adds the entries of such a file, all or none. Raises UserError: a line is no entry."""
        with self._lock:
            return load(self._store, self.user, Path(path))

    def audit(self) -> Audit:
        """Runs the gate over the entries, and looks for what is left of deleted ones; nothing is changed."""
        return audit(self._store, self.user, alive_by(self.settings))

    def reembed(self, embedder: Embedder, on_batch: Callable[[int], None] | None = None) -> None:
        """Makes the vectors of all users anew by another embedder, which the store is searched by from now on.

        on_batch: is told how many were made, after each batch; None: nobody is.
        """
        with self._lock:
            forget_vectors(self._store, embedder)
            self._embedder, self._made = embedder, {}
            self._store = with_embedder(self._store, embedder, self.user)
            self._missing = MissingVectors(self._store, embedder, self.user)
            for user in self.users():
                embed_missing(self._store, embedder, user, on_batch=on_batch)

    def vacuum(self) -> int:
        """Gives the room of what was deleted back to the system; returns the store's size in bytes."""
        with self._lock:
            with self._store.connection.writing():
                purge(self._tables, self.settings, alive_by(self.settings))
                self._tables.vectors.next_epoch()
            self._store.connection.compact()
            return self._store.connection.size()

    def close(self) -> None:
        """Ends the connection to the store."""
        with suppress(UserError):
            self._store.connection.scrub()
        self._store.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._tables.words.totals(self.user)[0]

    def _verdict(self, candidate: Candidate) -> Verdict | None:
        with self._lock, self._store.connection.reading():
            return self._gate().verdict(candidate)

    def _gate(self) -> Gate:
        settings = self.settings
        return Gate(self._store, self.user, settings, alive_by(settings))

    def _own(self, ids: Iterable[int]) -> dict[int, Entry]:
        found = self._tables.entries(list(ids), alive_by(self.settings))
        return {number: entry for number, entry in found.items() if entry.user == self.user}

    def list(
        self,
        *,
        limit: int | None = None,
        after: int = 0,
        kind: Kind | None = None,
        source: str | None = None,
        newest: bool = False,
    ) -> Entries:
        """The user's entries by id.

        limit: the most entries; None: all. newest: whether the highest id comes first.
        after: the id to go on from, in the direction of the order.
        kind, source: those alone that are of this kind, or whose source begins so.
        """
        most, alive = -1 if limit is None else limit, alive_by(self.settings)
        return self._tables.listed(self.user, alive, after=after, limit=most, kind=kind, source=source, newest=newest)
