"""Pictures of an index's items, none outside of their directory is ever opened; answers drawn."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.image_files import BadImage, open_image
from xmodal_jax import visualize
from xmodal_jax.errors import UserError
from xmodal_jax.retrieval.answers import Answer
from xmodal_jax.retrieval.engines.engine import Engine
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.words import matched_words

# What browsers show and Pillow reads. SVG is left out: it may hold scripts.
TYPES = {
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}


_WIDTH = 480  # pixels of a drawing


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

    def picture(self, item: Item, side: int = 0) -> Image.Image | None:
        """An item's picture, upright; see `open_image`. None where there is none to be read."""
        path = self.path(item)
        try:
            return None if path is None else open_image(path, side).image
        except BadImage:
            return None


def draw_answer(engine: Engine, answer: Answer, pictures: Pictures, most: int = 5) -> Image.Image:
    """The best hits side by side, with the region of each word.

    Raises:
      UserError: nothing was found.
    """
    if not answer.hits:
        raise UserError("no item was found; there is nothing to draw")
    drawn = []
    for place, hit in enumerate(answer.hits[:most], 1):
        boxes = engine.boxes(hit.row)
        found = visualize.alignment_picture(
            pictures.picture(hit.item, _WIDTH),
            np.zeros((0, 4)) if boxes is None else boxes,
            [] if boxes is None else matched_words(engine, answer.query, hit.row),
            title=f"{place}. {hit.item.id} {hit.score:.3f} {answer.query.text}",
            width=_WIDTH,
            size=hit.item.size,
        )
        drawn.append(found)
    return visualize.side_by_side(drawn)
