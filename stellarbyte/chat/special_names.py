"""Makes a tokenizer whose special tokens have private names, so that no text can ever become one."""

import json
import re

import tokenizers

from stellarbyte.errors import UserError
from stellarbyte.tokenizer_file import works

# Unicode's last private plane. No text may have a character of it; its first characters are the names.
PRIVATE = re.compile("[\U00100000-\U0010ffff]")
_FIRST_NAME = 0x100000


def with_private_names(tokenizer_json: str, shown: str) -> tuple[dict[str, str], tokenizers.Tokenizer]:
    """(special token -> its private name, one character; a tokenizer that knows only these names).

    The tokenizer puts no tokens around a text, and its offsets include white space, which some tokenizers trim. `shown`
    is the tokenizer's name in an error.

    Raises:
        UserError: a special token is part of the vocabulary in a way that we do not know.
    """
    content = json.loads(tokenizer_json)
    content |= {"post_processor": None, "truncation": None, "padding": None}
    names: dict[str, str] = {}
    ids: dict[str, int] = {}
    for token in content["added_tokens"]:
        if token["special"]:
            names[token["content"]] = name = chr(_FIRST_NAME + len(names))
            ids[name] = token["id"]
            token["content"] = name
    model = content["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: token and score
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    with works(shown):
        renamed = tokenizers.Tokenizer.from_str(json.dumps(content))
    for token, name in names.items():
        if renamed.token_to_id(name) != ids[name]:
            raise UserError(f"the special token {token} of the tokenizer {shown} cannot be told from text")
    return names, renamed
