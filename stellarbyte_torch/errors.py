"""The one exception that tells a user what to change; the command line prints it without a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence with the option or file, the value and the fix."""
