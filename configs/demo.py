"""The demo: small models on drawn scenes, a minute or two each on two CPU cores, no download.

  python -m xmodal_jax.main --config=configs/demo.py
  python -m xmodal_jax.main --config=configs/demo.py:cmsei

Variants: all of configs/models.py, with the same loss, data and number of steps; mean_pooled,
TERAN's encoders with one mean vector for each side.
"""

import ml_collections

from configs import common, models


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one model."""
    config = common.get_config()
    changes = models.apply(
        config, "teran" if variant == "mean_pooled" else variant, captions=20_000
    )
    config.data.update(name="scenes", build_synthetic=True, tokenizer="words", min_word_count=1)
    config.data.update(max_regions=12, max_tokens=24)
    _shrink(config.model)
    if variant == "mean_pooled":
        config.model.update(score="pooled", pooling="mean")

    config.loss.update(kind="info_nce", temperature=0.05, positives="image")
    models.spare_costly_pairs(config, candidates=4, rerank_top_k=50)
    config.augment.update(region_dropout=0.0, token_masking=0.0)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup_steps=60)
    config.optimizer.update(weight_decay=0.0, multipliers=())
    config.train.update(steps=500, batch_size=128, encode_parts=1, log_every=50)
    config.train.update(evaluate_every=250, checkpoint_every=250)
    config.evaluate.batch_size = 100
    # Words point at regions where they are compared one by one.
    config.evaluate.pointing = variant in ("teran", "teran_symm", "mean_pooled", "chan")
    config.update_from_flattened_dict(changes)
    return common.locked(config)


def _shrink(model: ml_collections.ConfigDict) -> None:
    """Widths and depths for scenes of a dozen shapes, described by a few dozen words."""
    model.update(embed_dim=96, dropout=0.0)
    if model.text.encoder == "bert":
        model.text.update(pretrained="", num_layers=2, width=96, num_heads=4, mlp_dim=192)
        model.text.dropout = 0.0
    else:
        model.text.width = 96
    if model.name == "teran":
        # Mean instead of sum over words: one temperature then fits captions of every length.
        model.update(region_layers=2, top_layers=0, mlp_dim=192, alignment="MrAVGw")
        return
    if model.reasoning.name == "transformer":
        model.reasoning.mlp_dim = 192
    if model.reasoning.name == "graphs":
        # The captions say what is left of what; overlaps alone do not tell.
        model.reasoning.update(spatial="directional", semantic="predicates")
    if model.similarity.name in ("sgr", "saf"):
        model.similarity.width = 96
