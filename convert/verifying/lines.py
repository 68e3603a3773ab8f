"""A thousand lines of text on which two tokenizers are compared; the same lines in every comparison."""

import random
from collections.abc import Iterator

COUNT = 1000

_CODE = (
    "def {a}({b}, *, {c}=None) -> dict[str, int]:",
    "        for {a} in range(0x{n:x}, {n}): {b}[{a}] += {c} ** -1.5e-{n}",
    '\t\tassert {a} != "{b}\\n", f"{{{c}!r}} at {n}"  # {a}',
    "#include <{a}.h>\tint {b}[{n}] = {{{n}, 0}}; /* {c} */",
    "SELECT {a}, COUNT(*) FROM {b} WHERE {c} >= {n} GROUP BY 1;",
    '{{"{a}": [{n}, null, true], "{b}": "\\u00e9 {c}"}}',
)
_ENGLISH = (
    "It isn't {a}; it's {b}, and they've {c} {n} of them.",
    "“{a},” said the {b} — “we'll {c} on the {n}th!”",
    "In {n}, {a} & {b} paid $1,{n:03d}.50 for {c}…",
    "THE {a} OF THE {b}: CHAPTER {n}",
)
_WORDS = (
    "star",
    "token",
    "gradient",
    "Zürich",
    "naïve",
    "x",
    "y_0",
    "__init__",
    "HTTPServer",
    "don't",
    "l'été",
    "I'LL",
)
_CHINESE = "床前明月光疑是地上霜举头望低思故乡白日依山尽黄河入海流欲穷千里目更上一层楼\uff0c。\uff01\uff1f「」"
_OTHER = (
    *("Привет", "Ελλάδα", "שלום", "مرحبا", "नमस्ते", "こんにちは", "안녕하세요", "สวัสดี", "Việt"),
    # Characters that normalisation would change: composed, decomposed, ligatures, full width, the Kelvin sign.
    *("é", "e\u0301", "\ufb01", "\u212b", "½", "²", "\u2167", "\uff21", "\u212a"),
)
_EMOJI = ("🌲", "👩‍🚀", "🇨🇭", "❤️", "👍🏽", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "\U0001fae0")
_BLANKS = (" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b", "\u2028", "\ufeff", "   \n \t ")
_SPECIAL = ("<|SBOS|>", "<|SEOS|>", "<s>", "</s>", "<unk>", "<|endoftext|>", "<0x0A>", "▁", "Ġ", "\ufffd")


def lines() -> list[str]:
    """Code, English, Chinese, other scripts, emoji, blanks, control characters, and names of special tokens."""
    generator = random.Random(0)
    kinds = (_code, _english, _chinese, _mixed, _blank, _controls)
    return ["", *(kinds[number % len(kinds)](generator) for number in range(COUNT - 1))]


def _filled(forms: tuple[str, ...], generator: random.Random) -> str:
    a, b, c = (generator.choice(_WORDS) for _ in range(3))
    return generator.choice(forms).format(a=a, b=b, c=c, n=generator.randrange(2000))


def _code(generator: random.Random) -> str:
    return " " * (4 * generator.randrange(5)) + _filled(_CODE, generator)


def _english(generator: random.Random) -> str:
    return " ".join(_filled(_ENGLISH, generator) for _ in range(generator.randrange(1, 4)))


def _chinese(generator: random.Random) -> str:
    return "".join(generator.choice(_CHINESE) for _ in range(generator.randrange(1, 40)))


def _mixed(generator: random.Random) -> str:
    pieces = (*_OTHER, *_EMOJI, *_WORDS, *_SPECIAL, *_CHINESE)
    return generator.choice(("", " ")).join(generator.choice(pieces) for _ in range(generator.randrange(1, 12)))


def _blank(generator: random.Random) -> str:
    return "".join(generator.choice((*_BLANKS, "x", "7")) for _ in range(generator.randrange(1, 12)))


def _controls(generator: random.Random) -> str:
    return "".join(_any_characters(generator, generator.randrange(1, 12)))


def _any_characters(generator: random.Random, count: int) -> Iterator[str]:
    """Control characters, and any others but surrogates."""
    for _ in range(count):
        code = int(generator.random() * generator.choice((0x100, 0x110000 - 0x800)))
        yield chr(code if code < 0xD800 else code + 0x800)
