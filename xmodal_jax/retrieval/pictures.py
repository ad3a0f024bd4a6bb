"""Where the pictures of an index lie; none outside of that directory is ever opened."""

from pathlib import Path

from xmodal_jax.errors import UserError
from xmodal_jax.retrieval.items import Item

# What browsers show and Pillow reads. SVG is left out: it may hold scripts.
TYPES = {
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}


class Pictures:
    """The pictures of an index's items."""

    def __init__(self, directory: str | Path) -> None:
        """directory: of the files that items name; "" where an index has none.

        Raises:
          UserError: it is not there.
        """
        if directory and not Path(directory).is_dir():
            raise UserError(
                f"the pictures are not at {directory}; say where they are, with --pictures"
            )
        self._directory = Path(directory).resolve() if directory else None

    def path(self, item: Item) -> Path | None:
        """The file of an item's picture; None where there is none.

        A name that leads out of the directory, also by a link, is as good as none.
        """
        if self._directory is None or not item.file or "\0" in item.file:
            return None
        path = (self._directory / item.file).resolve()
        shown = path.is_relative_to(self._directory) and path.suffix.lower() in TYPES
        return path if shown and path.is_file() else None
