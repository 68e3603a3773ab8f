"""Decodes the bytes of a file as UTF-8 text, block by block."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stellarbyte.errors import shown_path
from stellarbyte.records.bad_records import RecordError
from stellarbyte.records.compression import BLOCK_BYTES, open_file

# UTF-32 comes first, because its byte order mark begins with that of UTF-16.
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@contextmanager
def open_text(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Opens a text file as compression.open_file does.

    Raises:
        OSError, BrokenArchive: where compression.open_file raises them.
        RecordError: a byte order mark shows that the text is in another encoding.
    """
    with open_file(path) as (raw, stream):
        start = stream.peek(4)[:4]  # type: ignore[attr-defined]
        for mark, encoding in _OTHER_ENCODINGS.items():
            if start.startswith(mark):
                convert = f"iconv -f {encoding} -t UTF-8"
                raise RecordError(f"{shown_path(path)} is {encoding}, and not UTF-8: convert it with `{convert}`")
        yield raw, stream


def decoded_blocks(path: Path, stream: BinaryIO) -> Iterator[str]:
    """The text of a stream block by block, with its line ends and without a byte order mark.

    Raises:
        RecordError: it is not UTF-8, or holds a NUL, which no text does.
    """
    rest, lines, first = b"", 0, True
    while True:
        block = stream.read(BLOCK_BYTES)
        data = rest + block
        if first:
            data, first = data.removeprefix(codecs.BOM_UTF8), False
        try:
            text, rest = data.decode(), b""
        except UnicodeDecodeError as error:
            cut_short = block and error.end == len(data) and error.reason == "unexpected end of data"
            if not cut_short:
                line = lines + data.count(b"\n", 0, error.start) + 1
                raise not_utf8(f"{shown_path(path)}:{line}", error) from None
            text, rest = data[: error.start].decode(), data[error.start :]
        if "\0" in text:
            line = lines + text.count("\n", 0, text.index("\0")) + 1
            raise RecordError(
                f"{shown_path(path)}:{line} holds a NUL character: it is binary or UTF-16, not UTF-8 text"
            )
        lines += text.count("\n")
        if text:
            yield text
        if not block:
            return


def not_utf8(where: str, error: UnicodeDecodeError) -> RecordError:
    """The error for bytes at `where` that are not UTF-8."""
    return RecordError(f"{where} is not valid UTF-8 (byte 0x{error.object[error.start]:02x}, {error.reason})")
