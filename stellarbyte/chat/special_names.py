"""A tokenizer whose special tokens go by private names, so that text, whatever it says, never becomes one."""

import json
import re

import tokenizers

from stellarbyte.errors import UserError

# Unicode's last private plane, of which no text may have a character: the names are its first ones.
PRIVATE = re.compile("[\U00100000-\U0010ffff]")
_FIRST_NAME = 0x100000


def with_private_names(tokenizer_json: str, shown: str) -> tuple[dict[str, str], tokenizers.Tokenizer]:
    """The special tokens' private names, a character each, and a tokenizer that knows only these.

    The tokenizer puts no tokens around a text and tells the offsets of white space, which some tokenizers trim. `shown`
    is how an error calls it.

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
    renamed = tokenizers.Tokenizer.from_str(json.dumps(content))
    for token, name in names.items():
        if renamed.token_to_id(name) != ids[name]:
            raise UserError(f"the special token {token} of the tokenizer {shown} cannot be told from text")
    return names, renamed
