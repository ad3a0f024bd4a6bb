"""Images of a dataset as a search encodes them: relations by the names of their predicates."""

import jax
import numpy as np
import pytest

from data_pipeline.region_captions import build_dataset, open_dataset
from data_pipeline.scenes import PREDICATES
from data_pipeline.synthetic import SyntheticScenes
from data_pipeline.tokenizer import WordTokenizer
from tests.tiny_models import tiny_config
from xmodal_jax.errors import UserError
from xmodal_jax.export import ExportedModel
from xmodal_jax.models import build_model
from xmodal_jax.models.batch import batch_spec
from xmodal_jax.retrieval.collection import Collection
from xmodal_jax.retrieval.index import Index

COUNT, RELATIONS = 4, 64


class Renamed(SyntheticScenes):
    """The same scenes, whose predicates are called otherwise."""

    def __init__(self, name, predicates):
        super().__init__({"test": COUNT}, name=name)
        self._names = predicates

    @property
    def predicates(self):
        return self._names


class Turned(Renamed):
    """The same relations under the same names, in the opposite order."""

    def __init__(self):
        super().__init__("turned", list(PREDICATES[::-1]))

    def read(self, split, index):
        example = super().read(split, index)
        relations = example["relations"].copy()
        relations[:, 1] = len(PREDICATES) - 1 - relations[:, 1]
        return example | {"relations": relations}


KNOWN = PREDICATES[:3]
SOURCES = (
    SyntheticScenes({"test": COUNT}, name="same"),
    Turned(),
    Renamed("some", [name if name in KNOWN else f"other {name}" for name in PREDICATES]),
    Renamed("none", [f"other {name}" for name in PREDICATES]),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    for source in SOURCES:
        build_dataset(source, directory)
    return directory


def exported(semantic):
    changes = {"model.reasoning.semantic": semantic, "model.reasoning.relation_top_k": 0}
    config = tiny_config("cmsei", **changes)
    config.data.update(max_regions=12, max_relations=RELATIONS)
    width = SOURCES[0].feature_width
    tokenizer = WordTokenizer.from_counts({"red": 2, "dog": 2}, 1)
    model = build_model(config.model, width, tokenizer.vocab_size, len(PREDICATES))
    spec = batch_spec(config, width)
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in spec.items()}
    shapes = jax.eval_shape(model.init, jax.random.key(0), zeros)["params"]
    # Those that labels have begin at 0.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    return ExportedModel(model, params, tokenizer, width, 12, 8, RELATIONS, PREDICATES)


@pytest.fixture(scope="module")
def labelled():
    return exported("predicates")


def encoded(data, name, model):
    """Regions [n, R, D] of all images."""
    (part,) = Collection(open_dataset(data, name), "test", model).images()
    return np.asarray(part.embeddings.tokens)


def by_hand(model, keep=PREDICATES):
    """The same of the scenes themselves, with relations of some predicates only."""
    found = []
    for number in range(COUNT):
        example = SOURCES[0].read("test", number)
        relations = example["relations"]
        relations = relations[[PREDICATES[p] in keep for p in relations[:, 1]]]
        padded = np.zeros((1, RELATIONS, 3), np.int32)
        padded[0, : len(relations)] = relations
        scores = (np.arange(RELATIONS) < len(relations)).astype(np.float32)[None]
        inputs = example["regions"][None], example["boxes"][None].astype(np.float32)
        found.append(model.encode_image(*inputs, relations=(padded, scores)).tokens[0])
    return np.array(found)


def test_predicates_are_known_by_their_names(data, labelled):
    expected = by_hand(labelled)
    for name in ("same", "turned"):
        np.testing.assert_allclose(encoded(data, name, labelled), expected, atol=1e-5)
    assert np.abs(by_hand(labelled, KNOWN) - expected).max() > 1e-3


def test_relations_of_unknown_predicates_are_left_out(data, labelled, caplog):
    found = encoded(data, "some", labelled)
    np.testing.assert_allclose(found, by_hand(labelled, KNOWN), atol=1e-5)
    assert "does not know 4 of the 7 predicates of region_captions/some/" in caplog.text


def test_a_dataset_of_none_of_the_predicates_is_refused(data, labelled):
    with pytest.raises(
        UserError, match="none of the 7 predicates of region_captions/none/.*'other left of'"
    ):
        Collection(open_dataset(data, "none"), "test", labelled)


def test_a_model_that_reads_no_names_takes_all(data):
    model = exported("binary")
    assert (encoded(data, "none", model) == encoded(data, "same", model)).all()


def test_one_image_is_encoded_as_all_are(data, labelled, tmp_path):
    collection = Collection(open_dataset(data, "turned"), "test", labelled)
    expected = by_hand(labelled)
    id = collection.image_items()[2].id
    np.testing.assert_allclose(collection.image(id).tokens[0], expected[2], atol=1e-5)
    with pytest.raises(
        UserError, match="the split 'test' of region_captions/turned/.* has no image 'x'; .*turned"
    ):
        collection.image("x")
    # And so is one that comes as arrays.
    example = SOURCES[0].read("test", 2)
    index = Index.build(tmp_path / "index", labelled, side="captions")
    inputs = example["regions"], example["boxes"].astype(np.float32)
    relations = example["relations"], example["relation_scores"]
    tokens = index.image_query(*inputs, relations).one.tokens
    np.testing.assert_allclose(tokens, expected[2], atol=1e-5)
    assert np.abs(index.image_query(*inputs).one.tokens - expected[2]).max() > 1e-3
    assert index.query_image(*inputs, relations=relations).hits == []
