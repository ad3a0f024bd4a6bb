"""What a search is asked, and what it answers."""

import dataclasses

import jax
import numpy as np

from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.items import Item


@dataclasses.dataclass(frozen=True)
class Query:
    """What is asked, encoded.

    Attributes:
      side: "captions" for a sentence, "images" for an image.
      embeddings: a batch of one.
      text: the sentence.
      spans: int [W, 2], the characters of each token of the embeddings.
    """

    side: str
    embeddings: Embeddings
    text: str = ""
    spans: np.ndarray | None = None

    @property
    def one(self) -> Embeddings:
        """Its embeddings without the batch axis."""
        return jax.tree.map(lambda x: np.asarray(x)[0], self.embeddings)


@dataclasses.dataclass(frozen=True)
class Hit:
    """An item that was found, its score, and its row."""

    item: Item
    score: float
    row: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found, best first.

    stage: "exact", or "staged" where the model scored the candidates of a first stage only.
    """

    hits: list[Hit]
    query: Query
    stage: str
    seconds: float
