"""The characters that no conversation may hold, whether somebody says them or a template writes them."""

from typing import Any

from stellarbyte.chat.special_names import PRIVATE
from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError


def check_written(text: str) -> None:
    """Holds what a template writes to the rule for what is said, because its literals may break it as well.

    Raises:
        UserError: the text holds such a character.
    """
    try:
        check_characters(text, "what the chat template writes")
    except RecordError as error:
        raise UserError(str(error)) from None


def check_characters(value: Any, where: str) -> None:
    """Refuses lone surrogates, and private-use characters that we need ourselves, at any depth of a value.

    Raises:
        RecordError: the value, which an error names as `where`, holds one.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RecordError(
                f"{where} holds the lone surrogate U+{ord(value[error.start]):04X}, which is no character"
            ) from None
        private = PRIVATE.search(value)
        if private:
            raise RecordError(
                f"{where} holds the private-use character U+{ord(private[0]):X}, of a range that we need "
                "ourselves: take it out"
            )
    elif isinstance(value, dict):
        for pair in value.items():
            for item in pair:
                check_characters(item, where)
    elif isinstance(value, list | tuple):
        for item in value:
            check_characters(item, where)
