"""Sampling of synthetic scenes: what is in a picture, where, and in which relation.

Scenes come in groups of four near-twins which hold the same bag of sizes, textures, colours and
shapes. In one twin an attribute has moved to another object, in one two objects have changed
places, in one the same objects stand in other relations. A model which only knows which words
apply somewhere in a picture cannot tell the four apart.

Drawing is in scene_drawing.py, the captions in scene_captions.py.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
PREDICATES = ("left of", "right of", "above", "below", "inside", "around", "overlapping")
LEFT, RIGHT, ABOVE, BELOW, INSIDE, AROUND, OVERLAPPING = range(len(PREDICATES))

SIDE = 128  # pixels; pictures are square
GROUP = 4  # near-twins in a group
CLEAR = 1.4  # "left of" is said when |dx| is at least this many times |dy|
DOUBTFUL = 0.6  # and might be thought true by somebody down to this many times

_RADII = ((9.5, 11.5), (19.0, 23.0))  # pixels, of small and of large things
_EDGE = 4.0  # pixels kept free along the edge of the picture
_GAP = 4.0  # pixels kept free between things which are not meant to meet
_CONTAINERS = frozenset((SHAPES.index("circle"), SHAPES.index("square"), SHAPES.index("diamond")))
# Half the extent of a shape in units of its radius; they make the areas less unequal.
_EXTENTS = (0.95, 0.88, 1.0, 1.0, 1.0)

Relation = tuple[int, int, int]  # subject, predicate, object
Box = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: indices of its words, and its place in pixels (`angle` in radians)."""

    shape: int
    colour: int
    texture: int
    size: int
    x: float
    y: float
    radius: float
    angle: float


Scene = tuple[Thing, ...]


def outline(thing: Thing) -> np.ndarray:
    """Corners [N,2] of a thing in pixels, the middle of their bounding box at (x, y)."""
    name = SHAPES[thing.shape]
    if name == "star":
        turns, reach = np.arange(10) / 10, np.where(np.arange(10) % 2, 0.45, 1.0)
    else:
        corners = {"circle": 48, "square": 4, "triangle": 3, "diamond": 4}[name]
        turns, reach = np.arange(corners) / corners, np.ones(corners)
    start = thing.angle + (np.pi / 4 if name == "square" else 0.0) - np.pi / 2
    angles = start + 2 * np.pi * turns
    points = reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = _EXTENTS[thing.shape] * thing.radius / ((high - low).max() / 2)
    return (points - (low + high) / 2) * scale + (thing.x, thing.y)


def box_of(thing: Thing) -> Box:
    """The tight bounding box of a thing, in pixels."""
    points = outline(thing)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def relations_of(boxes: list[Box], clear: float = CLEAR) -> list[Relation]:
    """Every relation among boxes that holds, both ways round.

    Boxes that touch are inside, around or overlapping; others stand left of, right of, above or
    below each other when the distance along that axis is at least `clear` times the other.
    """
    pairs = [(i, j) for i in range(len(boxes)) for j in range(len(boxes)) if i != j]
    return [(i, k, j) for i, j in pairs for k in _predicates(boxes[i], boxes[j], clear)]


def _predicates(a: Box, b: Box, clear: float) -> list[int]:
    if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
        if _contains(b, a):
            return [INSIDE]
        return [AROUND] if _contains(a, b) else [OVERLAPPING]
    dx = (b[0] + b[2] - a[0] - a[2]) / 2
    dy = (b[1] + b[3] - a[1] - a[3]) / 2
    found = []
    if abs(dx) >= clear * abs(dy):
        found.append(LEFT if dx > 0 else RIGHT)
    if abs(dy) >= clear * abs(dx):
        found.append(ABOVE if dy > 0 else BELOW)
    return found


def _contains(outer: Box, inner: Box) -> bool:
    return (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and outer[2] >= inner[2]
        and outer[3] >= inner[3]
    )


def scene_relations(scene: Scene, clear: float = CLEAR) -> list[Relation]:
    """`relations_of` the boxes of a scene; the numbers are positions in the scene."""
    return relations_of([box_of(thing) for thing in scene], clear)


def sample_group(rng: np.random.Generator) -> list[Scene]:
    """Four near-twins in random order, each with a relation that clearly fits none of the rest."""
    group = [_sample_scene(rng)]
    for change in (_rebind, _exchange, _move):
        group.append(_first_new(rng, group, change))
    return [group[i] for i in rng.permutation(GROUP)]


def _first_new(
    rng: np.random.Generator,
    group: list[Scene],
    change: Callable[[np.random.Generator, Scene], Scene],
) -> Scene:
    """The first changed scene that is acceptable and new; where none is found, a new layout."""
    attempts = 0
    while True:
        twin = change(rng, group[0]) if attempts < 20 else _rearrange(rng, group[0])
        if _is_acceptable(twin):
            twin = _shake(rng, twin)
            if _are_distinct([*group, twin]):
                return twin
        attempts += 1


def _are_distinct(group: list[Scene]) -> bool:
    """Whether each scene has a relation that nobody could think true of any other."""
    thinkable = [_sayings(scene, DOUBTFUL) for scene in group]
    return all(
        _sayings(scene, CLEAR) - set().union(*thinkable[:i], *thinkable[i + 1 :])
        for i, scene in enumerate(group)
    )


def _sayings(scene: Scene, clear: float) -> set[tuple]:
    """The relations of a scene with all words of the things in place of their numbers."""
    words = [(thing.shape, thing.colour, thing.texture, thing.size) for thing in scene]
    return {(words[i], k, words[j]) for i, k, j in scene_relations(scene, clear)}


