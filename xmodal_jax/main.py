"""Trains, evaluates and exports image-text retrieval models.

  python -m xmodal_jax.main --config=configs/demo.py --workdir=runs/demo
  python -m xmodal_jax.main --workdir=runs/demo --mode=evaluate --config.evaluate.split=test
  python -m xmodal_jax.main --workdir=runs/demo --mode=export

A variant of a configuration is named after a colon (configs/coco.py:teran_symm); any field of it
can be set as --config.section.field=value; configs/common.py lists all fields. The same command on
the same workdir continues a run that was stopped. A workdir that holds a run needs no --config: its
own is taken.
"""

import os
import re
import sys
import traceback
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from xmodal_jax.command_line import parse_flags
from xmodal_jax.errors import MISTAKES, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with an optional variant: configs/coco.py:teran."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run: checkpoints, metrics, export; runs/CONFIG if not given."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "export"],
    "train; or evaluate the best checkpoint on --config.evaluate.split; or export it.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the other processes first. JAX finds them on TPU pods, Slurm and Open MPI; elsewhere "
    "give the three flags below.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, the same for all processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0 on.")


def _workdir() -> Path:
    if _WORKDIR.value:
        return Path(_WORKDIR.value)
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, variant)))


def _flags_of_all() -> str:
    """What has to be the same in all processes; data may lie in other places."""
    config = _CONFIG.value.copy_and_resolve_references()
    config.data.dir = ""
    return f"{_MODE.value} {_workdir().absolute()} {config.to_json()}"


def run() -> None:
    """Does what the flags say."""
    # Late, so that --help and mistakes in flags answer at once.
    from xmodal_jax import distributed, evaluate, train

    # The libraries report every file they write at INFO; --verbosity=0 shows that.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if _CONFIG.value is None:
        raise UserError(
            "--config is missing, and no --workdir of a run is given; try --config=configs/demo.py"
        )
    if _DISTRIBUTED.value:
        trains = _MODE.value == "train"
        distributed.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, trains)
        distributed.check_same(_flags_of_all())
    elif _COORDINATOR.value or _NUM_PROCESSES.value or _PROCESS_ID.value is not None:
        raise UserError("--coordinator, --num_processes and --process_id need --distributed")
    # Fake CPU devices share one thread pool: two programs in flight may wait for each other, and so
    # may the collectives of one that comes from the compilation cache (JAX 0.10).
    if re.search(r"host_platform_device_count=(?!1\b)", os.environ.get("XLA_FLAGS", "")):
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jax.config.update("jax_enable_compilation_cache", False)
    if _MODE.value == "train":
        train.train(_CONFIG.value, _workdir())
    elif _MODE.value == "evaluate":
        evaluate.evaluate(_CONFIG.value, _workdir())
    else:
        evaluate.export(_CONFIG.value, _workdir())


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, no traceback."""
    try:
        app.run(lambda _: run(), flags_parser=parse_flags)
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(2)
    except (Exception, KeyboardInterrupt):
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} failed, or lost "
            "another one; start all processes again with the same command",
            file=sys.stderr,
        )
        _leave(1)


def _leave(code: int) -> None:
    if jax.process_count() == 1:
        sys.exit(code)
    # At a normal end JAX waits for the other processes, which may wait for this one.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
