"""The gate: its rules one after the other, and what is written and logged by the first that decides."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from stellarbyte.memory.entries import Decision, Entry, Outcome
from stellarbyte.memory.gate.boilerplate import refuse_boilerplate
from stellarbyte.memory.gate.contradiction import replace_contradicted
from stellarbyte.memory.gate.duplicates import count_duplicates
from stellarbyte.memory.gate.frames import frames_of
from stellarbyte.memory.gate.recalled import refuse_recalled
from stellarbyte.memory.gate.rule import Candidate, Neighbour, Surroundings, Verdict
from stellarbyte.memory.gate.secrets import refuse_secrets
from stellarbyte.memory.gate.statements import refuse_no_statement, refuse_of_strangers
from stellarbyte.memory.gate.surprise import refuse_foreseen, share_foreseen
from stellarbyte.memory.opening import Opened
from stellarbyte.memory.searching import Query, search
from stellarbyte.memory.settings import MemorySettings
from stellarbyte.memory.tables import Alive
from stellarbyte.memory.words import language_of

Rule = Callable[[Candidate, Surroundings], Verdict | None]

RULES: dict[str, tuple[Rule, ...]] = {
    "note": (refuse_secrets, refuse_boilerplate, refuse_recalled, count_duplicates, replace_contradicted),
    "turn": (
        refuse_secrets,
        refuse_boilerplate,
        refuse_recalled,
        refuse_no_statement,
        refuse_of_strangers,
        count_duplicates,
        replace_contradicted,
        refuse_foreseen,
    ),
    "passage": (refuse_secrets, refuse_boilerplate, count_duplicates),
}
"""The rules for each kind of text, in their order: the first that has a verdict decides."""

_NEIGHBOURS = 8


@dataclass(frozen=True)
class Gate:
    """The gate of one user's memory; its methods are parts of a transaction that writes.

    Attributes:
        store: the store.
        owner: the user.
        settings: the store's settings at this moment.
        alive: what entries must outlive, with the present time.
    """

    store: Opened
    owner: str
    settings: MemorySettings
    alive: Alive

    def decide(self, candidate: Candidate) -> Decision:
        """Decides on a text, writes what the verdict asks for, and logs it."""
        verdict = self.verdict(candidate)
        if verdict is None:
            return self._logged(candidate, "added", Verdict("added", "it is new"), self._insert(candidate))
        if verdict.outcome == "counted":
            self.store.tables.said_again(verdict.entries[0].id, self.alive.now)
        if verdict.outcome == "replaced":
            self._replace(candidate, verdict)
        return self._logged(candidate, verdict.outcome, verdict, verdict.entries[0].id if verdict.entries else None)

    def verdict(self, candidate: Candidate, besides: int | None = None) -> Verdict | None:
        """What the first rule says that has something to say; None: the text is new. Nothing is written.

        besides: an entry that the text is not held against.
        """
        around = self._surroundings(candidate, besides)
        verdicts = (rule(candidate, around) for rule in RULES[candidate.kind])
        return next((verdict for verdict in verdicts if verdict is not None), None)

    def _surroundings(self, candidate: Candidate, besides: int | None) -> Surroundings:
        tables = self.store.tables
        # By words: each rule asks for words in common.
        found = search(
            tables, self.store.nearest, self.owner, Query(candidate.text, candidate.vector), "words", _NEIGHBOURS + 1,
            0.0, self.alive,
        )  # fmt: skip
        keys = sorted({frame.key for frame in frames_of(candidate.text)}) if candidate.kind != "passage" else []
        ids = tables.of_frames(self.owner, keys)
        entries = tables.entries(ids, self.alive)
        foreseen = share_foreseen(tables, self.owner, candidate, self.settings.surprise)
        return Surroundings(
            self.settings,
            tuple(Neighbour(one.entry, one.parts.get("cosine")) for one in found if one.entry.id != besides),
            tuple(entries[number] for number in ids if number in entries and number != besides),
            foreseen,
        )

    def _insert(self, candidate: Candidate) -> int:
        tables, now = self.store.tables, self.alive.now
        language = language_of(candidate.text)
        entry = Entry(
            0, candidate.text, candidate.source, self.owner, candidate.kind, language, now, now, None, 0, 1,
            candidate.expires,
        )  # fmt: skip
        number = tables.insert(entry, candidate.loss, candidate.judge)
        self._derive(number, candidate)
        over = tables.words.totals(self.owner)[0] - self.settings.capacity
        if over > 0:
            for evicted in [least for least in tables.least_used(self.owner, over + 1) if least != number][:over]:
                tables.delete([evicted])
                reason = f"the memory is full: {self.settings.capacity:,} entries, and this was the least used"
                self._log(Decision("evicted", reason, {}, evicted))
        return number

    def _replace(self, candidate: Candidate, verdict: Verdict) -> None:
        """The first entry gets the new text; others that it contradicts would only bring the old value back."""
        tables, now = self.store.tables, self.alive.now
        first, *others = verdict.entries
        if verdict.text is not None:  # its vector is made when a search misses it
            candidate = replace(candidate, text=verdict.text, vector=None, loss=None, judge=None)
        tables.change_text(
            first, candidate.text, source=candidate.source, now=now, reason=verdict.reason, loss=candidate.loss,
            judge=candidate.judge,
        )  # fmt: skip
        self._derive(first.id, candidate)
        for other in others:
            tables.delete([other.id])
            self._log(Decision("deleted", f"entry {first.id} says otherwise now", {}, other.id))

    def _derive(self, number: int, candidate: Candidate) -> None:
        tables, nearest = self.store.tables, self.store.nearest
        if candidate.kind != "passage":
            tables.set_frames(number, self.owner, sorted({frame.key for frame in frames_of(candidate.text)}))
        if candidate.vector is not None and nearest is not None:
            tables.vectors.write(self.owner, [(number, nearest.to_column(candidate.vector))])

    def _logged(self, candidate: Candidate, outcome: Outcome, verdict: Verdict, entry: int | None) -> Decision:
        is_kept = outcome in ("added", "replaced")  # the entry has the text then
        text = candidate.text if verdict.may_be_logged and not is_kept else None
        source = candidate.source if verdict.may_be_logged else ""
        return self._log(Decision(outcome, verdict.reason, verdict.scores, entry, text, source=source))

    def _log(self, decision: Decision) -> Decision:
        decision = replace(decision, time=self.alive.now, user=self.owner)
        self.store.tables.decisions.write(decision, self.settings.log_entries)
        return decision
