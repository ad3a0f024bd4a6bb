"""The error of a user's mistake: shown as one line, never as a traceback."""


class UserError(ValueError):
    """A wrong configuration, path or file; the message names the thing, the value, the remedy."""
