"""Several processes that train as one: joining, who writes, and how all of them stop together.

Every process runs the same program; a jitted computation spans the devices of all. Process 0 alone
prints and writes logs; Orbax saves from all.
"""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

from xmodal_jax.errors import UserError


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; to be called before any device is used.

    Without arguments JAX finds them by itself on TPU pods, Slurm and Open MPI.

    Raises:
      UserError: only a part of the arguments is given, or the others can't be found.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together; give all")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(
            f"--process_id={process_id} is not in 0..{num_processes - 1}, as --num_processes says"
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--distributed: {reason}; if this is no TPU pod and no Slurm job, give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from error
    if jax.default_backend() == "cpu" and jax.process_count() > 1:
        # Its keys differ from process to process: what one finds, another compiles, and the
        # collectives of the two programs do not match (JAX 0.10).
        jax.config.update("jax_enable_compilation_cache", False)


def is_main() -> bool:
    """Whether this process is the one that prints and writes logs."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns once every process has come here; `name` is that of the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class StopSignal:
    """Whether to save and stop, because SIGTERM (or, in a single process, SIGINT) came.

    With several processes JAX listens for the signal, which may reach one of them, and finds a step
    at which all stop. In a single one, a second signal stops at once.
    """

    def __init__(self) -> None:
        self.received = ""
        self._shared = jax.process_count() > 1
        if self._shared:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        del frame
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    def at(self, step: int) -> bool:
        """Whether to stop after this step; all processes have to ask at every step."""
        if self._shared and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM.name
        return bool(self.received)
