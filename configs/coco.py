"""TERAN and TERN on MS-COCO with the published hyper-parameters (mesnico/TERAN, configs/).

  python -m xmodal_jax.main --config=configs/coco.py:teran --workdir=runs/coco
  python -m xmodal_jax.main --config=configs/coco.py:teran --workdir=runs/coco --mode=evaluate \\
    --config.evaluate.split=test --config.evaluate.protocol=5fold

Variants: teran, teran_shared, teran_symm, teran_mwsr, tern.
"""

import ml_collections

from configs import common

CAPTIONS = 113_287 * 5  # Karpathy's training split with restval
BATCH = 40


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one variant."""
    config = common.get_config()
    config.data.name = "coco"
    config.data.tokenizer = "bert-base-uncased"
    config.data.max_tokens = 88
    config.model.text.pretrained = "bert-base-uncased"
    config.loss.positives = "diagonal"
    epoch = CAPTIONS // BATCH
    config.train.batch_size = BATCH
    config.train.steps = 30 * epoch
    config.optimizer.decay_steps = (20 * epoch,)
    config.evaluate.batch_size = BATCH
    common.apply_variant(config, variant)
    return config
