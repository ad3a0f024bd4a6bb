"""Evaluators on a model that embeds what it is given, so that every number is known by hand."""

from types import SimpleNamespace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax import partitioning
from xmodal_jax.evaluators.encoding import Encoder
from xmodal_jax.evaluators.pointing import PointingEvaluator
from xmodal_jax.evaluators.retrieval import RetrievalEvaluator
from xmodal_jax.ops.alignment import alignment_score
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.metrics import retrieval_metrics

IMAGES, CAPTIONS, REGIONS, WIDTH, BATCH = 6, 11, 3, 4, 4


class Given(nn.Module):
    """Regions are their own embeddings; words those of a table in the parameters."""

    def setup(self):
        self.table = self.param("table", nn.initializers.zeros, (20, WIDTH))

    def encode_image(self, batch):
        regions = batch["regions"]
        return Embeddings(regions, batch["region_mask"], regions[:, 0])

    def encode_text(self, batch):
        words = self.table[batch["tokens"]]
        length = jnp.sum(batch["token_mask"], 1, keepdims=True)
        valid = jnp.arange(words.shape[1])[None, :] < length - 1
        return Embeddings(words[:, 1:], valid[:, 1:], words[:, 0])

    def score(self, image, caption):
        return alignment_score(image, caption, mode="MrSw")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    ids = np.arange(IMAGES) * 3 + 1
    lengths = rng.integers(3, 7, CAPTIONS)
    return SimpleNamespace(
        ids=ids,
        regions=rng.normal(size=(IMAGES, REGIONS, WIDTH)).astype(np.float32),
        table=rng.normal(size=(20, WIDTH)).astype(np.float32),
        tokens=rng.integers(0, 20, (CAPTIONS, 7)).astype(np.int32),
        token_mask=np.arange(7) < lengths[:, None],
        own=np.sort(ids[np.concatenate([np.arange(IMAGES), rng.integers(0, IMAGES, 5)])]),
        lengths=lengths,
    )


def blocks(rows, **arrays):
    """Batches of BATCH rows; the last one is filled up and masked."""
    for start in range(0, rows, BATCH):
        index = np.minimum(np.arange(start, start + BATCH), rows - 1)
        yield {k: v[index] for k, v in arrays.items()} | {
            "mask": np.arange(start, start + BATCH) < rows
        }


def image_batches(data):
    mask = np.ones((IMAGES, REGIONS), bool)
    boxes = np.zeros((IMAGES, REGIONS, 4), np.float32)
    return blocks(IMAGES, regions=data.regions, boxes=boxes, region_mask=mask, image_id=data.ids)


def caption_batches(data):
    # Token n covers characters 10 n to 10 n + 5; special tokens none.
    n = np.arange(7)
    words = (n > 0) & (n < data.lengths[:, None] - 1)
    offsets = np.where(words[..., None], np.stack([10 * n, 10 * n + 5], -1), 0)
    return blocks(
        CAPTIONS,
        tokens=data.tokens,
        token_mask=data.token_mask,
        image_id=data.own,
        caption_id=np.arange(CAPTIONS),
        offsets=offsets,
    )


def test_retrieval_equals_loops(data):
    model = Given()
    encoder = Encoder(model, partitioning.make_mesh())
    evaluator = RetrievalEvaluator(
        model, encoder, lambda: image_batches(data), lambda: caption_batches(data), prefix="dev/"
    )
    found = dict(evaluator.run({"table": data.table}))
    scores = np.zeros((IMAGES, CAPTIONS))
    for i in range(IMAGES):
        for c in range(CAPTIONS):
            words = data.table[data.tokens[c, 1 : data.lengths[c] - 1]]
            scores[i, c] = sum(max(float(r @ w) for r in data.regions[i]) for w in words)
    expected = retrieval_metrics(scores, data.ids, data.own)
    assert found == pytest.approx({f"dev/{k}": v for k, v in expected.items()})


def test_pointing_counts_words_whose_best_region_is_linked(data):
    encoder = Encoder(Given(), partitioning.make_mesh())
    captions, starts, ends, regions, hits = [], [], [], [], 0
    rng = np.random.default_rng(1)
    for c in range(CAPTIONS):
        image = int(np.flatnonzero(data.ids == data.own[c])[0])
        for n in range(1, data.lengths[c] - 1):
            best = int(np.argmax(data.regions[image] @ data.table[data.tokens[c, n]]))
            region = int(rng.integers(0, REGIONS))
            captions.append(c)
            starts.append(10 * n)
            ends.append(10 * n + 5)
            regions.append(region)
            hits += best == region
    links = tuple(np.array(x) for x in (captions, starts, ends, regions))
    evaluator = PointingEvaluator(
        encoder, lambda: image_batches(data), lambda: caption_batches(data), links
    )
    found = dict(evaluator.run({"table": data.table}))
    assert 0 < hits < len(captions)
    assert found == {"pointing": pytest.approx(100 * hits / len(captions))}
