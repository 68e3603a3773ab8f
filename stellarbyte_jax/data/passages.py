"""Chooses validation passages inside documents, if there are too few documents to set some apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from stellarbyte.records.bad_records import BadRecords
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.documents import RecordText, pieces, read_documents

# Fewer documents than this are too few.
FEW_DOCUMENTS = 20

# A passage has about a hundredth of the text, within these bounds in characters.
_SHORTEST, _LONGEST = 256, 4096


@dataclass(frozen=True)
class PassageSplit:
    """How documents are split by passages.

    chars: the largest number of characters in a passage.
    below: passages whose _hash is less than this are for validation.
    """

    chars: int
    below: int

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """(part, whether it is for validation) for each part of a piece: a run of passages that are in one split."""
        part, part_in_validation = "", False
        for passage in pieces([text], self.chars):
            in_validation = _hash(passage) < self.below
            if part and in_validation != part_in_validation:
                yield part, part_in_validation
                part = ""
            part, part_in_validation = part + passage, in_validation
        if part:
            yield part, part_in_validation


def choose_passages(data: DataConfig, files: Sequence[tuple[int, Path]]) -> PassageSplit | None:
    """How to split the sources by passages; None if they are to be split by documents.

    They are if there are enough documents, or if there is so little text that a passage would be most of a document.
    Otherwise the passages with the smallest hashes are for validation: the share that data.validation_fraction names,
    but at least one. Equal passages go to the same split, wherever they stand. At most FEW_DOCUMENTS documents are
    read.
    """
    if data.kind == "chat" or data.validation_fraction == 0:
        return None
    record_texts = [RecordText(source) for source in data.sources]
    count = chars = 0
    # `prepare` reads the documents again later, and reports bad records then; here they are skipped.
    for source, path in files:
        for document in read_documents(path, record_texts[source], BadRecords("skip")):
            count += document.begins
            chars += len(document.text)
            if count >= FEW_DOCUMENTS:
                return None
    passage_chars = min(max(chars // 100, _SHORTEST), _LONGEST)
    if count == 0 or chars < 2 * passage_chars * count:
        return None
    hashes = sorted(
        _hash(passage)
        for source, path in files
        for document in read_documents(path, record_texts[source], BadRecords("skip"))
        for passage in pieces([document.text], passage_chars)
    )
    last = hashes[max(1, round(len(hashes) * data.validation_fraction)) - 1]
    # If all or nearly all passages are equal, nothing would be left to train on.
    return PassageSplit(passage_chars, last + 1) if last < hashes[-1] else None


def _hash(passage: str) -> int:
    return text_hash(passage.encode()) >> 2  # so that the manifest's integers fit into 64 bits with a sign


def text_hash(text: bytes) -> int:
    """A number of 64 bits that depends on the text alone."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
