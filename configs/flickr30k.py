"""Flickr30K, with the published hyper-parameters of each model.

  python -m xmodal_jax.main --config=configs/flickr30k.py:teran --workdir=runs/f30k

Variants: all of configs/models.py.
"""

import ml_collections

from configs import common, models

CAPTIONS = 29_000 * 5


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one model."""
    config = common.get_config()
    config.data.name = "flickr30k"
    models.apply(config, variant, CAPTIONS)
    # Of batches of 30 and 128, 60 % and 11 % fit into the first, 97 % and 86 % into the last one.
    config.data.token_widths = (32, 40, 48)
    if config.model.name == "teran":
        models.recipe(
            config, CAPTIONS, batch_size=30, learning_rate=1e-5, epochs=30, decay_epoch=20
        )
        config.optimizer.warmup_steps = 1000
    if variant == "vsrn":
        models.recipe(config, CAPTIONS, learning_rate=2e-4, epochs=30, decay_epoch=10)
    return common.locked(config)
