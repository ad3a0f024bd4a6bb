"""Every field of a configuration, with its default. The other files start from this one.

A field may be overridden on the command line: --config.optimizer.learning_rate=1e-4. The result is
locked, so that a misspelt field is an error that names its nearest relative.
"""

import ml_collections

from configs import models


def get_config() -> ml_collections.ConfigDict:
    """The defaults; `models.apply` sets those of a model."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # weights to start from: a TERAN .pth.tar or .safetensors, or an export

    config.data = data = ml_collections.ConfigDict()
    data.dir = "data"  # where `python -m data_pipeline.build` writes
    data.name = ""  # which data set in it
    data.build_synthetic = False  # build it at the first run (the demo scenes), with these sizes
    data.synthetic_sizes = ml_collections.ConfigDict({"train": 4000, "dev": 500, "test": 500})
    data.train_split = "train"
    data.tokenizer = "words"  # "words", or a Hugging Face name or directory
    data.min_word_count = 1  # for "words": rarer words of the training captions are unknown
    data.max_regions = 36  # regions an image is padded or cut to
    data.max_tokens = 32  # tokens a caption is padded or cut to, [CLS] and [SEP] included
    # Smaller widths for batches whose captions all fit; each one met compiles the step once more.
    data.token_widths = ()
    data.max_relations = 0  # most confident relations of an image, for a model with scene graphs
    data.shuffle_buffer = 4096  # records
    # Parts in which an epoch is read; a process opens the files of its own. The order of the data
    # depends on it: choose a multiple of the processes that may ever be used.
    data.streams = 1

    config.model = models.teran_section()  # another model has other fields: configs/models.py

    # How pairs are scored: auto, the fastest way that was measured; pairs, each by itself and all
    # with a gradient; mined, only the hardest negatives with one, on fake devices too; fused, in
    # training by a kernel for TPUs, which was never run on one (ops/fused_alignment.py).
    config.scorer = "auto"

    config.loss = loss = ml_collections.ConfigDict()
    loss.kind = "hinge"  # or info_nce, sigmoid
    loss.margin = 0.2  # hinge
    loss.sum_steps = 0  # hinge: first steps with all negatives, before the hardest only
    loss.temperature = 0.05  # info_nce, sigmoid; and of the draw of candidates
    loss.bias = -10.0  # sigmoid
    loss.pooled_weight = 0.0  # adds the same loss on the pooled vectors, with this weight
    # Pair models: score each pair of the batch with so many negatives on either side, drawn by the
    # scores of the first stage, which loss.pooled_weight trains; 0: with the whole batch.
    loss.candidates = 0
    loss.distill_weight = 0.0  # tern_distilled: the pooled vectors learn the alignment's ranking
    loss.distill_temperature = 0.05  # of the pooled scores, and
    loss.teacher_temperature = 0.05  # of the alignment scores
    loss.positives = "image"  # captions of one image are no negatives; "diagonal": the papers'
    loss.chunk = 0  # captions scored at once; 0: chosen by memory

    config.augment = augment = ml_collections.ConfigDict()
    augment.region_dropout = 0.0  # share of regions hidden from the encoder
    augment.token_masking = 0.0  # share of words replaced by the unknown or mask token

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 1e-5
    optimizer.schedule = "step"  # or constant, cosine
    optimizer.decay_steps = ()  # step: where the rate is multiplied by decay_factor
    optimizer.decay_factor = 0.1
    optimizer.warmup_steps = 0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.epsilon = 1e-8
    optimizer.weight_decay = 0.0  # of AdamW; on kernels and embeddings only
    optimizer.clip_norm = 2.0  # global; 0: none
    optimizer.multipliers = ()  # ((path regex, factor of the learning rate), ...)
    optimizer.frozen = ()  # (path regex, ...) of parameters that stay as they are

    config.train = train = ml_collections.ConfigDict()
    train.steps = 1000
    train.batch_size = 40  # over all devices
    # Encode a batch in so many parts, one after another: the activations of one part are held at a
    # time and computed twice. Scores and loss are of the whole batch all the same.
    train.encode_parts = 1
    train.log_every = 10  # steps
    train.evaluate_every = 500
    train.checkpoint_every = 500
    train.keep = 2  # checkpoints, beside the best one

    config.evaluate = evaluate = ml_collections.ConfigDict()
    evaluate.split = "dev"
    evaluate.protocol = "full"  # or 5fold (COCO 1K)
    evaluate.batch_size = 100
    evaluate.pointing = False  # word-to-region accuracy, where the data has true links
    # Pair models: score only the k best of the first stage, for each query; 0: every pair.
    evaluate.rerank_top_k = 0
    evaluate.score = "model"  # or pooled: the dot product of the pooled vectors alone
    evaluate.entities = ""  # directory of Flickr30K Entities: whether phrases find their boxes
    # Wrong versions of the captions, by category: how often does the right one score higher?
    evaluate.probes = False
    # What --mode=evaluate puts into its report.
    evaluate.images = ""  # directory of the image files, for pictures of the examples
    evaluate.spice = ""  # the TERAN reference's relevances of this split, for NDCG with SPICE
    evaluate.teran_parity = False  # also the figures that the TERAN reference would print
    evaluate.alignments = False  # also which region answered which word, for each caption
    evaluate.save_scores = False  # keep the score matrix, for python -m xmodal_jax.report

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # devices over which a batch is split; -1: all that remain
    mesh.model = 1  # devices over which parameters may be split
    # How parameters and optimiser state are split: replicated, fsdp, tensor or fsdp+tensor; see
    # xmodal_jax/partition_presets.py.
    config.partition = "replicated"
    # (path regex, axes of the dimensions); they come before those of `partition`.
    config.partition_rules = ()
    return config.lock()


def locked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with all of its sections locked, those that were put in later too."""
    config.unlock()
    return config.lock()
