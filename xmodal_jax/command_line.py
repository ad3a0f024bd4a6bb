"""Flags to a configuration; what a user got wrong in them comes out as one line."""

import re
from collections.abc import Sequence

from absl import flags

from xmodal_jax.errors import UserError

_LAST_RAISED = re.compile(r"^\s*(\w*Error): (.*)$", re.MULTILINE)
_NEAREST = re.compile(r'Did you mean "([^"]+)" instead of "([^"]+)"')
_HELP = "configs/common.py lists all fields"


def _explain(error: Exception) -> str:
    """One line from the errors of absl and ml_collections, which may hold whole tracebacks."""
    text = str(error)
    if near := _NEAREST.search(text):
        return f"the configuration has no field {near[2]!r}; did you mean {near[1]!r}? ({_HELP})"
    if missing := re.search(r"No such file or directory: '([^']+)'", text):
        return f"configuration file {missing[1]} does not exist; try --config=configs/demo.py"
    if isinstance(error, flags.Error):
        raised = _LAST_RAISED.findall(text)
        return raised[-1][1] if raised else text.splitlines()[0]
    field = re.search(r"\w+", text)
    return f"the configuration has no field {field[0] if field else text!r} ({_HELP})"


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses all flags; for `app.run`.

    Raises:
      UserError: a flag, a field or the configuration file is wrong.
    """
    try:
        left = flags.FLAGS(arguments)
        if flags.FLAGS.config is not None:
            # A file that could not be loaded is reported when its content is first asked for.
            flags.FLAGS.config.to_dict()
    except (flags.Error, AttributeError, KeyError, OSError, TypeError) as error:
        raise UserError(_explain(error)) from error
    if len(left) > 1:
        raise UserError(f"argument {left[1]!r} is not known; every option starts with --")
    return left
