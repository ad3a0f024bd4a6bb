"""Drawing of synthetic scenes with Pillow, with some nuisance.

The background has a shade, a slope and noise of its own, colours and stripes vary a little, edges
are smooth (drawn larger and reduced). All of it comes from the given generator, so that a scene
can be drawn again to the last pixel.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from data_pipeline.scenes import COLOURS, SIDE, TEXTURES, Scene, Thing, outline

_PAINTS = {
    "red": (214, 48, 49),
    "green": (39, 158, 86),
    "blue": (44, 103, 214),
    "yellow": (243, 186, 22),
    "purple": (142, 68, 186),
    "black": (48, 50, 58),
}
_FINE = 3  # drawn this many times larger, then reduced


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The picture of a scene, RGB, SIDE by SIDE pixels; smaller things lie on larger ones."""
    picture = Image.fromarray(_background(rng))
    for thing in sorted(scene, key=lambda thing: -thing.radius):
        _draw_thing(picture, thing, rng)
    noise = rng.integers(-5, 6, (SIDE, SIDE, 1), dtype=np.int16)
    pixels = np.asarray(picture).astype(np.int16) + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator) -> np.ndarray:
    """A light shade [SIDE,SIDE,3], a little darker towards one side."""
    shade = rng.uniform(218, 244) + rng.uniform(-6, 6, 3)
    slope = rng.uniform(-8, 8, 2)
    ramp = np.linspace(-1, 1, SIDE)
    slant = slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    return np.clip(shade + slant[:, :, None], 0, 255).astype(np.uint8)


def _draw_thing(picture: Image.Image, thing: Thing, rng: np.random.Generator) -> None:
    left, top = math.floor(thing.x - thing.radius) - 1, math.floor(thing.y - thing.radius) - 1
    side = math.ceil(2 * thing.radius) + 3
    paint = np.array(_PAINTS[COLOURS[thing.colour]], float)
    # Tint by what the paint is bright, or black would come out blue or green.
    paint += 0.05 * paint.max() * rng.uniform(-1, 1, 3)
    paint = np.clip(paint * rng.uniform(0.92, 1.06), 0, 255)
    light = paint + (255 - paint) * rng.uniform(0.68, 0.8)

    corners = [tuple(corner) for corner in ((outline(thing) - (left, top)) * _FINE).tolist()]
    tile = Image.new("RGB", (side, side), _rgb(paint))
    pattern = _pattern(thing, side, rng)
    if pattern is not None:
        # A rim in the full colour, or light stripes would eat into the outline.
        rim = round((1 + 0.05 * thing.radius) * 2 * _FINE)
        ImageDraw.Draw(pattern).line([*corners, *corners[:2]], fill=0, width=rim)
        tile.paste(_rgb(light), (0, 0, side, side), pattern.reduce(_FINE))
    mask = Image.new("L", (side * _FINE, side * _FINE))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    picture.paste(tile, (left, top), mask.reduce(_FINE))


def _rgb(paint: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(float(value)) for value in paint)
    return red, green, blue


def _pattern(thing: Thing, side: int, rng: np.random.Generator) -> Image.Image | None:
    """Where the light paint goes, _FINE times larger; stripes and dots grow with the thing."""
    name = TEXTURES[thing.texture]
    if name == "plain":
        return None
    mask = Image.new("L", (side * _FINE, side * _FINE))
    pen = ImageDraw.Draw(mask)
    radius = thing.radius * _FINE
    middle = side * _FINE / 2
    step = radius * float(rng.uniform(0.52, 0.6))
    shift = float(rng.uniform(0, 1))
    if name == "striped":
        _stripes(pen, middle, radius, step, shift)
    else:
        _dots(pen, middle, radius, step, shift)
    return mask


def _stripes(
    pen: ImageDraw.ImageDraw, middle: float, radius: float, step: float, shift: float
) -> None:
    """Rising diagonals."""
    reach = 2 * radius
    for k in range(-4, 5):
        offset = (k + shift) * step * math.sqrt(2)
        line = (middle - reach, middle + reach + offset, middle + reach, middle - reach + offset)
        pen.line(line, fill=255, width=round(0.45 * step))


def _dots(
    pen: ImageDraw.ImageDraw, middle: float, radius: float, step: float, shift: float
) -> None:
    """Rows of dots, every other row half a step further."""
    dot = 0.27 * step
    for row in range(-3, 4):
        for column in range(-3, 4):
            x = middle + (column + (shift - 0.5) + (row % 2) / 2) * step
            y = middle + row * step * 0.9
            if abs(x - middle) < radius and abs(y - middle) < radius:
                pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=255)
