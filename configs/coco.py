"""MS-COCO, with the published hyper-parameters of each model.

  python -m xmodal_jax.main --config=configs/coco.py:teran --workdir=runs/coco
  python -m xmodal_jax.main --config=configs/coco.py:teran --workdir=runs/coco --mode=evaluate \\
    --config.evaluate.split=test --config.evaluate.protocol=5fold

Variants: all of configs/models.py.
"""

import ml_collections

from configs import common, models

CAPTIONS = 113_287 * 5  # Karpathy's training split with restval


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one model."""
    config = common.get_config()
    config.data.name = "coco"
    models.apply(config, variant, CAPTIONS)
    # Of batches of 40 and 128, 77 % and 43 % fit into the first, 98 % and more into the last one.
    config.data.token_widths = (24, 32, 48)
    if variant.startswith("scan"):
        models.recipe(config, CAPTIONS, learning_rate=5e-4, epochs=20, decay_epoch=10)
    if variant in ("saf", "sgr"):
        models.recipe(config, CAPTIONS, learning_rate=2e-4, epochs=20, decay_epoch=10)
    return common.locked(config)
