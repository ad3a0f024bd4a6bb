"""Your own images, made a dataset by `python -m data_pipeline.extract`, on a CPU or a small GPU.

  python -m data_pipeline.extract photos --captions captions.csv --name mine \\
    --backbone facebook/dinov2-small
  python -m xmodal_jax.main --config=configs/own.py --config.data.name=mine --workdir=runs/mine

Variants: all of configs/models.py, with the sizes, the pretrained text encoder and the loss of
configs/flickr8k.py. The width of the features is that of the dataset. 2,000 steps of 128 images
are 43 passes over 6,000 images: choose --config.train.steps by the size of your own training split,
and a --config.train.batch_size that is not larger than it.
"""

import ml_collections

from configs import flickr8k


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one model; data.name is left to the user."""
    config = flickr8k.get_config(variant)
    config.data.name = ""
    return config
