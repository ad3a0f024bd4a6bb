"""Widths and heights of images in a file of their own, by row of the caption file."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_is_file, open_array
from data_pipeline.inert_pickle import read_pickle


def read_sizes(path: Path) -> list[tuple[int, int]]:
    """The pairs of a .pkl list (TERAN's sizes.pkl; nothing in it is run), a .json list or a .npy.

    Raises:
      DataError: the file is missing, damaged, or holds something else.
    """
    try:
        check_is_file(path)
        found = [(int(width), int(height)) for width, height in _load(path)]
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give another --sizes") from None
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise DataError(f"{path} is no list of [width, height]; write it again") from None
    for row, (width, height) in enumerate(found):
        if not (0 < width < 2**31 and 0 < height < 2**31):
            raise DataError(f"{path} row {row}: {width} x {height} is no image; correct it")
    return found


def _load(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        return open_array(path).tolist()
    if path.suffix.lower() == ".json":
        return json.loads(path.read_bytes())
    return read_pickle(path)
