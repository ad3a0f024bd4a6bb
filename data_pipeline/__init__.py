"""From features and captions on disk to padded numpy batches; knows neither JAX nor the models.

`sources` and `synthetic` read images one by one, `extract` makes features of pictures,
`region_captions` and `shards` write a TFDS dataset (`build` is their command line), `tokenizer`
turns captions into ids, `input_pipeline` reads it all as batches.
"""

import os

# TensorFlow reads files here and computes nothing: no oneDNN kernels, and none of their notices.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
