"""The words and regions of a report's examples: which pairs, their alignments, and the page."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.test_evaluators import BATCH, IMAGES, WIDTH, Given, blocks, four_devices
from tests.test_report import make_collection, make_report, make_scores
from xmodal_jax import visualize
from xmodal_jax.evaluators.encoding import Encoder
from xmodal_jax.evaluators.pairs import PairAligner
from xmodal_jax.matched_words import Alignment, MatchedWord
from xmodal_jax.report.examples import SHOWN, SHOWN_RIGHT, Example, pairs_of, shown_pairs
from xmodal_jax.report.page import render_page
from xmodal_jax.report.pictures import Pictures

BOXES = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0]])
WORDS = [MatchedWord("<dog>", 0, 5, 0, 0.5), MatchedWord("runs", 6, 10, 1, -0.25)]


def test_pairs_are_the_right_one_and_that_of_the_best_result():
    report = make_report(make_scores(strength=0.1))
    rows = make_collection().caption_rows()
    scores = make_scores(strength=0.1)
    for place in range(len(rows)):
        right, best = pairs_of(report, Example("t2i", place))
        assert right == (rows[place], place)
        assert best == (int(scores[:, place].argmax()), place)
    for place in range(len(scores)):
        right, best = pairs_of(report, Example("i2t", place))
        assert best == (place, int(scores[place].argmax()))
        own = np.flatnonzero(rows == place)
        assert right[0] == place and right[1] in own
        top = report.tables["i2t"].top[place]
        if len(found := [target for target in top if target in own]):
            assert right[1] == own[scores[place, own].argmax()] == found[0]
    pairs = shown_pairs(report)
    assert len(set(pairs)) == len(pairs) <= 4 * SHOWN + 2 * SHOWN_RIGHT


def loop_words(regions, words):
    """The best region of each word and their products, one pair of vectors after another."""
    found = []
    for word in words:
        products = [sum(float(a) * float(b) for a, b in zip(r, word, strict=True)) for r in regions]
        found.append((int(np.argmax(products)), max(products)))
    return found


def test_pairs_of_any_image_and_caption_are_aligned():
    """Regions and words of several counts; of the images only those that are asked are encoded."""
    rng = np.random.default_rng(5)
    ids = np.arange(IMAGES) * 3 + 1
    vectors = rng.normal(size=(IMAGES, 3, WIDTH)).astype(np.float32)
    table = rng.normal(size=(20, WIDTH)).astype(np.float32)
    counts = np.arange(IMAGES) % 3 + 1
    mask = np.arange(3) < counts[:, None]
    boxes = rng.random((IMAGES, 3, 4)).astype(np.float32)
    encoded = []

    def images():
        yield from blocks(IMAGES, regions=vectors, boxes=boxes, region_mask=mask, image_id=ids)

    class Counting(Encoder):
        def images(self, params, batches):
            found = super().images(params, batches)
            encoded.extend(found.image_ids)
            return found

    def texts(captions, owners):
        # Word n of a caption is token n + 1; its number in the table is written in it.
        words = [[int(word) for word in text.split()] for text in captions]
        tokens, token_mask = np.zeros((len(words), 7), np.int32), np.zeros((len(words), 7), bool)
        offsets = np.zeros((len(words), 7, 2), np.int64)
        for row, own in enumerate(words):
            tokens[row, 1 : len(own) + 1] = own
            token_mask[row, : len(own) + 2] = True
            for n, match in enumerate(re.finditer(r"\S+", captions[row])):
                offsets[row, n + 1] = match.span()
        return blocks(
            len(words), tokens=tokens, token_mask=token_mask, image_id=owners, offsets=offsets
        )

    asked = [7, 2, 7, 0, 2]
    captions = ["3 14 15", "9", "2 6 5 3", "5 8", "9 7 9"]
    aligner = PairAligner(Counting(Given(), four_devices()), images, texts)
    found = aligner({"table": table}, ids[asked], captions)
    assert sorted(encoded) == sorted(ids[[0, 2, 7]]) and len(asked) > BATCH
    for row, text, (own, words) in zip(asked, captions, found, strict=True):
        np.testing.assert_array_equal(own, boxes[row][: counts[row]])
        numbers = [int(word) for word in text.split()]
        expected = loop_words(vectors[row][: counts[row]], table[numbers])
        assert [word.text for word in words] == text.split()
        assert [text[word.start : word.end] for word in words] == text.split()
        assert [word.region for word in words] == [region for region, _ in expected]
        products = [product for _, product in expected]
        np.testing.assert_allclose([word.similarity for word in words], products, atol=1e-5)
    assert aligner({"table": table}, np.zeros(0, int), []) == []


def drawings(page):
    found = re.findall(r'<img src="data:image/webp;base64,([^"]+)" width="320"', page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.mark.parametrize("with_pictures", [True, False])
def test_a_page_draws_the_words_of_its_examples(tmp_path, with_pictures):
    report = make_report(make_scores(strength=0.1))
    pairs = shown_pairs(report)
    pictures = None
    if with_pictures:
        names = report.collection.image_names
        for name in names:
            Image.new("RGB", (640, 320), (128, 128, 128)).save(tmp_path / name)
        pictures = Pictures(tmp_path, names)
    page = render_page(report, pictures, dict.fromkeys(pairs, Alignment(BOXES, WORDS)))
    drawn = drawings(page)
    examples = page.count('<article class="example">')
    assert examples and len(drawn) == page.count("<figcaption>right: ") + page.count(
        "<figcaption>best result: "
    )
    assert examples <= len(drawn) <= 2 * examples
    # The frame of the first word: from 0.1 of the width to 0.5, below a picture's rim.
    pixels = np.asarray(drawn[0]).astype(int)
    high = 160 if with_pictures else 240
    colour = np.array([int(visualize.COLOURS[0][at : at + 2], 16) for at in (1, 3, 5)])
    near = np.abs(pixels[:high] - colour).sum(-1) < 90  # WebP keeps colours about so well
    rows, columns = np.nonzero(near)
    assert columns.min() == pytest.approx(32, abs=2) and columns.max() == pytest.approx(159, abs=2)
    assert rows.min() == pytest.approx(0.2 * high, abs=2)
    ground = pixels[5, 5] if with_pictures else pixels[20, 20]
    assert np.abs(ground - (128 if with_pictures else 253)).max() < 8
    assert 'alt="&lt;dog&gt; 0.50, runs -0.25"' in page and "<dog>" not in page
    assert "A frame in a word's colour" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_page_without_alignments_is_as_it_was():
    report = make_report(make_scores(strength=0.1))
    page = render_page(report)
    assert "<img" not in page and "frame in a word" not in page


def test_a_page_stays_small(tmp_path):
    """Of large photographs and long captions; a page has a bounded number of drawings."""
    rng = np.random.default_rng(0)
    names = [f"{n}.jpg" for n in range(20)]
    noise = rng.integers(0, 255, (75, 100, 3)).astype(np.uint8)
    photograph = Image.fromarray(noise).resize((1000, 750), Image.Resampling.BICUBIC)
    for name in names:
        photograph.save(tmp_path / name, quality=60)
    report = make_report(make_scores(strength=0.0))
    report = dataclasses.replace(
        report, collection=dataclasses.replace(report.collection, image_names=names)
    )
    words = [MatchedWord(f"word{n}", 0, 1, n % 2, 0.5) for n in range(20)]
    pairs = shown_pairs(report)
    assert 60 < len(pairs) <= 4 * SHOWN + 2 * SHOWN_RIGHT
    plain = len(render_page(report))
    some = dict.fromkeys(pairs[:10], Alignment(BOXES, words))
    page = render_page(report, Pictures(tmp_path, names), some)
    drawn = len(drawings(page))
    assert drawn >= 10 and len(page) - plain < 50_000 * drawn + 200_000  # and 20 thumbnails
    assert 50_000 * 4 * SHOWN <= 8e6


def test_thumbnails_and_drawings_are_upright(tmp_path):
    lying = Image.new("RGB", (400, 200))
    lying.paste((255, 0, 0), (0, 0, 200, 200))  # upright, turned right by 90 degrees: above
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    pictures = Pictures(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    small = Image.open(io.BytesIO(pictures.thumbnail(0)))
    assert small.size == (56, 112)
    assert small.getpixel((28, 20))[0] > 240 and small.getpixel((28, 90))[0] < 15
    assert pictures.picture(0, 320).size == (200, 400)
    for row in (1, 2):
        assert pictures.picture(row) is None and pictures.thumbnail(row) is None
