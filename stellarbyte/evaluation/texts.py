"""Reads the texts to measure on, each with the domain that it belongs to."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stellarbyte.errors import UserError, shown
from stellarbyte.records.bad_records import BadRecords, RecordError, check_text, kind_of, names_of
from stellarbyte.records.formats import TEXT_FORMATS, file_format, read_records
from stellarbyte.records.sources import source_files

# A name before a path: letters, digits and what file names have between them.
_NAMED = re.compile(r"([\w.+-]+)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Text:
    """A document, and the name of its domain."""

    text: str
    domain: str


@dataclass(frozen=True)
class Sources:
    """What a user names.

    paths: files, folders or globs that `prepare` reads, each with its domain's name: that before `=`, or else the path.
    text_field: the field of a record that holds its text. domain_field: the field that names its domain; None for the
    path's name. limit: the most documents of a path; None for all.
    """

    paths: Sequence[tuple[str, str]]
    text_field: str = "text"
    domain_field: str | None = None
    limit: int | None = None

    @classmethod
    def of(cls, words: Sequence[str], text_field: str, domain_field: str | None, limit: int | None) -> "Sources":
        """The sources of `[NAME=]TEXT` words.

        Raises:
            UserError: two of them have one name.
        """
        named: dict[str, str] = {}
        for word in words:
            found = None if Path(word).exists() else _NAMED.fullmatch(word)
            name, path = found.groups() if found else (word, word)
            if name in named:
                raise UserError(f"--data names {name} twice: give each text a name of its own, as in other={path}")
            named[name] = path
        return cls(list(named.items()), text_field, domain_field, limit)


def read_texts(sources: Sources, report: Callable[[str], None]) -> list[Text]:
    """All documents that hold text, in order.

    report: called with remarks on files that are left out, and on documents without text.

    Raises:
        UserError: a file is missing or cannot be read, a record lacks the text or its domain, or there is no text.
    """
    texts: list[Text] = []
    empty = 0
    for name, path in sources.paths:
        before = len(texts)
        for text in _texts_of(name, path, sources, report):
            if text.text:
                texts.append(text)
            else:
                empty += 1
            if len(texts) - before == sources.limit:
                break
        if len(texts) == before:
            raise UserError(f"--data {path} holds no text: name a file that has some")
    if empty:
        verbs = "s hold no text and are" if empty > 1 else " holds no text and is"
        report(f"{empty} document{verbs} left out")
    return texts


def _texts_of(name: str, path: str, sources: Sources, report: Callable[[str], None]) -> Iterator[Text]:
    files, remark = source_files(path)
    if remark is not None:
        report(remark)
    bad_records = BadRecords("fail", setting=None)
    field, domain = sources.text_field, sources.domain_field
    columns = [field] if domain is None else [field, domain]
    for file in files:
        is_text = file_format(file) in TEXT_FORMATS
        if is_text and domain is not None:
            raise UserError(f"--domain-field {domain} is for records, and {file} is plain text: leave one of them out")
        for record, where, _ in read_records(file, bad_records, None if is_text else columns):
            try:
                text = _field(record, "text" if is_text else field, where)
                yield Text(text, name if domain is None else _field(record, domain, where))
            except RecordError as error:
                bad_records.add(str(error))


def _field(record: dict[str, object], name: str, where: str) -> str:
    if name not in record:
        raise RecordError(f"{where} lacks the field {shown(name)} (it has {names_of(record)})")
    value = record[name]
    if not isinstance(value, str):
        raise RecordError(f"{where} has {kind_of(value)} in the field {shown(name)}, not text")
    return check_text(value, where)
