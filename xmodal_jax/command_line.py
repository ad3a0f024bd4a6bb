"""Flags to a configuration; what a user got wrong in them comes out as one line."""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from xmodal_jax.errors import UserError

_LAST_RAISED = re.compile(r"^\s*(?:\w+\.)*(\w*Error): (.*)$", re.MULTILINE)
_NEAREST = re.compile(r'Did you mean "([^"]+)" instead of "([^"]+)"')
_RUN_CONFIG = Path(__file__).with_name("run_config.py")  # loaded by its path, as all of them are
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


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What follows --flag= or --flag, before anything is parsed."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("-") and name.lstrip("-") == flag:
            return value if equals else following
    return None


def _with_config(arguments: Sequence[str]) -> list[str]:
    """The arguments; without --config and with the workdir of a run, that run's configuration.

    Overrides are parsed as fields of a configuration, so that it has to be there before them.
    """
    workdir = _value_of("workdir", arguments)
    if workdir is None or _value_of("config", arguments) is not None:
        return list(arguments)
    if not (Path(workdir) / "config.json").is_file():
        return list(arguments)
    return [*arguments[:1], f"--config={_RUN_CONFIG}:{workdir}", *arguments[1:]]


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses all flags, for `app.run`; a workdir that holds a run needs no --config.

    Raises:
      UserError: a flag, a field or the configuration file is wrong.
    """
    try:
        left = flags.FLAGS(_with_config(arguments))
        if flags.FLAGS.config is not None:
            # A file that could not be loaded is reported when its content is first asked for.
            flags.FLAGS.config.to_dict()
    except (flags.Error, AttributeError, KeyError, OSError, TypeError) as error:
        raise UserError(_explain(error)) from error
    if len(left) > 1:
        raise UserError(f"argument {left[1]!r} is not known; every option starts with --")
    return left
