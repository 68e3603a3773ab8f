"""Takes from a Hugging Face tokenizer the plain data that encoding chats needs."""

from transformers import PreTrainedTokenizerBase

from stellarbyte.chat.encoding import ChatTokenizer
from stellarbyte.errors import UserError


def chat_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> ChatTokenizer:
    """The tokenizer's data with a Jinja chat template: the given one, or the tokenizer's own if it has one.

    Raises:
        UserError: the tokenizer has no tokenizer.json.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no tokenizer.json, without which no token can be "
            "traced to its characters: use a fast tokenizer"
        )
    return ChatTokenizer(
        name=tokenizer.name_or_path,
        tokenizer_json=backend.to_str(),
        special_tokens=dict(tokenizer.special_tokens_map),
        template=_template(tokenizer, chat_template, with_tools=False),
        tool_template=_template(tokenizer, chat_template, with_tools=True),
    )


def _template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, *, with_tools: bool) -> str | None:
    try:
        return tokenizer.get_chat_template(chat_template, [{}] if with_tools else None)
    except ValueError:
        return None
