"""Several processes that train as one: joining, who writes, and how all of them stop together.

Every process runs the same program; a jitted computation spans the devices of all. Process 0 alone
prints and writes logs; Orbax saves from all.
"""

import hashlib
import os
import signal
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from xmodal_jax.errors import UserError


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    trains: bool = True,
) -> None:
    """Joins the other processes; to be called before any device is used.

    Without arguments JAX finds them by itself on TPU pods, Slurm and Open MPI. Where some never
    come, JAX ends the process after five minutes.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: which one this is.
      trains: whether SIGTERM is to wait for `StopSignal`, and not to end the process.

    Raises:
      UserError: only a part of the arguments is given, or it is not clear who the others are.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError("--coordinator, --num_processes and --process_id go together; give all")
    if num_processes is not None and not 0 <= (process_id or 0) < num_processes:
        raise UserError(
            f"--process_id={process_id} is not in 0..{num_processes - 1}, as --num_processes says"
        )
    if coordinator is not None:
        if not coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"--coordinator={coordinator} has no port; give HOST:PORT")
        print(
            f"process {process_id} of {num_processes} waits for the others at {coordinator}, "
            "five minutes at most",
            file=sys.stderr,
        )
    jax.config.update("jax_enable_preemption_service", trains)
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


def check_same(what: str) -> None:
    """UserError in every process unless all were started with the same flags, here as one text."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(what.encode()).digest(), np.uint8)
    found = multihost_utils.process_allgather(digest)
    if others := np.flatnonzero((found != found[0]).any(axis=1)).tolist():
        raise UserError(
            f"process {', '.join(map(str, others))} was started with other flags than process 0; "
            "start all with the same --config, --mode and --workdir"
        )


def is_main() -> bool:
    """Whether this process is the one that prints and writes logs."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns once every process has come here; `name` is that of the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class StopSignal:
    """Whether to save and stop, because SIGTERM or SIGINT came; a second SIGINT stops at once.

    With several processes JAX listens for SIGTERM, which may reach one of them, and finds a step at
    which all stop; SIGINT is passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self.received = ""
        self._shared = jax.process_count() > 1
        for number in (signal.SIGINT,) if self._shared else (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.received = signal.Signals(number).name

    def at(self, step: int) -> bool:
        """Whether to stop after this step; all processes have to ask at every step."""
        if self._shared and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM.name
        return bool(self.received)
