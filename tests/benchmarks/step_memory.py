"""Memory of one training step, read from the compiled program; nothing is run.

  python -m tests.benchmarks.step_memory --config=configs/coco.py:cmsei --tokens=32

Prints one JSON line: MiB of the arguments (state and batch), of the temporary buffers and of the
output that is not the donated state, on this backend with one device. With --limit the exit code
is 1 where the temporary buffers need more MiB than that.
"""

import json
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from xmodal_jax import optimizer, train_state
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.train_step import make_train_step

MIB = 2**20
_CONFIG = config_flags.DEFINE_config_file("config", "configs/coco.py:cmsei", "Configuration.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images and captions of a batch.")
_TOKENS = flags.DEFINE_integer("tokens", 32, "Tokens a caption is padded to.")
_FEATURE_WIDTH = flags.DEFINE_integer("feature_width", 2048, "Width of the region features.")
_LIMIT = flags.DEFINE_integer("limit", 0, "MiB of temporary buffers; 0: no limit.")


def main(argv: list[str]) -> None:
    """Compiles the step of a configuration and prints what it needs."""
    del argv
    config = _CONFIG.value
    config.data.max_tokens, config.train.batch_size = _TOKENS.value, _BATCH_SIZE.value
    if config.model.text.get("pretrained"):
        # The sizes are those of the configuration; weights are not needed to compile.
        config.model.text.pretrained = ""
    model = build_model(config.model, _FEATURE_WIDTH.value, 30522, 50)
    spec = batch_spec(config, _FEATURE_WIDTH.value)
    params = train_state.abstract_params(model, spec)
    tx, _ = optimizer.make_optimizer(config.optimizer, params, config.train.steps)
    state = train_state.abstract_state(params, tx)
    frozen = optimizer.frozen_mask(params, tuple(config.optimizer.frozen))
    step = make_train_step(model, tx, config, frozen=frozen)
    found = step.lower(state, spec).compile().memory_analysis()
    sizes = {
        "arguments_mib": found.argument_size_in_bytes,
        "temporary_mib": found.temp_size_in_bytes,
        "new_output_mib": found.output_size_in_bytes - found.alias_size_in_bytes,
    }
    line = {
        "config": config_flags.get_config_filename(flags.FLAGS["config"]),
        "backend": jax.default_backend(),
        "batch_size": config.train.batch_size,
    }
    line |= {"regions": config.data.max_regions, "tokens": _TOKENS.value}
    line |= {"embed_dim": config.model.embed_dim}
    print(json.dumps(line | {name: round(value / MIB) for name, value in sizes.items()}))
    if 0 < _LIMIT.value < found.temp_size_in_bytes / MIB:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
