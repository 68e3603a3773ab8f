"""A language model that says how much a text surprises it."""

from stellarbyte.memory.reader import Reader


class ModelJudge:
    """A language model's own loss. Of what does not fit in the window, the end of `given` and the text's begin count.

    The text may have half of the window; what is left is for `given`.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.hash = reader.hash

    def loss(self, text: str, given: str) -> float:
        """See Judge; a text without tokens surprises nobody: 0."""
        reader = self._reader
        ids = reader.tokens(text)[: max(1, reader.window // 2)]
        before = reader.tokens(f"{given}\n") if given else []
        room = reader.window - len(ids) - len(reader.begin)
        before = reader.begin + before[max(0, len(before) - room) :]
        if not before:  # the first token is given: nothing foretells it
            before, ids = ids[:1], ids[1:]
        return reader.loss(before + ids, len(before)) if ids else 0.0
