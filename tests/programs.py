"""The training program in processes of its own, forked from one that has imported it.

Imports are most of what a short run takes, and many tests start one. `run_real` starts it as users
do.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.programs", "xmodal_jax.train", "xmodal_jax.evaluate"])


def _begin(function, arguments, variables, out, err):
    os.chdir(ROOT)
    os.environ.update(variables)
    for path, number in ((out, 1), (err, 2)):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), number)
    code = 0
    try:
        function(*arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # As Python ends; multiprocessing would first take from under threads what they read.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _main(*arguments):
    from xmodal_jax import main

    sys.argv = [main.__file__, *arguments]
    main.main()


class Fork:
    """A function at work in a process of its own; otherwise like subprocess.Popen."""

    def __init__(self, function, *arguments, **variables):
        """variables: of the environment, beside those of this process."""
        self._output = tempfile.TemporaryDirectory()
        self._files = [Path(self._output.name) / name for name in ("out", "err")]
        # The server's own environment is that of its start.
        variables = dict(os.environ) | variables
        work = (function, arguments, variables, *self._files)
        self._process = _FORKS.Process(target=_begin, args=work)
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=500):
        """(standard output, standard error) once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError([path.read_text() for path in self._files])
        return tuple(path.read_text() for path in self._files)


def start(*arguments, **variables):
    """`python -m xmodal_jax.main ARGUMENTS` at work."""
    return Fork(_main, *map(str, arguments), **variables)


def run(*arguments, expect=0, **variables):
    """(output, errors) of the program, which has to end with this exit code."""
    program = start(*arguments, **variables)
    out, err = program.communicate()
    assert program.returncode == expect, out + err
    return out, err


def run_real(*arguments, **variables):
    """The same with a Python of its own, as from a shell."""
    command = [sys.executable, "-m", "xmodal_jax.main", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr
