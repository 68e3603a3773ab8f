"""What users are told about their conversations, so that nothing that a template leaves out goes unnoticed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """Counts of what users are told about the conversations that were encoded.

    unended: the assistant's turns whose end is not trained on, because the template writes none.
    thoughtless: turns whose thinking the template leaves out.
    unwritten: messages of others that the template leaves out.
    unused: keys of messages that the template does not use.
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
        """One sentence for each thing that users should know."""
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
