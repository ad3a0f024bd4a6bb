"""Regions of synthetic scenes: boxes round the things, distractors, and features from pixels.

The features know nothing of the labels. They see a crop, compared with the shade of the picture's
edge, which stands for the background: where the crop differs from it, in which colour, and which
way its edges run.
"""

import numpy as np
from PIL import Image

from data_pipeline.scenes import SIDE, Box, Scene, box_of

REGIONS = 12  # a scene; what is not a thing is a distractor
_CROP = 24  # pixels a side a crop is scaled to
_MARGIN = 0.08  # of the box, looked at beyond it
_MOST_OVERLAP = 0.45  # a distractor's intersection over union with any thing stays below
_ANGLES = (np.arange(4) * np.pi / 4).astype(np.float32)

# Blocks of a feature vector: name, width, and the mean and deviation measured on 2,000 pictures,
# by which they are brought to about zero mean and unit variance.
_BLOCKS = (
    ("contrast", 36, 0.45, 0.41),
    ("colour", 27, -0.17, 0.21),
    ("histogram", 8, 0.125, 0.12),
    ("direction", 36, 0.036, 0.042),
    ("detail", 4, 0.076, 0.06),
    ("strength", 1, 0.45, 0.28),
)
FEATURE_WIDTH = sum(width for _, width, _, _ in _BLOCKS)


def place_boxes(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Boxes [REGIONS,4] f32 in 0..1: first those of the things, then the distractors.

    Distractors are patches of background, boxes shifted off a thing, parts of a thing, and boxes
    round two things at once.
    """
    things = [box_of(thing) for thing in scene]
    boxes = list(things)
    while len(boxes) < REGIONS:
        box = _distractor(rng, things)
        if min(box[2] - box[0], box[3] - box[1]) < 8:
            continue
        if all(_overlap(box, thing) < _MOST_OVERLAP for thing in things):
            boxes.append(box)
    return (np.array(boxes) / SIDE).astype(np.float32)


def _distractor(rng: np.random.Generator, things: list[Box]) -> Box:
    """One candidate, cut at the edge of the picture."""
    kind = int(rng.integers(0, 5))
    x1, y1, x2, y2 = things[int(rng.integers(0, len(things)))]
    width, height = x2 - x1, y2 - y1
    a, b, c, d = rng.random(4).tolist()
    if kind <= 1:  # anywhere
        width, height = 16 + 32 * a, 16 + 32 * b
        x1, y1 = c * (SIDE - width), d * (SIDE - height)
    elif kind == 2:  # shifted
        turn = 2 * np.pi * a
        x1 += float(np.cos(turn)) * width * (0.45 + 0.3 * b)
        y1 += float(np.sin(turn)) * height * (0.45 + 0.3 * b)
    elif kind == 3:  # a part
        width, height = width * (0.4 + 0.25 * a), height * (0.4 + 0.25 * b)
        x1, y1 = x1 + c * (x2 - x1 - width), y1 + d * (y2 - y1 - height)
    else:  # two at once
        other = things[int(rng.integers(0, len(things)))]
        x1, y1 = min(x1, other[0]), min(y1, other[1])
        width, height = max(x2, other[2]) - x1, max(y2, other[3]) - y1
    return max(x1, 0.0), max(y1, 0.0), min(x1 + width, float(SIDE)), min(y1 + height, float(SIDE))


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared)


def region_features(picture: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """Features [R,FEATURE_WIDTH] f32 of the boxes [R,4] (0..1) of a picture."""
    crops = _crops(picture, boxes)
    blocks = zip(_blocks(crops, _background(picture)), _BLOCKS, strict=True)
    return np.concatenate([(block - mean) / dev for block, (_, _, mean, dev) in blocks], axis=1)


def _crops(picture: Image.Image, boxes: np.ndarray) -> np.ndarray:
    """Crops [R,_CROP,_CROP,3] in 0..1, a little wider than the boxes."""
    scaled = boxes * (*picture.size, *picture.size)
    margin = _MARGIN * (scaled[:, 2:] - scaled[:, :2])
    low = np.maximum(scaled[:, :2] - margin, 0)
    high = np.minimum(scaled[:, 2:] + margin, picture.size)
    views = [
        picture.resize((_CROP, _CROP), Image.Resampling.BILINEAR, box=tuple(box))
        for box in np.concatenate([low, high], axis=1).tolist()
    ]
    return np.stack([np.asarray(view) for view in views]).astype(np.float32) / 255


def _background(picture: Image.Image) -> np.ndarray:
    """The shade [3] of the picture's edge."""
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.median(edge, axis=0).astype(np.float32) / 255


def _blocks(crops: np.ndarray, background: np.ndarray) -> list[np.ndarray]:
    """The blocks of `_BLOCKS`, each [R,width], before they are standardised."""
    change = crops - background
    strength = np.minimum(np.sqrt((change * change).sum(axis=-1, keepdims=True)) / 0.4, 1.0)
    grey = crops.mean(axis=-1)
    bend = 4 * grey[:, 1:-1, 1:-1] - grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    bend = np.abs(bend - grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2])[..., None]
    return [
        _cells(strength, 6),
        _cells(change, 3),
        _histogram(crops, strength),
        _cells(_padded(_directions(grey)), 3),
        _cells(_padded(bend), 2),
        strength.mean(axis=(1, 2)),
    ]


def _histogram(crops: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Shares [R,8] of the corners of the colour cube among the pixels that differ from behind.

    Each pixel is divided among all eight by how near it lies to them.
    """
    regions = len(crops)
    pixels = crops.reshape(regions, -1, 3, 1)
    weight = strength.reshape(regions, -1, 1)
    weight = weight / (weight.sum(axis=1, keepdims=True) + 1.0)
    near = np.concatenate([1 - pixels, pixels], axis=-1)
    red, green, blue = near[:, :, 0] * weight, near[:, :, 1], near[:, :, 2]
    others = (green[..., :, None] * blue[..., None, :]).reshape(regions, -1, 4)
    return (red.swapaxes(1, 2) @ others).reshape(regions, 8)


def _directions(grey: np.ndarray) -> np.ndarray:
    """How steep grey [R,H,W] is along each of four directions: [R,H-2,W-2,4].

    Steepness times cos^4 of the angle between: soft, and the same for opposite directions.
    """
    rise, run = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1], grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    along = run[..., None] * np.cos(_ANGLES) + rise[..., None] * np.sin(_ANGLES)
    squared = along * along
    steep = np.sqrt(rise * rise + run * run)[..., None] + 1e-6
    return squared * squared / (steep * steep * steep)


def _padded(maps: np.ndarray) -> np.ndarray:
    """Maps [R,H,W,K] with a border of zeros, one pixel wide."""
    return np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _cells(maps: np.ndarray, count: int) -> np.ndarray:
    """Means [R, count * count * K] of maps [R,H,W,K] over a grid of count by count cells."""
    regions, side, _, kinds = maps.shape
    cell = side // count
    cells = maps.reshape(regions, count, cell, count, cell, kinds).mean(axis=(2, 4))
    return cells.reshape(regions, -1)
