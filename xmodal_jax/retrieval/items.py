"""What an index holds: items, their embeddings, and how those are stored."""

import dataclasses
from collections.abc import Mapping, Set

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings

STORES = ("int8", "float16")
LARGEST_FLOAT16 = 65504.0
_LONGEST = 500  # characters of an id


@dataclasses.dataclass(frozen=True)
class Item:
    """An image, or a caption.

    Attributes:
      id: unique within the index.
      file: name of the picture within the directory of pictures; "" where there is none.
      size: width and height of the picture in pixels; 0, 0 where unknown.
      text: of a caption.
      fields: names and values by which a search can be narrowed, such as {"split": "test"}.
    """

    id: str
    file: str = ""
    size: tuple[int, int] = (0, 0)
    text: str = ""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < len(self.id) <= _LONGEST or not self.id.isprintable():
            raise UserError(
                f"id {self.id[:60]!r} is not 1 to {_LONGEST} printable characters; rename the item"
            )

    def matches(self, where: Mapping[str, str]) -> bool:
        """Whether it has these values in its fields."""
        return all(self.fields.get(name) == value for name, value in where.items())


@dataclasses.dataclass(frozen=True)
class Part:
    """Some items with their embeddings.

    Attributes:
      items: n of them.
      embeddings: numpy arrays [n, R, D], [n, R], [n, D].
      boxes: float [n, R, 4], x1, y1, x2, y2 in 0..1; None for captions.
    """

    items: list[Item]
    embeddings: Embeddings
    boxes: np.ndarray | None = None

    def check(self, taken: Set[str]) -> None:
        """Raises a UserError that names the item or part that can't be stored.

        An id is taken or comes twice, arrays are of other items than these, or values not finite.
        """
        seen: set[str] = set()
        for item in self.items:
            if item.id in taken or item.id in seen:
                raise UserError(f"the index has an item {item.id!r} already; remove it first")
            seen.add(item.id)
        tokens, mask, pooled = (
            np.asarray(x)
            for x in (self.embeddings.tokens, self.embeddings.mask, self.embeddings.pooled)
        )
        self._check_shapes(tokens, mask, pooled)
        well = np.isfinite(np.where(mask[..., None], tokens, 0)).all((1, 2))
        well &= np.isfinite(pooled).all(1)
        for row in np.flatnonzero(~well):
            raise UserError(
                f"the embeddings of {self.items[row].id!r} are not finite; check its features"
            )
        if self.boxes is not None:
            boxes = np.asarray(self.boxes)
            # As float16, in which they are stored.
            for row in np.flatnonzero(~(np.abs(boxes) <= LARGEST_FLOAT16).all((1, 2))):
                raise UserError(
                    f"a box of {self.items[row].id!r} is not finite; give x1, y1, x2, y2 in 0..1"
                )

    def _check_shapes(self, tokens: np.ndarray, mask: np.ndarray, pooled: np.ndarray) -> None:
        count = len(self.items)
        well = tokens.ndim == 3 and mask.shape == tokens.shape[:2] and pooled.ndim == 2
        well = well and len(tokens) == len(pooled) == count
        shapes = {"tokens": tokens.shape, "mask": mask.shape, "pooled": pooled.shape}
        if self.boxes is not None:
            shapes["boxes"] = boxes = np.shape(self.boxes)
            well = well and len(boxes) == 3 and boxes[0] == count and boxes[2] == 4
            # A model of kind vector keeps no regions, and its items may have boxes.
            well = well and (boxes[1] == mask.shape[1] or not mask.any())
        if not well:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            of = f"the part of {self.items[0].id!r}" if self.items else "a part"
            raise UserError(
                f"{of} has {count} items with {told}; give [n, R, D], [n, R], [n, D] and "
                "[n, R, 4], with the n of the items"
            )

    def arrays(self, kind: str, store: str) -> dict[str, np.ndarray]:
        """What an index keeps of it, each [n, ...], by name.

        Args:
          kind: of the model; one of vectors keeps no regions, one of tokens nothing but them.
          store: see STORES.

        Raises:
          UserError: float16 can't hold a vector.
        """
        out: dict[str, np.ndarray] = {}
        mask = np.asarray(self.embeddings.mask, bool)
        vectors: dict[str, np.ndarray] = {}
        if kind != "vector":
            vectors["tokens"] = np.where(mask[..., None], np.asarray(self.embeddings.tokens), 0)
            out["mask"] = mask
        if kind != "tokens":
            vectors["pooled"] = np.asarray(self.embeddings.pooled)
        for name, values in vectors.items():
            out[name], out[name + "_scale"] = compress(values, store)
            for row in np.flatnonzero(~np.isfinite(out[name]).reshape(len(mask), -1).all(1)):
                raise UserError(
                    f"the vectors of {self.items[row].id!r} reach {np.abs(values[row]).max():,.0f} "
                    f"and float16 ends at {LARGEST_FLOAT16:,.0f}; make an index with store=int8"
                )
        if self.boxes is not None:
            out["boxes"] = np.asarray(self.boxes, np.float16)
        return out


def compress(values: np.ndarray, store: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [..., D] as int8 with one scale each, or as float16 whose scales are 1.

    Returns:
      values [..., D] and float32 scales [..., 1]: vector = values * scale, up to rounding.
    """
    values = np.asarray(values, np.float32)
    if store == "float16":
        # What is too large becomes infinite; `Part.arrays` refuses it.
        with np.errstate(over="ignore"):
            values = values.astype(np.float16)
        return values, np.ones((*values.shape[:-1], 1), np.float32)
    if store != "int8":
        raise UserError(f"store={store!r} is not known; use {' or '.join(STORES)}")
    largest = np.abs(values).max(axis=-1, keepdims=True, initial=0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.round(values / scale).astype(np.int8), scale
