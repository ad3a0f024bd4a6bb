"""TERAN and TERN on Flickr30K with the published hyper-parameters (mesnico/TERAN, configs/).

  python -m xmodal_jax.main --config=configs/flickr30k.py:teran --workdir=runs/f30k

Variants: teran, teran_shared, teran_symm, teran_mwsr, tern.
"""

import ml_collections

from configs import common

CAPTIONS = 29_000 * 5
BATCH = 30


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one variant."""
    config = common.get_config()
    config.data.name = "flickr30k"
    config.data.tokenizer = "bert-base-uncased"
    config.data.max_tokens = 88
    config.model.text.pretrained = "bert-base-uncased"
    config.loss.positives = "diagonal"
    epoch = CAPTIONS // BATCH
    config.train.batch_size = BATCH
    config.train.steps = 30 * epoch
    config.optimizer.decay_steps = (20 * epoch,)
    config.optimizer.warmup_steps = 1000
    config.evaluate.batch_size = BATCH
    common.apply_variant(config, variant)
    return config
