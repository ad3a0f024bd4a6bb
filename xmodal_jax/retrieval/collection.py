"""The images or captions of a dataset's split, encoded by a model, as parts of an index."""

import itertools
from collections.abc import Iterator, Set
from typing import Any

import jax
import numpy as np

from data_pipeline import input_pipeline
from xmodal_jax.errors import UserError
from xmodal_jax.export import ExportedModel
from xmodal_jax.models.batch import IMAGE_FIELDS, TEXT_FIELDS
from xmodal_jax.retrieval.items import Item, Part

_BATCH = 256
_PART = 4096  # items


class Collection:
    """One split of a dataset, as a model sees it.

    An image is called by the name of its file, or by its number where it has none; a caption by
    the image's name and its number among that image's captions.
    """

    def __init__(self, dataset: Any, split: str, model: ExportedModel, fields: Any = None) -> None:
        """Args: a TFDS builder, the name of a split, the model, and fields that all items get.

        Raises:
          UserError: the features are of another width than the model's, or names are there twice.
        """
        width = input_pipeline.feature_width(dataset)
        if width != model.feature_width:
            raise UserError(
                f"the regions of {dataset.info.full_name} are {width} wide and the model takes "
                f"{model.feature_width}; extract them as for its training"
            )
        self._dataset, self._split, self._model = dataset, split, model
        self._fields = {"split": split} | (fields or {})
        self._contents = list(input_pipeline.contents(dataset, split))

    def image_items(self) -> list[Item]:
        """One an image."""
        return [
            Item(c.file_name or str(c.image_id), c.file_name, c.size, fields=self._fields)
            for c in self._contents
        ]

    def caption_items(self) -> list[Item]:
        """One a caption."""
        return [
            Item(f"{image.id}#{number}", image.file, image.size, text, self._fields)
            for image, content in zip(self.image_items(), self._contents, strict=True)
            for number, text in enumerate(content.captions)
        ]

    def images(self, without: Set[str] = frozenset()) -> Iterator[Part]:
        """All images but those of these ids, encoded."""
        batches = input_pipeline.image_batches(
            self._dataset,
            split=self._split,
            batch_size=_BATCH,
            max_regions=self._model.max_regions,
            max_relations=self._model.max_relations,
        )
        return self._parts(batches, "encode_image", IMAGE_FIELDS, self.image_items(), without)

    def captions(self, without: Set[str] = frozenset()) -> Iterator[Part]:
        """All captions but those of these ids, encoded."""
        batches = input_pipeline.caption_batches(
            self._dataset,
            split=self._split,
            tokenizer=self._model.tokenizer,
            batch_size=_BATCH,
            max_tokens=self._model.max_tokens,
        )
        return self._parts(batches, "encode_text", TEXT_FIELDS, self.caption_items(), without)

    def _parts(
        self,
        batches: Iterator[dict[str, np.ndarray]],
        method: str,
        fields: tuple[str, ...],
        items: list[Item],
        without: Set[str],
    ) -> Iterator[Part]:
        """Parts of some batches each: a part becomes some files."""

        def encoded() -> Iterator[Part]:
            start = 0
            for batch in batches:
                rows = np.flatnonzero(batch["mask"])
                own = items[start : start + len(rows)]
                start += len(rows)
                new = [n for n, item in enumerate(own) if item.id not in without]
                if new:
                    inputs = {name: value for name, value in batch.items() if name in fields}
                    found = self._model.encode_batch(method, inputs)
                    kept = rows[new]
                    boxes = batch["boxes"][kept] if "boxes" in batch else None
                    embeddings = jax.tree.map(lambda x, kept=kept: np.asarray(x)[kept], found)
                    yield Part([own[n] for n in new], embeddings, boxes)

        for group in _groups(encoded(), _PART // _BATCH):
            whole = jax.tree.map(lambda *x: np.concatenate(x), *(p.embeddings for p in group))
            boxes = [part.boxes for part in group if part.boxes is not None]
            yield Part(
                [item for part in group for item in part.items],
                whole,
                np.concatenate(boxes) if boxes else None,
            )


def _groups(batches: Iterator[Any], count: int) -> Iterator[list[Any]]:
    while group := list(itertools.islice(batches, count)):
        yield group
