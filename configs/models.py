"""The models, each as one function that fills in `config.model` and the recipe of its paper.

`apply(config, variant, ...)` is called by the files of the data sets, which then set what their
data asks for. Sizes and recipes are those published for COCO and Flickr30K (36 regions, 2048 wide).
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

BERT = "bert-base-uncased"


def bert_text() -> ConfigDict:
    """Fields of a BERT text encoder."""
    text = ConfigDict()
    text.encoder = "bert"
    text.pretrained = ""  # directory with a Hugging Face BERT; its sizes replace those below
    text.num_layers = 6  # the first layers are used
    text.width = 768
    text.num_heads = 12
    text.mlp_dim = 3072
    text.dropout = 0.1
    return text


def gru_text(bidirectional: bool = True) -> ConfigDict:
    """Fields of a recurrent text encoder over learned word embeddings."""
    text = ConfigDict()
    text.encoder = "gru"
    text.width = 300  # of the word embeddings
    text.bidirectional = bidirectional  # the mean of both directions
    return text


def teran_section() -> ConfigDict:
    """Fields of TERAN and TERN."""
    model = ConfigDict()
    model.name = "teran"
    model.text = bert_text()
    model.text_layers = 0  # transformer layers after BERT
    model.box_encoding = "concat-and-process"  # or project-and-sum, none
    model.region_layers = 4  # at the width of the region features
    model.embed_dim = 1024
    model.top_layers = 2  # on each side, at embed_dim
    model.shared_top = False  # one stack of top layers for both sides
    model.num_heads = 4
    model.mlp_dim = 2048
    model.dropout = 0.1
    model.score = "alignment"  # or pooled (TERN)
    model.alignment = "MrSw"  # MrSw MrAVGw MrLSEw MwSr symm sum mean scan-sentences
    model.pooling = "first"  # first mean sum sum-and-map gated gru last gpo attention
    model.teran_parity = False  # padding as in the public TERAN code; for its published weights
    model.dtype = "float32"  # of computation; bfloat16 on TPUs and GPUs
    return model


def matcher_section(text: ConfigDict, similarity: ConfigDict) -> ConfigDict:
    """Fields of all other models: encoders and a similarity, assembled from parts."""
    model = ConfigDict()
    model.name = "matcher"
    model.text = text
    model.embed_dim = 1024
    model.projection = "linear"  # of the region features; or residual-mlp
    model.unit_tokens = False  # regions and words get unit length before reasoning and pooling
    model.reasoning = ConfigDict({"name": "none"})  # or transformer, affinity, graphs
    model.image_pooling = "mean"  # mean sum gru last gpo attention ...
    model.text_pooling = "mean"
    model.similarity = similarity
    model.dropout = 0.0
    model.dtype = "float32"
    return model


def graphs_section() -> ConfigDict:
    """Fields of reasoning by a spatial and a semantic graph."""
    graphs = ConfigDict()
    graphs.name = "graphs"
    graphs.spatial = "iou"  # none iou directional polar-gaussian polar-classes
    graphs.semantic = "binary"  # none binary predicates; from the data's relations
    graphs.merge = "mean"  # mean gate chain
    graphs.num_layers = 2  # graph convolutions on each graph
    graphs.iou_threshold = 0.4
    graphs.relation_threshold = 0.2  # relations with less confidence are no edges
    graphs.relation_top_k = 25  # relations of an image; 0: all
    return graphs


def recipe(
    config: ConfigDict,
    captions: int,
    *,
    batch_size: int = 128,
    learning_rate: float = 5e-4,
    epochs: int = 25,
    decay_epoch: int = 15,
) -> int:
    """Adam with one decay by 10; returns the steps of an epoch over `captions` pairs."""
    epoch = captions // batch_size
    config.train.update(batch_size=batch_size, steps=epochs * epoch, evaluate_every=epoch)
    config.optimizer.update(learning_rate=learning_rate, decay_steps=(decay_epoch * epoch,))
    return epoch


def _modern(config: ConfigDict, epoch: int) -> None:
    """What VSE-infinity added to the recipe: AdamW, slow BERT, warm-up, noise on both inputs."""
    config.optimizer.update(weight_decay=1e-4)
    config.loss.sum_steps = epoch
    config.augment.update(region_dropout=0.2, token_masking=0.2)


def _words(config: ConfigDict) -> None:
    config.data.update(tokenizer="words", min_word_count=4, max_tokens=60)


def _bert(config: ConfigDict) -> ConfigDict:
    """All 12 layers of BERT, at a tenth of the learning rate."""
    config.data.update(tokenizer=BERT, max_tokens=60)
    config.optimizer.multipliers = (("(^|/)bert/", 0.1),)
    text = bert_text()
    text.update(pretrained=BERT, num_layers=12)
    return text


def teran(config: ConfigDict, captions: int) -> None:
    """TERAN (Messina et al., TOMM 2021)."""
    config.model = teran_section()
    config.model.text.pretrained = BERT
    config.data.update(tokenizer=BERT, max_tokens=88)
    config.loss.positives = "diagonal"
    recipe(config, captions, batch_size=40, learning_rate=1e-5, epochs=30, decay_epoch=20)


def vse(config: ConfigDict, captions: int) -> None:
    """VSE++ (Faghri et al., BMVC 2018) on region features: mean region, last state of a GRU."""
    config.model = matcher_section(gru_text(bidirectional=False), ConfigDict({"name": "dot"}))
    config.model.text_pooling = "last"
    _words(config)
    recipe(config, captions, learning_rate=2e-4, epochs=30)


def vse_infinity(config: ConfigDict, captions: int) -> None:
    """VSE-infinity (Chen et al., CVPR 2021): learned pooling on both sides."""
    config.model = matcher_section(_bert(config), ConfigDict({"name": "dot"}))
    config.model.projection = "residual-mlp"
    config.model.update(image_pooling="gpo", text_pooling="gpo")
    _modern(config, recipe(config, captions))


def vsrn(config: ConfigDict, captions: int) -> None:
    """VSRN (Li et al., ICCV 2019) without its language model: learned graph, GRU over regions."""
    config.model = matcher_section(gru_text(bidirectional=False), ConfigDict({"name": "dot"}))
    config.model.update(embed_dim=2048, image_pooling="gru", text_pooling="last")
    config.model.reasoning = ConfigDict({"name": "affinity", "num_layers": 4})
    _words(config)
    recipe(config, captions, learning_rate=2e-4, epochs=30)


def scan(config: ConfigDict, captions: int) -> None:
    """SCAN (Lee et al., ECCV 2018): words attend to regions."""
    similarity = ConfigDict({"name": "cross-attention", "direction": "t2i", "smooth": 9.0})
    similarity.sharpness = 0.0  # of LogSumExp pooling over words or regions; 0: their mean
    config.model = matcher_section(gru_text(), similarity)
    config.model.unit_tokens = True
    _words(config)
    recipe(config, captions, learning_rate=2e-4, epochs=30)


def chan(config: ConfigDict, captions: int) -> None:
    """CHAN (Pan et al., CVPR 2023): each word assigned to its best region."""
    similarity = ConfigDict({"name": "alignment", "mode": "MrAVGw"})
    config.model = matcher_section(_bert(config), similarity)
    config.model.unit_tokens = True
    config.model.reasoning = ConfigDict(
        {"name": "transformer", "num_layers": 1, "num_heads": 4, "mlp_dim": 2048}
    )
    _modern(config, recipe(config, captions))
    config.loss.margin = 0.05


def _sgraf(config: ConfigDict, captions: int, similarity: ConfigDict, epochs: int) -> None:
    similarity.update(width=256, smooth=9.0)
    config.model = matcher_section(gru_text(), similarity)
    config.model.update(unit_tokens=True, dropout=0.4)
    config.model.update(image_pooling="attention", text_pooling="attention")
    _words(config)
    recipe(config, captions, learning_rate=2e-4, epochs=epochs, decay_epoch=epochs - 10)


def sgr(config: ConfigDict, captions: int) -> None:
    """SGRAF's SGR (Diao et al., AAAI 2021): similarity vectors reason as a graph."""
    _sgraf(config, captions, ConfigDict({"name": "sgr", "num_steps": 3}), epochs=40)


