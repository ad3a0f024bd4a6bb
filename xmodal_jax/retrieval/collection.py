"""The images or captions of a dataset's split, encoded by a model, as parts of an index."""

import itertools
from collections.abc import Iterator, Set
from typing import Any

import jax
import numpy as np
from absl import logging

from data_pipeline import catalog, input_pipeline
from xmodal_jax.errors import UserError
from xmodal_jax.export import ExportedModel
from xmodal_jax.models.batch import IMAGE_FIELDS, TEXT_FIELDS
from xmodal_jax.ops.embeddings import Embeddings
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

        Relations come with the names of their predicates, which the model may number otherwise.

        Raises:
          UserError: the features are of another width than the model's, or the model knows none of
            the predicates.
        """
        width = catalog.feature_width(dataset)
        if width != model.feature_width:
            raise UserError(
                f"the regions of {dataset.info.full_name} are {width} wide and the model takes "
                f"{model.feature_width}; extract them as for its training"
            )
        self._dataset, self._split, self._model = dataset, split, model
        self._fields = {"split": split} | (fields or {})
        self._contents = list(catalog.contents(dataset, split))
        self._predicates = _predicates_of(dataset, model)

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
        items = self.image_items()
        return self._parts(self._batches(), "encode_image", IMAGE_FIELDS, items, without)

    def image(self, id: str) -> Embeddings:
        """One image, encoded; a batch of one.

        Raises:
          UserError: the split has no image that is called so.
        """
        ids = [item.id for item in self.image_items()]
        if id not in ids:
            raise UserError(
                f"the split {self._split!r} of {self._dataset.info.full_name} has no image {id!r}; "
                f"they are called as {ids[0]!r}"
            )
        number, row = divmod(ids.index(id), _BATCH)
        batch = next(itertools.islice(self._batches(), number, None))
        own = {name: batch[name][row : row + 1] for name in batch.keys() & set(IMAGE_FIELDS)}
        return self._model.encode_batch("encode_image", own)

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        """All images, with the model's numbers of predicates.

        Of each the most confident relations; those that the model does not know are among them.
        """
        for batch in input_pipeline.image_batches(
            self._dataset,
            split=self._split,
            batch_size=_BATCH,
            max_regions=self._model.max_regions,
            max_relations=self._model.max_relations,
        ):
            if self._predicates is not None and "relations" in batch:
                relations = batch["relations"].copy()
                relations[..., 1] = self._predicates[relations[..., 1]]
                batch["relations"] = relations
            yield batch

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


def _predicates_of(dataset: Any, model: ExportedModel) -> np.ndarray | None:
    """int [P], for each of a dataset's predicates its number in the model, by name.

    -1 for one that the model does not know: it leaves such relations out. None where the numbers
    mean nothing, as to a model that knows relations without labels only.
    """
    own = catalog.predicates(dataset)
    reasoning = getattr(model.model.config, "reasoning", None)
    labelled = getattr(reasoning, "semantic", "none") == "predicates"
    if not (labelled and own and model.predicates):
        return None
    numbers = {name: number for number, name in enumerate(model.predicates)}
    unknown = [name for name in own if name not in numbers]
    if len(unknown) == len(own):
        raise UserError(
            f"the model knows none of the {len(own)} predicates of {dataset.info.full_name}, such "
            f"as {own[0]!r}; its own are such as {model.predicates[0]!r}: build the dataset with "
            "scene graphs of these names, or without any"
        )
    if unknown:
        logging.warning(
            "the model does not know %d of the %d predicates of %s, such as %r: relations of these "
            "are left out",
            *(len(unknown), len(own), dataset.info.full_name, unknown[0]),
        )
    return np.array([numbers.get(name, -1) for name in own], np.int32)
