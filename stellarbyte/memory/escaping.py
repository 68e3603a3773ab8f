"""Makes text of unknown origin fit to be put into a prompt as data.

Nothing that it writes can close the marks, be taken for a special token or a turn's header, or stay unseen by people.
"""

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

from stellarbyte.memory.marks import BRACKETS, LINE

BREAK = "·"
"""What is put into a text that spells a special token or a turn's header, such as <·|im_end|>."""

_NEWLINES = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")

# Control characters, among them those that hide text or turn its direction; surrogates; private use, of which our
# encoder needs a part.
_UNSEEN = {"Cc", "Cf", "Cs", "Co"}
# Fillers that Unicode counts among letters, marks or symbols, though nobody sees them. Of the variation selectors the
# sixteenth stays, which makes a picture of a symbol; the others can spell out hidden text.
_FILLERS = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0x180B, 0x1810)}
_FILLERS |= {*range(0xFE00, 0xFE0F), *range(0xE0100, 0xE01F0)}

# Characters that look like the ASCII ones before them, as far as special tokens and headers have these.
_LOOK_ALIKES = {
    "<": "‹〈〈⟨❬❮˂≺ᐸ⧼«⟪《",
    ">": "›〉〉⟩❭❯˃≻ᐳ⧽»⟫》",
    "|": "∣❘⏐ǀ│┃∥‖ⵏ¦",
    "[": "⟦〚【〔❲⁅",
    "]": "⟧〛】〕❳⁆",
    "/": "⁄∕╱⧸",
    ":": "꞉∶ː׃᛬",
    "#": "♯",
    "_": "ˍ‗",
    "a": "аαɑ",
    "c": "сϲ",
    "d": "ԁ",
    "e": "еҽ",
    "h": "һ",
    "i": "іιıɩ",
    "j": "ј",
    "k": "кκ",
    "l": "ӏ",
    "m": "м",
    "n": "пո",
    "o": "оοօ",
    "p": "рρ",
    "q": "ԛ",
    "r": "г",
    "s": "ѕ",
    "t": "тτ",
    "u": "υս",
    "v": "ѵν",
    "w": "ԝѡ",
    "x": "хχ",
    "y": "уγ",
    "·": "•‧∙⋅・",
}
_PLAIN = {character: plain for plain, alike in _LOOK_ALIKES.items() for character in alike}

# Special tokens of most chat models have this form, whatever the tokenizer at hand has.
_TOKEN_FORM = re.compile(r"(?=(<\|[^<>|\n]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|\[/?inst\]|<</?sys>>))")


def escaped(text: str, control: Iterable[str] = ()) -> str:
    """The text as lines that each begin with LINE, and none of which is anything but data.

    Line ends of all kinds become line ends, and characters that nobody sees are left out, with what joins emoji. The
    brackets of marks become others. Where the text spells a special token, or one of `control`, in any letters that
    look so, BREAK is put in.

    Args:
        text: any text.
        control: what has a meaning for the model: the tokenizer's special tokens and what its chat template writes.
    """
    seen = visible(text)
    return "\n".join(f"{LINE}{line}".rstrip() for line in broken(seen, control).split("\n"))


def visible(text: str) -> str:
    """The text's lines, trimmed, without what nobody sees and without marks' brackets; of blank lines one is kept."""
    text = _NEWLINES.sub("\n", text)
    kept = []
    for character in text:
        if character in "\n\t":
            kept.append(character)
        elif unicodedata.category(character) == "Zs":
            kept.append(" ")
        elif unicodedata.category(character) not in _UNSEEN and ord(character) not in _FILLERS:
            kept.append("[]"[BRACKETS.index(character)] if character in BRACKETS else character)
    return _BLANK_LINES.sub("\n\n", "".join(kept)).strip()


def broken(text: str, control: Iterable[str]) -> str:
    """The text with BREAK put into all that looks like a special token or one of `control`, wherever these overlap."""
    folded = _folded(text)
    cuts = {match.start() + 1 for match in _TOKEN_FORM.finditer(folded)}
    for word in {_folded(word) for word in control if len(word) > 1}:
        # Before a colon, so that words stay whole; else after the first character.
        inside = len(word) - 1 if word[0].isalnum() else 1
        at = folded.find(word)
        while at >= 0:
            cuts.add(at + inside)
            at = folded.find(word, at + 1)
    if not cuts:
        return text
    edges = [0, *sorted(cuts), len(text)]
    return BREAK.join(text[start:end] for start, end in pairwise(edges))


def _folded(text: str) -> str:
    """The text as it looks, character for character: small letters, and plain ones for those that look like them."""
    return "".join(map(_fold, text))


def _fold(character: str) -> str:
    character = _PLAIN.get(character, character)
    for change in (lambda c: unicodedata.normalize("NFKC", c), str.casefold):
        changed = change(character)
        character = changed if len(changed) == 1 else character
    return _PLAIN.get(character, character)
