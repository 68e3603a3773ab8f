"""PDF as sections: the text of each page, by pypdf."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stellarbyte.errors import shown_path
from stellarbyte.memory.ingest.passages import Block, Section, lines_of, paragraphs
from stellarbyte.records.bad_records import RecordError

_MOST_PAGES = 10_000
_MOST_CHARACTERS = 1_000_000  # of a page


def pdf_sections(path: Path) -> list[Section]:
    """A section for each page that has text.

    Raises:
        RecordError: the file is no PDF, is damaged, wants a password, has too many pages, or holds no text.
        ModuleNotFoundError: pypdf is not installed.
    """
    from pypdf import PdfReader

    where = shown_path(path)
    sections: list[Section] = []
    with _quiet(), path.open("rb") as file:
        try:
            reader = PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise RecordError(f"{where} wants a password: save it without one")
            count = len(reader.pages)
            if count > _MOST_PAGES:
                raise RecordError(f"{where} has {count} pages, and {_MOST_PAGES} are the most: split it")
            for number in range(count):
                text = reader.pages[number].extract_text()[:_MOST_CHARACTERS]
                blocks = _blocks(text)
                if blocks:
                    sections.append(Section(blocks, page=number + 1))
        except RecordError:
            raise
        except Exception as error:  # noqa: BLE001 - pypdf raises whatever a damaged file makes of its assumptions
            why = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise RecordError(f"{where} cannot be read as a PDF ({why})") from None
    if not sections:
        raise RecordError(f"{where} holds no text: its pages may be pictures, which have to be recognised first")
    return sections


def _blocks(text: str) -> tuple[Block, ...]:
    """A page's paragraphs. Broken ligatures and surrogates of odd fonts must not end the reading of a whole file."""
    clean = text.encode("utf-8", "replace").decode().replace("\0", "")
    return paragraphs(enumerate(lines_of(clean), 1))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pypdf from reporting each oddity that it has mended."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
