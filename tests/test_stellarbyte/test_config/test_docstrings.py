from dataclasses import dataclass, field

from stellarbyte.config.docstrings import field_docstrings, first_sentence


@dataclass
class Base:
    """Not a field's."""

    first: int
    """The first field,
    on two lines.
    """

    second: int = 2
    third: int = field(default=3, metadata={"help": "Theirs of the third."})
    fourth: int = 4
    """Theirs of the fourth."""

    def method(self) -> None:
        """Not a field's either."""


@dataclass
class Derived(Base):
    third: int = 33
    """Ours of the third."""

    fourth: int = field(default=44, metadata={"help": "Ours of the fourth."})
    fifth: str = r"\n"
    r"""A line end, \n."""


def test_a_field_has_the_string_below_it_or_the_help_of_its_metadata():
    assert field_docstrings(Base) == {
        "first": "The first field, on two lines.",
        "third": "Theirs of the third.",
        "fourth": "Theirs of the fourth.",
    }


def test_the_class_that_declares_a_field_last_decides():
    assert field_docstrings(Derived) == {
        "first": "The first field, on two lines.",
        "third": "Ours of the third.",
        "fourth": "Ours of the fourth.",
        "fifth": r"A line end, \n.",
    }


def test_a_class_without_source_has_none():
    made = dataclass(type("Made", (), {"__annotations__": {"x": int}, "x": 1, "__module__": "nowhere"}))
    assert field_docstrings(made) == {}


def test_the_first_sentence_ends_before_the_next_begins():
    assert first_sentence("The rank, e.g. 8.\n\nMore.") == "The rank, e.g. 8."
    assert first_sentence("Layers 0.5 and up; model.yaml too") == "Layers 0.5 and up; model.yaml too"
