"""Pictures of why an image and a sentence match: regions by words, and their similarities.

  picture = Image.open("dog.jpg")
  words = [Match("dog", 3, 0.71), Match("grass", 0, 0.55)]
  alignment_picture(picture, boxes, words, title="a dog on grass").save("alignment.png")
  heat_map(cosines, ["a", "dog", "on", "grass"]).save("similarities.png")

Nothing here knows of models or of an index: whoever has boxes, words and similarities can draw
them. The font is Pillow's own, which has Latin letters, so that a picture looks the same anywhere.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from xmodal_jax.errors import UserError

# Those of the web page: light enough for dark letters on them, and to be seen on photographs.
COLOURS = (
    *("#ffb648", "#62bdf5", "#ff8f7d", "#6fd08c"),
    *("#cba6ff", "#ece14a", "#ff9fd0", "#5fdcd3"),
)
PAPER, INK, FAINT, RULE = "#fffdf8", "#16181d", "#5f636b", "#d9d3c6"
# Of a heat map, from the least to the greatest value; its lightness rises evenly (viridis).
_HEAT = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
_LINE, _EDGE = 3, 1  # widths of a box and of the dark line round it
_PAD = 12
_TEXT = 15


class Matched(Protocol):
    """A word and the region that answers it, such as `matched_words.MatchedWord`."""

    @property
    def text(self) -> str: ...

    @property
    def region(self) -> int: ...

    @property
    def similarity(self) -> float: ...


class Match(NamedTuple):
    """A word, the number of its region, and their similarity."""

    text: str
    region: int
    similarity: float


def alignment_picture(
    picture: Image.Image | None,
    boxes: np.ndarray,
    words: Sequence[Matched],
    *,
    title: str = "",
    width: int = 480,
    size: tuple[int, int] = (0, 0),
) -> Image.Image:
    """An image with the region of each word, in the word's colour, and a legend beneath.

    A region that answers several words has a frame for each of them, one within the other.

    Args:
      picture: of any size; without one the regions are drawn on a blank sheet.
      boxes: [R, 4] x1, y1, x2, y2 in 0..1.
      words: in the order of the sentence.
      title: above the picture, such as the whole sentence.
      width: of the drawing, in pixels.
      size: width and height of a picture that is not there, for its shape; unknown: 4 by 3.

    Raises:
      UserError: a word names a region that has no box.
    """
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    for word in words:
        if not 0 <= word.region < len(boxes):
            raise UserError(
                f"word {word.text!r} is answered by region {word.region} and there are "
                f"{len(boxes)} boxes; give those of the same image"
            )
    if picture is None:
        wide, high = size if min(size) > 0 else (4, 3)
    else:
        # As viewers show it, and as its regions were found.
        picture = ImageOps.exif_transpose(picture)
        wide, high = picture.size
    shape = (width, max(1, round(width * high / wide)))
    if picture is None:
        drawn = Image.new("RGB", shape, PAPER)
        draw = ImageDraw.Draw(drawn)
        for box in boxes:
            draw.rectangle(_pixels(box, shape), outline=RULE)
        draw.rectangle((0, 0, shape[0] - 1, shape[1] - 1), outline=RULE)
    else:
        drawn = picture.convert("RGB").resize(shape, Image.Resampling.LANCZOS)
    _frames(drawn, boxes, words)
    parts = [_text_block(title, width)] if title else []
    parts += [drawn, _legend(words, width)] if words else [drawn]
    return _stacked(parts)


def _pixels(box: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """First and last column and row of a box, within the picture."""
    scale = np.array([*shape, *shape])
    x1, y1, x2, y2 = np.clip(np.round(np.clip(box, 0, 1) * scale - [0, 0, 1, 1]), 0, scale - 1)
    return int(x1), int(y1), int(max(x1, x2)), int(max(y1, y2))


def _frames(drawn: Image.Image, boxes: np.ndarray, words: Sequence[Matched]) -> None:
    draw = ImageDraw.Draw(drawn)
    around: dict[int, int] = {}  # frames that a region has so far
    for number, word in enumerate(words):
        x1, y1, x2, y2 = _pixels(boxes[word.region], drawn.size)
        inset = around.get(word.region, 0) * _LINE
        if 2 * inset + 2 * _LINE > min(x2 - x1, y2 - y1) + 1 and inset:
            continue  # No room is left; the legend has the word.
        if not inset:
            # Seen on a light ground as well.
            draw.rectangle(
                (x1 - _EDGE, y1 - _EDGE, x2 + _EDGE, y2 + _EDGE), outline=INK, width=_EDGE
            )
        frame = (x1 + inset, y1 + inset, x2 - inset, y2 - inset)
        draw.rectangle(frame, outline=colour(number), width=_LINE)
        around[word.region] = around.get(word.region, 0) + 1


def colour(word: int) -> str:
    """The colour of a word by its place among the words."""
    return COLOURS[word % len(COLOURS)]


@functools.cache
def _font(size: int = _TEXT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _length(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _shortened(text: str, room: int) -> str:
    """The text, or as much of its beginning as there is room for."""
    if _length(text) <= room:
        return text
    while text and _length(text + "…") > room:
        text = text[:-1]
    return text + "…"


def _text_block(text: str, width: int) -> Image.Image:
    """Text in lines of a width."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer) <= width - 2 * _PAD:
            lines[-1] = longer
        else:
            lines.append(_shortened(word, width - 2 * _PAD))
    line = _TEXT + 5
    block = Image.new("RGB", (width, len(lines) * line + _PAD), PAPER)
    for row, text in enumerate(lines):
        ImageDraw.Draw(block).text((_PAD, _PAD // 2 + row * line), text, INK, _font())
    return block


def _legend(words: Sequence[Matched], width: int) -> Image.Image:
    """A line for each word: its colour, itself, a bar from 0 to 1, the similarity."""
    line, mark, digits = _TEXT + 7, _TEXT - 3, _length("-0.00")
    names = min(max(_length(word.text) for word in words), (width - 4 * _PAD - mark - digits) // 2)
    start = 2 * _PAD + mark + names + _PAD
    room = width - start - digits - 2 * _PAD
    block = Image.new("RGB", (width, len(words) * line + _PAD), PAPER)
    draw = ImageDraw.Draw(block)
    for number, word in enumerate(words):
        top = _PAD // 2 + number * line
        draw.rectangle((_PAD, top + 3, _PAD + mark, top + 3 + mark), fill=colour(number))
        draw.text((2 * _PAD + mark, top), _shortened(word.text, names), INK, _font())
        draw.line((start, top + 9, start + room, top + 9), fill=RULE)
        if (bar := round(np.clip(word.similarity, 0, 1) * room)) > 0:
            draw.rectangle((start, top + 5, start + bar, top + 13), fill=colour(number))
        value = f"{word.similarity:.2f}"
        draw.text((width - _PAD - _length(value), top), value, INK, _font())
    return block


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """One above the other."""
    out = Image.new(
        "RGB", (max(part.width for part in parts), sum(part.height for part in parts)), PAPER
    )
    top = 0
    for part in parts:
        out.paste(part, (0, top))
        top += part.height
    return out


def side_by_side(pictures: Sequence[Image.Image], gap: int = _PAD) -> Image.Image:
    """Pictures in a row, aligned at the top."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    out = Image.new("RGB", (width, max(picture.height for picture in pictures)), PAPER)
    left = 0
    for picture in pictures:
        out.paste(picture, (left, 0))
        left += picture.width + gap
    return out


def heat_map(
    cosines: np.ndarray, words: Sequence[str], *, regions: Sequence[str] = (), cell: int = 44
) -> Image.Image:
    """The similarities of all regions with all words; each word's best region has a frame.

    Args:
      cosines: [R, W]; colours go from the least to the greatest of them.
      words: W of them.
      regions: names of the regions; their numbers if not given.
      cell: width of a field, in pixels.

    Raises:
      UserError: the numbers of words or names are not those of the matrix, or it is empty.
    """
    cosines = np.asarray(cosines, float)
    if cosines.ndim != 2 or not cosines.size or not np.isfinite(cosines).all():
        raise UserError(f"cosines of shape {cosines.shape} are no finite numbers [R, W]")
    names = list(regions) or [str(number) for number in range(len(cosines))]
    if (len(names), len(words)) != cosines.shape:
        raise UserError(
            f"cosines have shape {cosines.shape} for {len(names)} regions and {len(words)} words; "
            "give a row for each region and a column for each word"
        )
    high = _TEXT + 9
    left = _PAD + max(map(_length, names)) + _PAD
    top = max(map(_length, words)) + 2 * _PAD
    rows, columns = cosines.shape
    out = Image.new("RGB", (left + columns * cell + _PAD, top + rows * high + _PAD), PAPER)
    draw = ImageDraw.Draw(out)
    for column, word in enumerate(words):
        label = Image.new("RGB", (top - _PAD, high), PAPER)
        ImageDraw.Draw(label).text((0, 2), word, INK, _font())
        turned = label.rotate(90, expand=True)
        out.paste(turned, (left + column * cell + (cell - high) // 2, 0))
    span = cosines.max() - cosines.min() or 1.0
    shades = heat_colours((cosines - cosines.min()) / span)
    best = cosines.argmax(0)
    for row, name in enumerate(names):
        y = top + row * high
        draw.text((left - _PAD - _length(name), y + 2), name, FAINT, _font())
        for column in range(columns):
            x = left + column * cell
            field = (x, y, x + cell - 2, y + high - 2)
            shade = shades[row, column]
            frame = INK if best[column] == row else None
            draw.rectangle(field, fill=tuple(shade.tolist()), outline=frame, width=2)
            value = f"{cosines[row, column]:.2f}"
            ink = INK if shade @ (0.299, 0.587, 0.114) > 110 else "white"
            place = (x + (cell - 2 - _length(value)) // 2, y + 2)
            draw.text(place, value, ink, _font())
    return out


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values [...] in 0..1 as uint8 [..., 3]."""
    stops = np.array([[int(c[at : at + 2], 16) for at in (1, 3, 5)] for c in _HEAT])
    places = np.linspace(0, 1, len(stops))
    mixed = [np.interp(values, places, stops[:, part]) for part in range(3)]
    return np.round(np.stack(mixed, -1)).astype(np.uint8)
