"""States the patterns of the words that no merge crosses: ours, and those that llama.cpp knows by a name.

Of a GGUF llama.cpp takes the merges, but the pattern it chooses by a name from a list of its own. documents.pieces
relies on places where each of these patterns always ends a match: change both together.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS_AND_BLANKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS: dict[str, str] = {
    # Llama 3's with two changes. A CJK run neither goes on in a Latin word ("使用Python代码") nor takes the space after
    # a comma. An English contraction must end its word, so that the literal 'text' is not cut after 't.
    "stellarbyte": "|".join(
        (
            r"(?i:'(?:s|t|re|ve|m|ll|d))(?!\p{L})",
            rf"(?:(?<!,) |[^\s\p{{L}}\p{{N}}])?[{_CJK}]+",
            rf"[^\r\n\p{{L}}\p{{N}}]?[[\p{{L}}\p{{M}}]&&[^{_CJK}]]+",  # a word, with the sign or space before it
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",  # indentation without its last space, which joins the word after it
            r"\s+",
        )
    ),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama-bpe": "|".join((_CONTRACTIONS, _WORDS, r"\p{N}{1,3}", _SIGNS_AND_BLANKS)),
    "qwen2": "|".join((_CONTRACTIONS, _WORDS, r"\p{N}", _SIGNS_AND_BLANKS)),
}
"""Name -> pattern. All names but stellarbyte are llama.cpp's; tests/tokenizer_table.py compares them."""

DEFAULT = "llama-bpe"


def pre_tokenizer(pattern: str, longest_run: int | None = None) -> "pre_tokenizers.PreTokenizer":
    """The pre-tokenizer that cuts a text by a pattern, then into bytes.

    longest_run: the most characters that each repetition in the pattern may match; without bound by default.
    """
    from tokenizers import Regex, pre_tokenizers  # --help names the patterns, and needs no library for that

    if longest_run is not None:  # the patterns have + and * as quantifiers alone
        pattern = pattern.replace("+", f"{{1,{longest_run}}}").replace("*", f"{{0,{longest_run}}}")
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
