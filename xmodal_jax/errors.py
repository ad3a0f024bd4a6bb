"""What went wrong on a user's side: shown as one line, never as a traceback."""

import sys
from collections.abc import Callable

from data_pipeline.errors import DataError

STOPPED = 130  # as shells have it: 128 + SIGINT


class UserError(ValueError):
    """A wrong configuration, path or file; the message names the thing, the value, the remedy."""


MISTAKES = (UserError, DataError, OSError)


def exit_code(run: Callable[[], object]) -> int:
    """Runs the body of a program: 0; 2 after a mistake of the user's, 130 after Ctrl-C."""
    try:
        run()
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    return 0
