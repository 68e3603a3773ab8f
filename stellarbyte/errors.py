"""The one exception that tells a user what to change; the command lines print it without a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence with the field, file:line or key, the value and the fix."""
