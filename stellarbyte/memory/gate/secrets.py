"""Refuses what looks like a secret: keys, passwords, card numbers, identity numbers."""

import math
import re
import unicodedata
from collections import Counter

from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict

_KEYS = {
    "a private key": r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY( BLOCK)?-----",
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "an API key": r"\b(sk|rk|pk)[-_](live|test|proj|ant|or)?[-_]?[A-Za-z0-9_-]{20,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a Google key": r"\b(AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,})",
    "a signed token": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{1,200}:[^\s/@]{1,200}@",
    "a social security number": r"(?<![\d-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _KEYS.items()}

# "my password is hunter2", "PIN: 4711", "api_key = 'abc'", "密码是abc123".
_NAMED = re.compile(
    r"(?:\b(?:pass(?:word|phrase|code|wd)?|pwd|pin(?: code| number)?|cvv|cvc|secret(?: key)?|(?:api|access|private|"
    r"secret|"
    r"encryption|recovery|licen[cs]e)[ _-]?(?:key|token|code)|auth[ _-]?token|token|credentials?)\b|密码|口令|密钥|"
    r"验证码|パスワード)"
    r"(?:[ \w]{0,40}?)(?:\s*[=:]\s*|\s+(?:is|are|was)(?: now)?\s+|\s*(?:是|为|改成|改为|换成)\s*了?)"
    r"[\"'“‘`]?(?P<value>[^\s\"'”’`]{3,})(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_CARD = re.compile(r"(?<![\d])(?<!\d\.)[3-6]\d{3}(?:[ -]?\d){9,15}(?!\.?\d)")
_CHINESE_ID = re.compile(r"(?<!\d)\d{17}[\dXx](?![\dXx])")
_TOKEN = re.compile(r"[A-Za-z0-9+_=-]{32,}")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")


def refuse_secrets(candidate: Candidate, _: Surroundings) -> Verdict | None:
    """The log gets the kind of the secret, never the text."""
    kind = secret_in(candidate.text) or secret_in(candidate.source)
    return Verdict("refused", f"it holds {kind}", may_be_logged=False) if kind else None


def secret_in(text: str) -> str | None:
    """What kind of secret a text seems to hold; None: none."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    for name, pattern in _PATTERNS.items():
        if pattern.search(text):
            return name
    named = _NAMED.search(text)
    if named and _is_value(named["value"], named["rest"]):
        return "a password or a key"
    if any(_luhn(re.sub(r"\D", "", match[0])) for match in _CARD.finditer(text)):
        return "a card number"
    if any(_chinese_id(match[0]) for match in _CHINESE_ID.finditer(text)):
        return "an identity number"
    if any(_is_random(match[0]) for match in _TOKEN.finditer(text)):
        return "a long random token"
    return None


def _is_value(value: str, rest: str) -> bool:
    """Whether a password may be so: not "stored in a safe", but one word, or one with digits or signs."""
    value = value.rstrip(".,;!?。，；！")
    ends = not re.match(r"[\s,;]*\w", rest)
    return len(value) >= 3 and (ends or bool(re.search(r"[\d@#$%^&*_+=!]", value)))


def _luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of a card number (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


def _chinese_id(number: str) -> bool:
    """Whether the last sign is the check digit of a resident identity number (GB 11643-1999)."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _is_random(token: str) -> bool:
    """Whether a token has upper and lower case, digits, and as many different signs as chance gives."""
    kinds = (str.isupper, str.islower, str.isdigit)
    if not all(any(kind(sign) for sign in token) for kind in kinds):
        return False
    counts = Counter(token)
    bits = -sum(count / len(token) * math.log2(count / len(token)) for count in counts.values())
    return bits > 4
