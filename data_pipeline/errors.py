"""The one exception of this package that is meant for the user's eyes."""


class DataError(ValueError):
    """A mistake in the user's data or in how it is asked for.

    The message is one line: it names the thing, its value and the remedy. Programs print
    `error: <message>` on stderr and exit with status 2, without a traceback.
    """
