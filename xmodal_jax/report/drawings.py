"""Why a model took an image for that of a caption: the regions of its words, drawn for the page."""

import html
import io
from base64 import b64encode
from collections.abc import Mapping

from xmodal_jax import visualize
from xmodal_jax.matched_words import Alignment
from xmodal_jax.report.pictures import Pictures

Pair = tuple[int, int]  # the row of an image, the number of a caption
_WIDTH = 320  # pixels of a drawing
_QUALITY = 60  # 10 to 30 kB a drawing


class Drawings:
    """Drawings of pairs whose alignments are known."""

    def __init__(self, alignments: Mapping[Pair, Alignment], pictures: Pictures | None) -> None:
        """pictures: without one the regions are drawn on a blank sheet."""
        self._alignments, self._pictures = alignments, pictures

    def __bool__(self) -> bool:
        return bool(self._alignments)

    def show(self, pair: Pair, what: str) -> str:
        """An element with the drawing of a pair and what it is; nothing where there is none."""
        found = self._alignments.get(pair)
        if found is None or not found.words:
            return ""
        drawn = visualize.alignment_picture(
            self._pictures.picture(pair[0], _WIDTH) if self._pictures else None,
            found.boxes,
            found.words,
            width=_WIDTH,
        )
        words = ", ".join(f"{word.text} {word.similarity:.2f}" for word in found.words)
        out = io.BytesIO()
        drawn.save(out, "WEBP", quality=_QUALITY)  # half as large as JPEG, with its lines and text
        data = b64encode(out.getvalue()).decode()
        return (
            f"<figure><figcaption>{html.escape(what)}</figcaption>"
            f'<img src="data:image/webp;base64,{data}" width="{drawn.width}" '
            f'height="{drawn.height}" alt="{html.escape(words)}"></figure>'
        )
