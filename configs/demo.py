"""The demo: a small TERAN on drawn scenes, minutes on two CPU cores, no download.

  python -m xmodal_jax.main --config=configs/demo.py

Variants: teran; mean_pooled, the same encoders with one mean vector for each side.
"""

import ml_collections

from configs import common


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one variant."""
    config = common.get_config()
    config.data.name = "scenes"
    config.data.build_synthetic = True
    config.data.max_regions = 12
    config.data.max_tokens = 24

    model = config.model
    model.text.update(num_layers=2, width=96, num_heads=4, mlp_dim=192, dropout=0.0)
    model.update(region_layers=2, embed_dim=96, top_layers=0, mlp_dim=192, dropout=0.0)
    model.alignment = "MrAVGw"

    config.loss.kind = "info_nce"
    config.loss.temperature = 0.05
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup_steps=60)

    config.train.update(steps=500, batch_size=128, log_every=50)
    config.train.update(evaluate_every=250, checkpoint_every=250)
    config.evaluate.pointing = True
    if variant == "mean_pooled":
        model.update(score="pooled", pooling="mean")
    elif variant != "teran":
        raise ValueError(f"variant {variant!r} is not known; use teran or mean_pooled")
    return config
