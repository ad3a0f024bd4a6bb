"""An index of a few drawn pictures and a model of random parameters, and a server that shows it."""

import contextlib
import socket
import threading

import jax
import numpy as np

from configs import demo
from data_pipeline.synthetic import SyntheticScenes
from data_pipeline.tokenizer import WordTokenizer, find_words
from xmodal_jax.export import ExportedModel
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import encoder_spec
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item, Part
from xmodal_jax.retrieval.serve import make_server

COUNT = 8  # drawn pictures, with 12 regions each
BARE = "no picture"  # id of an item more
MARKUP = "<img src=x onerror=alert(1)>.png"  # of another, whose file does not exist


def scenes():
    return SyntheticScenes({"test": COUNT}, name="tiny")


def random_model(variant="teran"):
    """A model for drawn scenes, a few numbers wide; it knows the words of their captions."""
    source = scenes()
    texts = [text for n in range(COUNT) for text in source.read("test", n)["captions"]]
    tokenizer = WordTokenizer(sorted({word for text in texts for word in find_words(text)}))
    config = demo.get_config(variant).unlock()
    config.model.embed_dim = config.model.text.width = 16
    if variant == "teran":
        config.model.text.update(num_layers=1, num_heads=2, mlp_dim=16)
        config.model.update(region_layers=1, num_heads=2, mlp_dim=16)
    model = build_model(config.model, source.feature_width, tokenizer.vocab_size)
    spec = encoder_spec(1, 12, source.feature_width, 24)
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in spec.items()}
    params = jax.jit(model.init)(jax.random.key(0), zeros)["params"]
    return ExportedModel(model, params, tokenizer, source.feature_width, 12, 24, 0, ())


def tiny_index(directory, variant="teran", extra=()):
    """An index with its pictures beside it.

    Args:
      directory: gets the index and `pictures`.
      variant: of the demo's models.
      extra: items more, with the regions of the first picture.
    """
    model, source = random_model(variant), scenes()
    pictures = directory / "pictures"
    pictures.mkdir()
    read = [source.read("test", n) for n in range(COUNT)]
    for number, example in enumerate(read):
        source.image("test", number).save(pictures / example["file_name"])
    names = [example["file_name"] for example in read]
    items = [Item(name, name, (128, 128)) for name in names]
    items += [Item(BARE), Item(MARKUP, MARKUP, (200, 100)), *extra]
    read += [read[0]] * (len(items) - COUNT)
    regions = np.stack([example["regions"] for example in read]).astype(np.float32)
    boxes = np.stack([example["boxes"] for example in read])
    encoded = jax.tree.map(np.asarray, model.encode_image(regions, boxes))
    part = Part(items, encoded, boxes)
    return Index.build(directory / "index", model, [part], pictures=pictures)


@contextlib.contextmanager
def served(app, **how):
    """A server of an application in a thread, made with `how`; gives its port."""
    server, listening = make_server(app, **how), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            assert thread.is_alive()
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