def _is_acceptable(scene: Scene) -> bool:
    """Colour and shape name one thing; things that meet differ in colour; nothing sticks out."""
    if len({(thing.colour, thing.shape) for thing in scene}) < len(scene):
        return False
    for i, predicate, j in scene_relations(scene):
        if predicate in (INSIDE, OVERLAPPING) and scene[i].colour == scene[j].colour:
            return False
        if predicate == INSIDE and scene[j].shape not in _CONTAINERS:
            return False
    return True


def _sample_scene(rng: np.random.Generator) -> Scene:
    count = int(rng.integers(3, 5))
    large = int(rng.integers(1, 3))
    radii = [float(rng.uniform(*_RADII[slot < large])) for slot in range(count)]
    places = _sample_layout(rng, radii)
    while True:
        shapes, colours, textures = (
            rng.integers(0, len(names), count).tolist() for names in (SHAPES, COLOURS, TEXTURES)
        )
        angles = rng.uniform(-0.14, 0.14, count).tolist()
        scene = tuple(
            Thing(shapes[i], colours[i], textures[i], int(i < large), *places[i], radii[i], angle)
            for i, angle in enumerate(angles)
        )
        if _is_acceptable(scene) and len(set(colours)) > 1 and len(set(shapes)) > 1:
            return scene


def _sample_layout(rng: np.random.Generator, radii: list[float]) -> list[tuple[float, float]]:
    """Centres in pixels: one pair inside or overlapping each other more often than not."""
    while True:
        kind = (INSIDE, OVERLAPPING, None)[int(rng.choice(3, p=(0.35, 0.35, 0.3)))]
        low = _EDGE + np.array(radii)
        centres = rng.uniform(low, SIDE - low, (2, len(radii)))
        places = [(float(x), float(y)) for x, y in centres.T]
        if kind is not None:
            # The last thing is always small and the first always large.
            places[-1] = _beside(rng, places[0], radii[0], radii[-1], kind)
        if _is_clear(places, radii, kind):
            return places


def _beside(
    rng: np.random.Generator, place: tuple[float, float], large: float, small: float, kind: int
) -> tuple[float, float]:
    """Where the small thing goes so that it is inside or overlapping the large one."""
    if kind == INSIDE:
        dx, dy = rng.uniform(-3.0, 3.0, 2).tolist()
    else:
        quarter = float(rng.integers(0, 4)) * np.pi / 2 + float(rng.uniform(-0.3, 0.3))
        distance = 0.7 * (large + small)
        dx, dy = distance * float(np.cos(quarter)), distance * float(np.sin(quarter))
    return place[0] + dx, place[1] + dy


def _is_clear(places: list[tuple[float, float]], radii: list[float], kind: int | None) -> bool:
    """Everything in the picture, nothing touching by accident, most relations plain to see."""
    count, plain = len(places), 0
    for (x, y), radius in zip(places, radii, strict=True):
        if min(x, y, SIDE - x, SIDE - y) < radius + _EDGE:
            return False
    for i in range(count):
        for j in range(i):
            dx, dy = abs(places[i][0] - places[j][0]), abs(places[i][1] - places[j][1])
            if kind is not None and (i, j) == (count - 1, 0):
                plain += 1
                continue
            if max(dx, dy) < radii[i] + radii[j] + _GAP:
                return False
            plain += max(dx, dy) >= CLEAR * min(dx, dy)
    return plain >= count


def _rebind(rng: np.random.Generator, scene: Scene) -> Scene:
    """Exchange one of colour, shape and texture between two things."""
    name = ("colour", "shape", "texture")[int(rng.integers(0, 3))]
    return _swap(rng, scene, (name,))


def _exchange(rng: np.random.Generator, scene: Scene) -> Scene:
    """Two things change places; where their sizes differ, each gets the other's."""
    return _swap(rng, scene, ("colour", "shape", "texture"))


def _swap(rng: np.random.Generator, scene: Scene, names: tuple[str, ...]) -> Scene:
    i, j = rng.permutation(len(scene))[:2].tolist()
    things = list(scene)
    for here, there in ((i, j), (j, i)):
        taken = {name: getattr(scene[there], name) for name in names}
        things[here] = dataclasses.replace(scene[here], **taken)
    return tuple(things)


def _move(rng: np.random.Generator, scene: Scene) -> Scene:
    """The same things in other relations: mirrored, turned over, or laid out anew."""
    kind = int(rng.integers(0, 5))
    if kind > 2:
        return _rearrange(rng, scene)
    turned = {
        0: lambda x, y: (SIDE - x, y),
        1: lambda x, y: (x, SIDE - y),
        2: lambda x, y: (y, x),
    }[kind]
    return _placed(scene, [turned(thing.x, thing.y) for thing in scene])


def _rearrange(rng: np.random.Generator, scene: Scene) -> Scene:
    return _placed(scene, _sample_layout(rng, [thing.radius for thing in scene]))


def _shake(rng: np.random.Generator, scene: Scene) -> Scene:
    """Move everything by up to two pixels, if that leaves every relation as it is.

    Twins would otherwise share the coordinates of their boxes to the last digit.
    """
    wanted = scene_relations(scene)
    for _ in range(5):
        moves = rng.uniform(-2.0, 2.0, (len(scene), 2)).tolist()
        shaken = _placed(
            scene, [(t.x + dx, t.y + dy) for t, (dx, dy) in zip(scene, moves, strict=True)]
        )
        if scene_relations(shaken) == wanted:
            return shaken
    return scene


def _placed(scene: Scene, places: list[tuple[float, float]]) -> Scene:
    return tuple(
        dataclasses.replace(thing, x=x, y=y) for thing, (x, y) in zip(scene, places, strict=True)
    )
