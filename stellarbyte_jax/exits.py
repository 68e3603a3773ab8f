"""How the command line ends: what it says of an error, and the exit code."""

import sys
import traceback

from stellarbyte.errors import UserError

PROGRAM = "stellarbyte"

# The exit code of a mistake that the user can mend, and the shell's for Ctrl-C.
USER_ERROR = 2
INTERRUPTED = 130


def report(error: BaseException) -> int:
    """Says what went wrong, in a sentence if the user can do something about it; returns the exit code."""
    if isinstance(error, UserError):
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return USER_ERROR
    if isinstance(error, KeyboardInterrupt):
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    traceback.print_exception(error)
    return 1
