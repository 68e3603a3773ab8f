"""Turns a stream of tokens into text as it comes."""

import codecs

from stellarbyte_jax.data.tokenizer import Tokenizer


class StreamDecoder:
    """Turns tokens into text one by one, holding back bytes until their character is complete.

    continues: whether the tokens go on from others, as an answer does from its prompt; see `Tokenizer.decode_bytes`.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._tokenizer, self._continues = tokenizer, continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; it may be empty."""
        content = self._tokenizer.decode_bytes((token_id,), continues=True)
        if content and not self._continues:
            content = self._tokenizer.decode_bytes((token_id,))
            self._continues = True
        return self._decoder.decode(content)

    def finish(self) -> str:
        """U+FFFD if the last character is incomplete, otherwise nothing."""
        return self._decoder.decode(b"", final=True)
