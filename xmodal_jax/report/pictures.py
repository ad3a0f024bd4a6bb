"""Small pictures of a collection's images, from a directory of image files."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from xmodal_jax.errors import UserError
from xmodal_jax.report.failures import Pictures

_SIDE = 112  # pixels of the longer side


def pictures_of(directory: Path, names: Sequence[str]) -> Pictures:
    """Thumbnails by the row of an image, found in a directory by the last part of its file name.

    Raises:
      UserError: the directory has none of the images.
    """
    if not names:
        raise UserError(f"no pictures from {directory}: the file names of the images are not known")
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; give that of the image files as --images")
    paths = [directory / Path(name).name for name in names]
    if not any(path.is_file() for path in paths):
        raise UserError(
            f"{directory} has no {paths[0].name}, nor any other image of this split; give the "
            "directory that has them"
        )

    def picture(row: int) -> bytes | None:
        return _thumbnail(paths[row]) if paths[row].is_file() else None

    return picture


def _thumbnail(path: Path) -> bytes | None:
    """JPEG bytes; None where the file is no image, which the page then names."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
            small = image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return out.getvalue()
