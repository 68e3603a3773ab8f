"""Carries a run's tokenizer to Hugging Face's libraries and back: bos before a text, and the length to cut at."""

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

from stellarbyte.errors import UserError
from stellarbyte.files import json_text
from stellarbyte.reading import parse_json
from stellarbyte_jax.data.special_tokens import BOS_TOKEN
from stellarbyte_jax.data.tokenizer import Tokenizer

_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_MAX_LENGTH = "model_max_length"

# No JSON string contains these characters, because its quotes would be escaped.
_NO_PROCESSOR = re.compile(r'"post_processor":(\s*)null')


def for_hugging_face(files: Mapping[str, str], context_length: int) -> dict[str, str]:
    """The files of a run's tokenizer, with bos and truncation, which JAX's side does itself.

    Every document begins with bos in training, so the tokenizer puts it before a text. Chat templates write their own
    bos, and transformers adds none to their texts. Truncation cuts at the model's context. The tokenizer of a stock
    model is carried as it is, byte for byte, because stock tools know it so.

    Raises:
        UserError: the files are damaged.
    """
    tokenizer = Tokenizer(files, "of the run")
    if not tokenizer.is_ours:
        return dict(files)
    processor = json.dumps(_processor(tokenizer.bos_token_id))
    content = _NO_PROCESSOR.sub(lambda match: f'"post_processor":{match[1]}{processor}', files[_TOKENIZER], count=1)
    return {**files, _TOKENIZER: content, _SETTINGS: _with_max_length(files, context_length)}


def for_a_run(files: Mapping[str, str]) -> dict[str, str]:
    """The inverse of `for_hugging_face`, also for files that transformers' save_pretrained has written again."""
    tokenizer = Tokenizer(files, "of the export")
    if not tokenizer.is_ours:
        return dict(files)
    content = files[_TOKENIZER]
    ours = _processor(tokenizer.bos_token_id)
    if parse_json(content, _TOKENIZER).get("post_processor") == ours:
        written = f'"post_processor": {json.dumps(ours)}'
        if written in content:
            content = content.replace(written, '"post_processor": null', 1)
        else:
            backend = tokenizers.Tokenizer.from_str(content)
            backend.post_processor = None
            content = backend.to_str(pretty=True)
    return {**files, _TOKENIZER: content, _SETTINGS: _with_max_length(files, None)}


def _processor(bos_token_id: int) -> dict[str, Any]:
    """The post-processor that writes bos before a text or before two, as the tokenizers library saves it."""
    bos = {"SpecialToken": {"id": BOS_TOKEN, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, a],
        "pair": [bos, a, b],
        "special_tokens": {BOS_TOKEN: {"id": BOS_TOKEN, "ids": [bos_token_id], "tokens": [BOS_TOKEN]}},
    }


def _with_max_length(files: Mapping[str, str], context_length: int | None) -> str:
    settings = parse_json(files.get(_SETTINGS, "{}"), f"the tokenizer's {_SETTINGS}")
    if not isinstance(settings, dict):
        raise UserError(f"the tokenizer's {_SETTINGS} is not a JSON object: train the tokenizer again")
    if settings.get(_MAX_LENGTH) == context_length and _SETTINGS in files:
        return files[_SETTINGS]
    settings.pop(_MAX_LENGTH, None)
    return json_text(settings | ({} if context_length is None else {_MAX_LENGTH: context_length}))
