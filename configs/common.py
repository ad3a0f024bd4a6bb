"""Every field of a configuration, with its default. The other files start from this one.

A field may be overridden on the command line: --config.optimizer.learning_rate=1e-4. The result is
locked, so that a misspelt field is an error that names its nearest relative.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The defaults, which are those of TERAN where the paper gives one."""
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
    data.shuffle_buffer = 4096  # records

    config.model = model = ml_collections.ConfigDict()
    model.name = "teran"
    model.text = text = ml_collections.ConfigDict()
    text.pretrained = ""  # directory with a Hugging Face BERT; its sizes replace those below
    text.num_layers = 6  # the first layers are used
    text.width = 768
    text.num_heads = 12
    text.mlp_dim = 3072
    text.dropout = 0.1
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
    model.alignment = "MrSw"  # MrSw MrAVGw MwSr symm sum mean scan-sentences
    model.pooling = "first"  # first mean sum sum-and-map gated gru
    model.teran_parity = False  # padding as in the public TERAN code; for its published weights
    model.dtype = "float32"  # of computation; bfloat16 on TPUs and GPUs

    config.loss = loss = ml_collections.ConfigDict()
    loss.kind = "hinge"  # or info_nce, sigmoid
    loss.margin = 0.2  # hinge
    loss.sum_steps = 0  # hinge: first steps with all negatives, before the hardest only
    loss.temperature = 0.05  # info_nce, sigmoid
    loss.bias = -10.0  # sigmoid
    loss.pooled_weight = 0.0  # adds the same loss on the pooled vectors, with this weight
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
    train.log_every = 10  # steps
    train.evaluate_every = 500
    train.checkpoint_every = 500
    train.keep = 2  # checkpoints, beside the best one

    config.evaluate = evaluate = ml_collections.ConfigDict()
    evaluate.split = "dev"
    evaluate.protocol = "full"  # or 5fold (COCO 1K)
    evaluate.batch_size = 100
    evaluate.pointing = False  # word-to-region accuracy, where the data has true links

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = -1  # devices over which a batch is split; -1: all that remain
    mesh.model = 1  # devices over which parameters may be split
    # (path regex, axes of the dimensions); the first match counts, all else is replicated.
    config.partition_rules = ()
    return config.lock()


def apply_variant(config: ml_collections.ConfigDict, variant: str) -> None:
    """Turns a TERAN configuration into one of its published variants, or into TERN."""
    changes = {
        "teran": {},
        "teran_shared": {"shared_top": True},
        "teran_symm": {"alignment": "symm"},
        "teran_mwsr": {"alignment": "MwSr"},
        "tern": {"score": "pooled"},
    }
    if variant not in changes:
        raise ValueError(f"variant {variant!r} is not known; use one of {', '.join(changes)}")
    config.model.update(changes[variant])
