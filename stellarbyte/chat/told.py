"""What users are told of their conversations: nothing that a template leaves out is left out in silence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """What users are told of the conversations that were encoded.

    unended: assistant's turns whose end is not trained on, as the template writes none; thoughtless: turns whose
    thinking the template leaves out; unwritten: others' messages that it leaves out; unused: keys of messages that it
    does not use.
    """

    unended: int = 0
    thoughtless: int = 0
    unwritten: int = 0
    unused: frozenset[str] = frozenset()

    def __add__(self, other: "Told") -> "Told":
        return Told(
            self.unended + other.unended,
            self.thoughtless + other.thoughtless,
            self.unwritten + other.unwritten,
            self.unused | other.unused,
        )

    def sentences(self) -> list[str]:
        """One sentence for each thing that is to be told."""
        told = []
        if self.unended:
            told.append(
                f"{self.unended} trained turns have no end that is trained on, as the chat template writes none there: "
                "of these the model does not learn where to stop"
            )
        if self.thoughtless:
            told.append(f"the chat template leaves out the thinking of {self.thoughtless} turns")
        if self.unwritten:
            told.append(f"the chat template leaves out {self.unwritten} messages of users, systems or tools")
        if self.unused:
            told.append(f"the chat template does not use the messages' fields {', '.join(sorted(self.unused))}")
        return told
