"""The configuration of a run that is there, from its workdir.

  python -m xmodal_jax.main --workdir=runs/demo --mode=export

takes this configuration file where a workdir holds a run and no --config is given; by its own
name it is --config=xmodal_jax/run_config.py:runs/demo.
"""

from pathlib import Path

import ml_collections

from configs import common
from xmodal_jax.workdir import read_config


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration which the run in the workdir was started with."""
    return common.locked(read_config(Path(workdir)))