def saf(config: ConfigDict, captions: int) -> None:
    """SGRAF's SAF: similarity vectors, gated and pooled."""
    _sgraf(config, captions, ConfigDict({"name": "saf"}), epochs=30)


def cmsei(config: ConfigDict, captions: int) -> None:
    """CMSEI-R, a reconstruction in the spirit of CMSEI (Ge et al., WACV 2023)."""
    similarity = ConfigDict({"name": "cmsei"})
    similarity.interaction = True  # attention between objects and words
    similarity.object_sentence = True  # cross-level attention of the objects
    similarity.word_image = True  # and of the words
    similarity.smooth_regions = 4.0  # inverse temperatures of the interaction
    similarity.smooth_words = 9.0
    similarity.global_weight = 1.0  # of the dot product that retrieves alone
    config.model = matcher_section(_bert(config), similarity)
    config.model.unit_tokens = True
    config.train.encode_parts = 4  # a step of 128 pairs then fits into 4 GiB beside the state
    config.model.reasoning = graphs_section()
    config.data.max_relations = 25
    _modern(config, recipe(config, captions))
    # The dot product is trained to find candidates; the rest re-ranks the best of them.
    config.loss.pooled_weight = 1.0
    config.evaluate.rerank_top_k = 50


# name: (model, what the variant changes of it)
VARIANTS: dict[str, tuple[Callable[[ConfigDict, int], None], dict[str, Any]]] = {
    "teran": (teran, {}),
    "teran_shared": (teran, {"model.shared_top": True}),
    "teran_symm": (teran, {"model.alignment": "symm"}),
    "teran_mwsr": (teran, {"model.alignment": "MwSr"}),
    # TERN (Messina et al., ICPR 2020): the same encoders, one vector for each side.
    "tern": (teran, {"model.score": "pooled"}),
    # The vectors taught by the alignment scores of the same encoders, as in ALADIN.
    "tern_distilled": (
        teran,
        {"model.score": "pooled", "model.alignment": "MrAVGw", "loss.distill_weight": 1.0},
    ),
    "vse": (vse, {}),
    "vse_infinity": (vse_infinity, {}),
    "vsrn": (vsrn, {}),
    "chan": (chan, {}),
    "scan_t2i": (scan, {}),
    "scan_i2t": (scan, {"model.similarity.direction": "i2t", "model.similarity.smooth": 4.0}),
    "saf": (saf, {}),
    "sgr": (sgr, {}),
    "cmsei": (cmsei, {}),
    "cmsei_no_spatial": (cmsei, {"model.reasoning.spatial": "none"}),
    "cmsei_no_semantic": (cmsei, {"model.reasoning.semantic": "none"}),
    "cmsei_no_graphs": (
        cmsei,
        {"model.reasoning.spatial": "none", "model.reasoning.semantic": "none"},
    ),
    "cmsei_no_interaction": (cmsei, {"model.similarity.interaction": False}),
    "cmsei_no_object_sentence": (cmsei, {"model.similarity.object_sentence": False}),
    "cmsei_no_word_image": (cmsei, {"model.similarity.word_image": False}),
}


def apply(config: ConfigDict, variant: str, captions: int) -> dict[str, Any]:
    """Makes `config` that of one model, with the recipe of its paper.

    Args:
      config: from `common.get_config`.
      variant: a key of VARIANTS.
      captions: captions of the training split, of which an epoch consists.

    Returns:
      What the variant changes, by path: a data set that changes the model's fields afterwards
      gives it to `config.update_from_flattened_dict` once more.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is not known; use one of {', '.join(VARIANTS)}")
    model, changes = VARIANTS[variant]
    model(config, captions)
    config.update_from_flattened_dict(changes)
    return changes


def spare_costly_pairs(config: ConfigDict, *, candidates: int, rerank_top_k: int) -> None:
    """Trains and scores costly pair models on candidates of the pooled vectors, with InfoNCE."""
    name = config.model.get("similarity", {}).get("name")
    if name in ("saf", "sgr", "cmsei"):
        config.loss.update(pooled_weight=1.0, candidates=candidates)
        config.evaluate.rerank_top_k = rerank_top_k
    if name == "cmsei":
        config.loss.temperature = 0.1  # its score is the sum of three cosines, not one
