"""A tokenizer whose special tokens go by private names, so that text, whatever it says, never becomes one."""

import json
import re

import tokenizers

from stellarbyte.errors import UserError
from stellarbyte_jax.data.tokenizer import Tokenizer

# Unicode's last private plane, of which no text may have a character: the names are its first ones.
PRIVATE = re.compile("[\U00100000-\U0010ffff]")
_FIRST_NAME = 0x100000


def with_private_names(tokenizer: Tokenizer) -> tuple[dict[str, str], tokenizers.Tokenizer]:
    """The special tokens' private names, a character each, and a copy of the tokenizer that knows only these.

    The copy puts no tokens around a text.

    Raises:
        UserError: a special token is part of the vocabulary in a way that we do not know.
    """
    content = json.loads(tokenizer.files["tokenizer.json"])
    content |= {"post_processor": None, "truncation": None, "padding": None}
    names: dict[str, str] = {}
    ids: dict[str, int] = {}
    for token in content["added_tokens"]:
        if token["special"]:
            names[token["content"]] = token_name = chr(_FIRST_NAME + len(names))
            ids[token_name] = token["id"]
            token["content"] = token_name
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    renamed = tokenizers.Tokenizer.from_str(json.dumps(content))
    for token, token_name in names.items():
        if renamed.token_to_id(token_name) != ids[token_name]:
            raise UserError(f"the special token {token} of the tokenizer {tokenizer.name} cannot be told from text")
    return names, renamed
