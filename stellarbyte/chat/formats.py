"""The formats of chat records, by their names in configs."""

from typing import Literal

RecordFormat = Literal["auto", "messages", "prompt_completion", "alpaca", "text"]

FORMAT_FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The fields that a record of each format must have; auto takes the first format that has all of its own."""
