"""Pictures of alignments, pixel by pixel where boxes and values say what has to be there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_index import BARE, tiny_index
from xmodal_jax import visualize
from xmodal_jax.errors import UserError
from xmodal_jax.retrieval.pictures import Pictures, draw_answer
from xmodal_jax.visualize import COLOURS, Match, alignment_picture, heat_map

ROOT = Path(__file__).parents[1]
BOXES = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.2, 0.1]])


def rgb(colour):
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def grey(width=200, height=100):
    return Image.new("RGB", (width, height), (128, 128, 128))


def places(drawn, colour):
    """The columns and rows [n, 2] of a colour."""
    return np.argwhere((np.asarray(drawn) == rgb(colour)).all(-1))[:, ::-1]


def test_a_frame_lies_on_the_box_of_its_region_and_nothing_else_changes():
    """400 wide: the 200 by 100 of the picture become 400 by 200."""
    words = [Match("dog", 0, 0.5), Match("sofa", 1, 0.25)]
    drawn = alignment_picture(grey(), BOXES, words, width=400)
    above = np.asarray(drawn)[:200]
    expected = np.full((200, 400, 3), 128, np.uint8)
    # Columns and rows by hand: x1 = 0.1 * 400, the last one 0.5 * 400 - 1; three pixels wide.
    expected[39:121, 39:201] = rgb(visualize.INK)
    expected[40:120, 40:200] = rgb(COLOURS[0])
    expected[43:117, 43:197] = 128
    # The second box reaches the picture's corner, where its dark line is cut off.
    expected[99:200, 199:400] = rgb(visualize.INK)
    expected[100:200, 200:400] = rgb(COLOURS[1])
    expected[103:197, 203:397] = 128
    assert (above == expected).all()


def test_a_region_of_several_words_has_a_frame_for_each():
    words = [Match(text, 0, 0.5) for text in "abc"]
    drawn = np.asarray(alignment_picture(grey(), BOXES, words, width=400))
    row = [tuple(pixel) for pixel in drawn[80, 38:52].tolist()]
    line = [(128, 128, 128), rgb(visualize.INK)]
    for colour in COLOURS[:3]:
        line += [rgb(colour)] * 3
    assert row == [*line, *[(128, 128, 128)] * 3]


def test_a_small_region_keeps_the_frames_that_it_has_room_for():
    tiny = np.array([[0.5, 0.5, 0.52, 0.54]])  # 8 by 8 pixels
    words = [Match(str(n), 0, 0.1) for n in range(5)]
    drawn = np.asarray(alignment_picture(grey(), tiny, words, width=400))[:200]
    changed = np.argwhere((drawn != 128).any(-1))
    assert changed.min(0).tolist() == [99, 199] and changed.max(0).tolist() == [108, 208]


@pytest.mark.parametrize("similarity", [0.0, 0.25, 0.5, 1.0, -0.3])
def test_a_bar_is_as_long_as_the_similarity(similarity):
    words = [Match("dog", 0, 1.0), Match("sofa", 0, similarity)]
    drawn = alignment_picture(grey(), BOXES, words, width=400)
    legend = drawn.crop((0, 200, *drawn.size))
    longest = max(np.ptp(places(legend, COLOURS[0])[:, 0]), 1)
    start = legend.width - longest
    marks = [places(legend, colour) for colour in COLOURS[:2]]
    # The mark before the word has the colour, too: bars begin where the full one does.
    mark = marks[0][:, 0].min()
    full = np.setdiff1d(marks[0][:, 0], np.arange(mark, mark + 13))
    own = np.setdiff1d(marks[1][:, 0], np.arange(mark, mark + 13))
    assert start > 0 and full.min() == full.max() - len(full) + 1
    expected = max(similarity, 0) * (len(full) - 1)
    assert len(own) == pytest.approx(expected + (similarity > 0), abs=1)
    assert len(marks[1]) > 100  # the mark itself


def test_without_a_picture_all_boxes_are_drawn_on_a_sheet_of_its_shape():
    drawn = alignment_picture(None, BOXES, [Match("dog", 0, 0.5)], width=400, size=(100, 50))
    sheet = drawn.crop((0, 0, 400, 200))
    assert sheet.getpixel((300, 20)) == rgb(visualize.PAPER)
    for x, y in ((200, 150), (300, 100), (79, 10), (20, 19)):  # edges of the other two
        assert sheet.getpixel((x, y)) == rgb(visualize.RULE)
    assert sheet.getpixel((40, 80)) == rgb(COLOURS[0])
    assert alignment_picture(None, BOXES, [], width=400).size == (400, 300)


def test_a_title_and_long_words_stay_within_the_width():
    words = [Match("w" * 300, 0, 0.5), Match("x", 1, -1.0)]
    title = "a sentence that goes on " * 8 + "y" * 200
    drawn = alignment_picture(grey(), BOXES, words, title=title, width=240)
    pixels = np.asarray(drawn)
    assert drawn.width == 240
    plain = alignment_picture(grey(), BOXES, words, width=240)
    above = drawn.height - plain.height
    assert above > 100 and (pixels[above:] == np.asarray(plain)).all()
    for edge in (pixels[:above, :8], pixels[:above, -8:]):
        assert (edge == rgb(visualize.PAPER)).all()


def test_a_picture_that_lies_on_its_side_is_put_upright(tmp_path):
    """Its boxes were made of the upright one, as every viewer shows it."""
    lying = Image.new("RGB", (200, 100))
    lying.paste((255, 0, 0), (0, 0, 100, 100))  # upright, turned right by 90 degrees: above
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.save(tmp_path / "a.png", exif=exif)
    drawn = alignment_picture(Image.open(tmp_path / "a.png"), BOXES, [], width=100)
    assert drawn.size == (100, 200)
    assert drawn.getpixel((50, 50)) == (255, 0, 0) and drawn.getpixel((50, 150)) == (0, 0, 0)


def test_boxes_that_reach_out_of_the_picture_are_cut():
    boxes = np.array([[-0.5, -0.5, 1.5, 1.5], [1.0, 1.0, 1.0, 1.0]])
    words = [Match("a", 0, 0.5), Match("b", 1, 0.5)]
    drawn = alignment_picture(grey(), boxes, words, width=400)
    assert drawn.getpixel((0, 0)) == drawn.getpixel((0, 199)) == rgb(COLOURS[0])


def test_a_word_of_another_image_is_one_line():
    with pytest.raises(UserError, match="'dog' is answered by region 3 and there are 3 boxes"):
        alignment_picture(grey(), BOXES, [Match("dog", 3, 0.5)])


def test_colours_are_those_of_the_page():
    style = (ROOT / "xmodal_jax/retrieval/web/style.css").read_text()
    found = dict(re.findall(r"^\.c(\d) \{ --c: (#\w{6}); \}", style, re.MULTILINE))
    assert found == {str(n): colour for n, colour in enumerate(COLOURS)}


def test_fields_of_a_heat_map_have_the_colour_of_their_value():
    cosines = np.array([[0.0, 1.0, 0.2], [0.6, 0.5, -1.0]])
    drawn = heat_map(cosines, ["a", "dog", "barks"], cell=50)
    pixels = np.asarray(drawn)
    scaled = (cosines + 1) / 2
    lightness = []
    shades = visualize.heat_colours(scaled)
    # Fields from the right and the bottom, of 50 by 24 with a gap of 2 and a margin of 12.
    for row in range(2):
        for column in range(3):
            x = drawn.width - 12 - 50 * (3 - column)
            y = drawn.height - 12 - 24 * (2 - row)
            assert pixels[y + 3, x + 3].tolist() == shades[row, column].tolist()
            best = cosines[:, column].argmax() == row
            frame = rgb(visualize.INK) if best else tuple(shades[row, column].tolist())
            assert tuple(pixels[y, x].tolist()) == frame
            lightness.append((scaled[row, column], shades[row, column] @ (0.299, 0.587, 0.114)))
    values = [light for _, light in sorted(lightness)]
    assert all(np.diff(values) > 10)


def test_ends_of_the_scale_are_viridis():
    assert visualize.heat_colours(np.array([0.0, 1.0])).tolist() == [[68, 1, 84], [253, 231, 37]]


@pytest.mark.parametrize(
    ("cosines", "words", "said"),
    [
        (np.zeros((2, 3)), ["a", "b"], "2 regions and 2 words"),
        (np.zeros((0, 3)), ["a", "b", "c"], r"\(0, 3\)"),
        (np.zeros(3), ["a", "b", "c"], r"\(3,\)"),
        (np.array([[np.nan]]), ["a"], "finite"),
    ],
)
def test_a_matrix_that_is_none_is_one_line(cosines, words, said):
    with pytest.raises(UserError, match=said):
        heat_map(cosines, words)


def test_equal_values_have_one_colour():
    drawn = heat_map(np.full((2, 2), 0.3), ["a", "b"], regions=["first", "second"])
    assert drawn.getpixel((drawn.width - 15, drawn.height - 18)) == rgb("#440154")


def test_an_answer_is_drawn_with_pictures_or_without(tmp_path):
    index = tiny_index(tmp_path)
    answer = index.query_text("a red circle", 24)
    ids = [hit.item.id for hit in answer.hits]
    bare, damaged = ids.index(BARE), ids.index("tiny_test_000000.png")
    (tmp_path / "pictures" / ids[damaged]).write_bytes(b"is drawn as one that is not there")
    for hits in (answer.hits[:3], [answer.hits[bare]], [answer.hits[damaged]]):
        part = type(answer)(hits, answer.query, answer.stage, answer.seconds)
        drawn = draw_answer(index, part, Pictures(index.store.about["pictures"]))
        assert drawn.width == 480 * len(hits) + 12 * (len(hits) - 1)
    none = type(answer)([], answer.query, answer.stage, answer.seconds)
    with pytest.raises(UserError, match="nothing to draw"):
        draw_answer(index, none, Pictures(""))
