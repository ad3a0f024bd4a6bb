"""Flickr30K Entities: the reader on files as they are published, and grounding by hand."""

import numpy as np
import pytest

from data_pipeline.entities import Phrase, read_entities
from data_pipeline.errors import DataError
from tests.test_evaluators import CAPTIONS, Given, blocks, four_devices
from xmodal_jax.evaluators.encoding import Encoder
from xmodal_jax.evaluators.grounding import GroundingEvaluator, hits

SENTENCES = """[/EN#5/people A man] in [/EN#6/clothing an orange hat] at [/EN#7/other something] .
[/EN#5/people The man] stands by [/EN#0/notvisual there] , near [/EN#9/scene the street]
"""
XML = """<annotation><filename>12.jpg</filename><size><width>200</width><height>100</height></size>
<object><name>5</name><bndbox><xmin>20</xmin><ymin>10</ymin><xmax>60</xmax><ymax>90</ymax></bndbox>
</object><object><name>6</name><name>7</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>20</xmax>
<ymax>20</ymax></bndbox></object><object><name>6</name><bndbox><xmin>100</xmin><ymin>50</ymin>
<xmax>220</xmax><ymax>100</ymax></bndbox></object>
<object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""


@pytest.fixture
def directory(tmp_path):
    for part, name, content in (
        ("Sentences", "12.txt", SENTENCES),
        ("Annotations", "12.xml", XML),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / name).write_text(content)
    return tmp_path


def test_phrases_are_found_in_captions_with_other_spaces(directory):
    # As in Karpathy's JSON: no space before the full stop.
    texts = [
        "The man stands by there, near the street",
        "A man in an orange hat at something.",
    ]
    found = read_entities(directory, ["12.jpg"], [[*texts, "another caption"]])
    assert found.unknown == 1
    first, second, third = found.phrases
    assert [texts[0][p.start : p.end] for p in first] == ["The man"] and third == []
    assert [texts[1][p.start : p.end] for p in second] == ["A man", "an orange hat", "something"]
    np.testing.assert_allclose(second[0].boxes, [[0.1, 0.1, 0.3, 0.9]])
    np.testing.assert_allclose(second[1].boxes, [[0, 0, 0.1, 0.2], [0.5, 0.5, 1, 1]])
    np.testing.assert_allclose(second[2].boxes, [[0, 0, 0.1, 0.2]])


def test_damaged_annotations_are_one_line(directory, tmp_path):
    def said(names=("12.jpg",), texts=(("The man stands by there , near the street",),)):
        with pytest.raises(DataError) as error:
            read_entities(directory, names, texts)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "knows none of the 1 captions" in said(names=("13.jpg",))
    (directory / "Annotations" / "12.xml").write_text(XML.replace("<width>200", "<width>0"))
    assert "12.xml is no annotation of Flickr30K Entities" in said()
    (directory / "Annotations" / "12.xml").write_text(XML[:100])
    assert "12.xml is no annotation" in said()
    (directory / "Annotations" / "12.xml").unlink()
    assert "12.xml is no annotation" in said()
    (directory / "Annotations" / "12.xml").write_text(XML)
    (directory / "Sentences" / "12.txt").write_text(SENTENCES.replace("man]", "man"))
    assert "has a phrase that does not end" in said()
    with pytest.raises(DataError, match="has no Sentences; give the directory of Flickr30K"):
        read_entities(tmp_path / "none", [], [])


def test_pointing_and_overlap_by_hand():
    true = np.array([[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0]])
    assert hits(np.array([0.5, 0.5, 1.0, 1.0]), true) == (True, True)
    # Its centre (0.55, 0.55) is inside, and 0.01 of 0.28 is shared.
    assert hits(np.array([0.5, 0.5, 0.6, 0.6]), true) == (True, False)
    # Twice as wide as the second: half is shared, and the centre lies on its edge.
    assert hits(np.array([0.0, 0.5, 1.0, 1.0]), true) == (True, True)
    assert hits(np.array([0.2, 0.2, 0.5, 0.5]), true) == (False, False)
    assert hits(np.array([0.3, 0.3, 0.3, 0.3]), true) == (False, False)


def test_grounding_equals_loops():
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(10, 3, 4)).astype(np.float32)
    corners = rng.uniform(0, 0.5, (10, 3, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 0.4], axis=-1)
    boxes[4] = 0  # the regions of one image have none, and its phrases are no misses
    table = rng.normal(size=(20, 4)).astype(np.float32)
    tokens = rng.integers(0, 20, (CAPTIONS, 7)).astype(np.int32)
    lengths, own = rng.integers(3, 8, CAPTIONS), np.sort(rng.integers(0, 10, CAPTIONS))
    n = np.arange(7)
    words = (n > 0) & (n < lengths[:, None] - 1)
    images = lambda: blocks(
        10,
        regions=regions,
        boxes=boxes,
        region_mask=np.ones((10, 3), bool),
        image_id=np.arange(10) * 5,
    )
    captions = lambda: blocks(
        CAPTIONS,
        tokens=tokens,
        token_mask=n < lengths[:, None],
        image_id=own * 5,
        caption_id=np.arange(CAPTIONS) + 100,
        offsets=np.where(words[..., None], np.stack([10 * n, 10 * n + 5], -1), 0),
    )
    phrases, expected = {}, []
    for c in range(CAPTIONS):
        last = int(rng.integers(1, 7))
        true = boxes[own[c], rng.integers(0, 3, 1)]
        phrases[c + 100] = [Phrase(10, 10 * last + 5, true)]
        inside = [k for k in range(1, last + 1) if words[c, k]]
        if inside and own[c] != 4:
            sums = [sum(float(r @ table[tokens[c, k]]) for k in inside) for r in regions[own[c]]]
            expected.append(hits(boxes[own[c], int(np.argmax(sums))], true))
    evaluator = GroundingEvaluator(Encoder(Given(), four_devices()), images, captions, phrases)
    found = dict(evaluator.run({"table": table}))
    points, overlaps = 100 * np.mean(expected, axis=0)
    assert 0 < overlaps < 100
    assert found == pytest.approx({"grounding/points": points, "grounding/overlaps": overlaps})
