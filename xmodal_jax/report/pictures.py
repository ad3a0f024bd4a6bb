"""Pictures of a collection's images, from a directory of image files."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data_pipeline.image_files import BadImage, open_image
from xmodal_jax.errors import UserError

_SIDE = 112  # pixels of the longer side of a thumbnail


class Pictures:
    """The pictures of images, by the row of each in its collection."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        """names: of the images' files, which are looked for by the last part.

        Raises:
          UserError: the directory has none of the images.
        """
        if not names:
            raise UserError(
                f"no pictures from {directory}: the file names of the images are not known"
            )
        if not directory.is_dir():
            raise UserError(
                f"{directory} is no directory; give that of the image files as --images"
            )
        self._paths = [directory / Path(name).name for name in names]
        if not any(path.is_file() for path in self._paths):
            raise UserError(
                f"{directory} has no {self._paths[0].name}, nor any other image of this split; "
                "give the directory that has them"
            )

    def picture(self, row: int, side: int = 0) -> Image.Image | None:
        """Upright, at least `side` pixels in both directions where it has them.

        None where the file is not there or is no image, which the page then names.
        """
        path = self._paths[row]
        try:
            return open_image(path, side).image if path.is_file() else None
        except (BadImage, OSError):
            return None

    def thumbnail(self, row: int) -> bytes | None:
        """JPEG bytes; None where there is no picture."""
        picture = self.picture(row, _SIDE)
        if picture is None:
            return None
        picture.thumbnail((_SIDE, _SIDE))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=80)
        return out.getvalue()
