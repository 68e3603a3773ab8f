"""Finds the chat template of a run: its tokenizer's own, or one that a config or an option names."""

import hashlib

from stellarbyte.chat.encoding import ChatTokenizer
from stellarbyte.chat.template import read_template
from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.tokenizer import Tokenizer

_TEMPLATE_FILE = "chat_template.jinja"


def chat_tokenizer(tokenizer: Tokenizer, template: str | None, field: str = "data.chat_template") -> ChatTokenizer:
    """The tokenizer as the encoding of chat needs it.

    Args:
        tokenizer: the run's tokenizer.
        template: a Jinja file, or "stellarbyte"; None for the tokenizer's own.
        field: the name of `template` in errors.

    Raises:
        UserError: `chat_template` raises it.
    """
    return ChatTokenizer(
        name=tokenizer.name,
        tokenizer_json=tokenizer.files["tokenizer.json"],
        special_tokens=tokenizer.special_tokens,
        template=chat_template(tokenizer, template, field),
    )


def chat_template(tokenizer: Tokenizer, template: str | None, field: str = "data.chat_template") -> str | None:
    """The Jinja source that `template` names, or the tokenizer's own; None if there is none.

    Raises:
        UserError: the file cannot be read, or the tokenizer has several templates.
    """
    if template is not None:
        return read_template(template, field)
    if _TEMPLATE_FILE in tokenizer.files:
        return tokenizer.files[_TEMPLATE_FILE]
    own = tokenizer.settings.get("chat_template")
    if not isinstance(own, str | None):
        raise UserError(
            f"{tokenizer.name}/tokenizer_config.json has a chat_template that is a {type(own).__name__}, not one "
            f"text: set {field} to the one you want, as a Jinja file"
        )
    return own


def files_with_template(
    tokenizer: Tokenizer, data: DataConfig, sha256: str | None
) -> tuple[dict[str, str], str | None]:
    """The tokenizer's files for a run's checkpoints, and a warning if they lack the template that the run learns.

    An export of the run, and a chat with it, must use the template of the conversations that it was trained on.

    Args:
        tokenizer: the run's tokenizer.
        data: the config that names the template.
        sha256: the hash of the template with which the shards were made; None if they hold no conversations.
    """
    if sha256 is None or data.chat_template is None:
        return tokenizer.files, None
    try:
        template = read_template(data.chat_template, "data.chat_template")
    except UserError as error:
        why = str(error)
    else:
        if template is not None and hashlib.sha256(template.encode()).hexdigest() == sha256:
            return {**tokenizer.files, _TEMPLATE_FILE: template}, None
        why = f"data.chat_template {data.chat_template} is not what the token shards were made by"
    return tokenizer.files, f"{why}: exports of this run carry the tokenizer's own template"
