"""Checks that untrusted regular expressions are valid and quick, before a library matches names against them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping

from stellarbyte.errors import UserError, shown

MAX_LENGTH = 10_000
# Libraries match each expression against each module, and Python keeps few expressions compiled, so this many take
# seconds on a large model. They suffice for an adapter with its own rank and alpha for each of 1,000 modules.
MAX_COUNT = 2_000
MAX_SECONDS = 1

# With at most two quantified characters a match takes at most cubic time in a name's length. More of them, or a
# quantified group, may take for ever.
_MAY_BE_SLOW = re.compile(r"\)[*+?{]|[*+{].*[*+{].*[*+{]", re.DOTALL)

# The trial is a process because, unlike a thread, it can be ended during a match. It prints the expression's number.
_TRIAL = f"""
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({MAX_SECONDS}, {MAX_SECONDS}))
except (ImportError, OSError, ValueError):
    pass
expressions, names = json.load(sys.stdin)
for number, expression in enumerate(expressions):
    print(number, flush=True)
    match = re.compile(expression).match
    for name in names:
        match(name)
print("done", flush=True)
"""
_MOST_WALL_SECONDS = 20  # the machine may be busy with other things


def check_patterns(patterns: Mapping[str, tuple[str, str]], names: Iterable[str]) -> None:
    """Refuses invalid expressions, and expressions that take more than MAX_SECONDS on all the names.

    Args:
        patterns: field -> (the expression as it was given, the whole expression that the library will match).
        names: the names that it will be matched against, from their beginning.

    Raises:
        UserError: there are more than MAX_COUNT expressions; one is longer than MAX_LENGTH, invalid, or too slow.
    """
    if len(patterns) > MAX_COUNT:
        raise UserError(f"{next(iter(patterns))} is one of {len(patterns)} expressions, where {MAX_COUNT} are the most")
    for field, (pattern, expression) in patterns.items():
        if len(pattern) > MAX_LENGTH:
            raise UserError(f"{field} is an expression of {len(pattern)} characters, where {MAX_LENGTH} are the most")
        for text in (pattern, expression):
            try:
                re.compile(text)
            except (re.error, RecursionError, OverflowError) as error:
                why = "nested too deep" if isinstance(error, RecursionError) else error
                raise UserError(f"{field} {shown(pattern)} is no regular expression: {why}") from None
    doubtful = {field: pair for field, pair in patterns.items() if _MAY_BE_SLOW.search(pair[0])}
    if not doubtful:
        return
    reached = _reached([expression for _, expression in doubtful.values()], list(names))
    if reached is not None:
        field, (pattern, _) = list(doubtful.items())[reached]
        raise UserError(
            f"{field} {shown(pattern)} takes more than {MAX_SECONDS} second on the names of this model: "
            "write it without repetitions inside repetitions"
        )


def _reached(expressions: list[str], names: list[str]) -> int | None:
    """The index of the expression during which a trial's time ran out; None if the trial finished."""
    trial = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _TRIAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        output, _ = trial.communicate(json.dumps([expressions, names]), timeout=_MOST_WALL_SECONDS)
    except subprocess.TimeoutExpired:
        trial.kill()
        output, _ = trial.communicate()
    last = output.split()[-1:]
    return None if last == ["done"] else int(last[0]) if last else 0
