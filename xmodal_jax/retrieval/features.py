"""The features of one image in a file, by which an index can be asked for what fits it.

numpy.savez("dog.npz", regions=regions, boxes=boxes)
python -m xmodal_jax.retrieval query INDEX --image dog.npz
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.file_checks import NPZ_ERRORS
from xmodal_jax.errors import UserError

_ARRAYS = {"regions": "f", "boxes": "f", "relations": "iu", "confidences": "f"}  # kinds of numbers
_NEEDED = ("regions", "boxes")


class Features(NamedTuple):
    """What `Index.image_query` takes."""

    regions: np.ndarray
    boxes: np.ndarray
    relations: tuple[np.ndarray, np.ndarray] | None = None


def read_features(path: Path) -> Features:
    """Reads `regions` [R, F], `boxes` [R, 4], and where they are, `relations` and `confidences`.

    Raises:
      UserError: the file is none, or has not these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (*NPZ_ERRORS, TypeError) as error:  # the last one of a .npy file
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} can't be read as .npz without pickles: {reason}; save regions and boxes "
            "there, or name the dataset of the image with --dataset"
        ) from None
    for name, array in found.items():
        if name not in _ARRAYS or array.dtype.kind not in _ARRAYS[name]:
            raise UserError(
                f"{path}: {name!r} is {array.dtype}; it may hold regions, boxes and confidences, "
                "which are floats, and relations, which are whole numbers"
            )
    needed = (*_NEEDED, "confidences") if "relations" in found else _NEEDED
    for name in needed:
        if name not in found:
            raise UserError(f"{path} has no {name!r}; it holds {', '.join(found) or 'nothing'}")
    relations = (found["relations"], found["confidences"]) if "relations" in found else None
    return Features(found["regions"], found["boxes"], relations)
