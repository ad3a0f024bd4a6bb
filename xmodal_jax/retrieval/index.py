"""An index: a collection that was encoded once, and is asked by sentence or by image.

model = export.load("runs/demo/export")
index = Index.build("runs/demo/index", model, parts)
index = Index.open("runs/demo/index", model)
answer = index.query_text("a red circle left of a blue square", k=10)
[(hit.item.file, hit.score) for hit in answer.hits]
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import partitioning
from xmodal_jax.errors import UserError
from xmodal_jax.export import ExportedModel
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import row_scores
from xmodal_jax.retrieval.answers import Answer, Hit, Query
from xmodal_jax.retrieval.first_stage import CANDIDATES, FirstStage, automatic_stage
from xmodal_jax.retrieval.items import STORES, Item, Part
from xmodal_jax.retrieval.scan import Blocks, Scan
from xmodal_jax.retrieval.store import Store
from xmodal_jax.retrieval.table import VECTORS

STAGES = ("auto", "exact", "staged")


class Index:
    """A collection of images, to be asked by sentences, or of captions, to be asked by images.

    Attributes:
      model: encodes what is asked.
      store: items and arrays on the disk.
    """

    def __init__(self, store: Store, model: ExportedModel, mesh: Any = None) -> None:
        """Not called by users: `build` and `open` do so."""
        self.store, self.model = store, model
        self._mesh = mesh or partitioning.make_mesh(-1, 1)
        self._params = jax.device_put(
            model.params, jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())
        )
        scorers = {
            "model": row_scores.model_scores(model.model, self.side),
            "likeness": row_scores.likeness(self.kind),
            "codes": row_scores.code_scores,
        }
        self._scans = {name: Scan(score, self._mesh) for name, score in scorers.items()}
        self.reload()

    def reload(self) -> None:
        """Reads what the store holds now."""
        self._table = self.store.table()
        self._blocks: dict[Sequence[str], Blocks] = {}
        self._stage = None
        if files := self._table.first_stage:
            name, mean = self.store.first_stage["name"], row_scores.averages_words(self.model.model)
            self._stage = FirstStage.load(name, self.side, files, mean)

    @classmethod
    def build(
        cls,
        directory: str | Path,
        model: ExportedModel,
        parts: Iterable[Part] = (),
        *,
        side: str = "images",
        store: str = "int8",
        model_path: str | Path = "",
        pictures: str | Path = "",
        mesh: Any = None,
        on_stored: Callable[[int], object] = lambda count: None,
    ) -> "Index":
        """Makes an index, which is there when all parts are in it.

        When it is large, `fitting.fit_first_stage` makes its searches fast.

        Args:
          directory: must not exist, or be empty.
          model: encoded the parts, and encodes what is asked.
          parts: items with their embeddings; see `add`.
          side: what the items are, images or captions.
          store: int8 with a scale for each vector, or float16.
          model_path: directory of the model's export, where a later `open` finds it.
          pictures: directory of the items' picture files.
          mesh: the devices that search; all if not given.

        Raises:
          UserError: there is an index already, or an item is not as it should be.
        """
        for value, known, name in ((side, row_scores.SIDES, "side"), (store, STORES, "store")):
            if value not in known:
                raise UserError(f"{name}={value!r} is not known; use {' or '.join(known)}")
        about = {
            "kind": model.model.kind,
            "side": side,
            "store": store,
            "model": str(Path(model_path).absolute()) if model_path else "",
            "fingerprint": model.fingerprint,
            "pictures": str(Path(pictures).absolute()) if pictures else "",
        }
        with Store.create_aside(Path(directory), about) as aside:
            cls(aside, model, mesh).add(parts, on_stored)
        return cls(Store.open(Path(directory)), model, mesh)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        model: ExportedModel | None = None,
        *,
        verify: bool = False,
        mesh: Any = None,
    ) -> "Index":
        """Opens an index.

        Args:
          directory: of the index.
          model: the export it was made with; read from where it was if not given.
          verify: compare the checksums of all files, and not only their sizes.
          mesh: the devices that search; all if not given.

        Raises:
          UserError: it is no whole index, or one of another model.
        """
        store = Store.open(Path(directory), verify=verify)
        if model is None:
            path = store.about["model"]
            if not path or not Path(path).is_dir():
                raise UserError(
                    f"the model of {directory} is not at {path or '(no path)'}; give its export, "
                    "with --model"
                )
            from xmodal_jax import export

            model = export.load(path)
        if model.fingerprint != store.about["fingerprint"]:
            raise UserError(
                f"{directory} was made with another model than the one given; give the export it "
                "was made with, or make the index again"
            )
        return cls(store, model, mesh)

    @property
    def kind(self) -> str:
        """That of the model: vector, tokens or pair."""
        return self.store.about["kind"]

    @property
    def side(self) -> str:
        """What the items are: images or captions."""
        return self.store.about["side"]

    def __len__(self) -> int:
        return int(self._table.live.sum())

    @property
    def live(self) -> np.ndarray:
        """bool [N], False for rows that were removed."""
        return self._table.live

    def items(self) -> list[Item]:
        """All items, in the order in which they were added."""
        return [item for row, item in enumerate(self._table.items) if self._table.live[row]]

    def row(self, id: str) -> int:
        """The row of an id; UserError where there is none."""
        return self._table.row(id)

    def item(self, id: str) -> Item:
        """The item of an id; UserError where there is none."""
        return self._table.items[self.row(id)]

    def add(
        self, parts: Iterable[Part], on_stored: Callable[[int], object] = lambda count: None
    ) -> int:
        """Adds items, and returns how many.

        Args:
          parts: each is in the index, crash or not, before the next one is asked for.
          on_stored: called with the number of items of a part when they are.

        Raises:
          UserError: an id is there already, or a part can't be stored; the parts before stay.
        """
        added = 0
        try:
            with self.store.writing():
                self.reload()
                ids, dimensions = set(self._table.row_of), self._table.dimensions
                for part in parts:
                    part.check(ids)
                    if not part.items:
                        continue
                    arrays = part.arrays(self.kind, self.store.about["store"])
                    found = {name: arrays[name].shape[-1] for name in VECTORS if name in arrays}
                    dimensions = dimensions or found
                    if found != dimensions:
                        raise UserError(
                            f"the vectors of {part.items[0].id!r} have dimensions {found} and "
                            f"those of the index {dimensions}; encode it with the index's model"
                        )
                    codes = self._stage.item_codes(part.embeddings) if self._stage else {}
                    self.store.append(part.items, arrays, codes)
                    ids.update(item.id for item in part.items)
                    added += len(part.items)
                    on_stored(len(part.items))
        finally:
            # Also where a later part was refused: those before it are there.
            self.reload()
        return added

    def remove(self, ids: Iterable[str]) -> None:
        """Removes items; UserError if one of them is not there, and then none is removed."""
        with self.store.writing():
            self.store.remove(ids)
        self.reload()

    def compact(self) -> int:
        """Merges the files of many parts, without what was removed; returns how many bytes less.

        Rows get other numbers. Other processes that have the index open go on with it as it was.

        Raises:
          UserError: there is no room for the merged files, which are written first, or one is
            damaged.
        """
        with self.store.writing():
            freed = self.store.compact()
        self.reload()
        return freed

    # Asking

    def text_query(self, text: str) -> Query:
        """A sentence, encoded."""
        encoded = self.model.tokenizer.encode([text], self.model.max_tokens)
        # Position n of the embeddings is token n + 1: [CLS] is left out.
        # A model may leave out the last ones, too.
        batch = {"tokens": encoded.ids, "token_mask": encoded.mask}
        found = self.model.encode_batch("encode_text", batch)
        return Query("captions", found, text, encoded.offsets[0, 1:][: found.mask.shape[1]])

    def image_query(
        self,
        regions: np.ndarray,
        boxes: np.ndarray,
        relations: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Query:
        """An image, encoded.

        Args:
          regions: [R, F] region features; boxes: [R, 4] in 0..1; see `ExportedModel.encode_image`.
          relations: for a model with scene graphs, int [E, 3] of subject region, number in
            `model.predicates`, object region, and confidences [E]; none if not given.

        Raises:
          UserError: these are not what the model takes.
        """
        regions, boxes = np.asarray(regions), np.asarray(boxes)
        if not len(regions):
            raise UserError("the image has no regions; give one or more")
        graph = None
        if relations is not None:
            triples, confidences = relations
            graph = np.asarray(triples)[None], np.asarray(confidences)[None]
        return Query("images", self.model.encode_image(regions[None], boxes[None], relations=graph))

    def item_query(self, id: str) -> Query:
        """An item of the index, as it is stored."""
        return Query(self.side, self.stored(np.array([self.row(id)])))

    def stored(self, rows: np.ndarray) -> Embeddings:
        """Embeddings of some rows [n], as they are stored."""
        block = self._table.take(rows, row_scores.ARRAYS[self.kind])
        return row_scores.embeddings(block, self.kind)

    def query_text(self, text: str, k: int = 10, **how: Any) -> Answer:
        """The k images that fit a sentence best; how: see `search`."""
        return self.search(self.text_query(text), k, **how)

    def query_image(
        self,
        regions: np.ndarray,
        boxes: np.ndarray,
        k: int = 10,
        *,
        relations: tuple[np.ndarray, np.ndarray] | None = None,
        **how: Any,
    ) -> Answer:
        """The k captions that fit an image best, or in an index of images those most like it.

        Args:
          regions, boxes, relations: see `image_query`.
          k: how many.
          how: see `search`.
        """
        return self.search(self.image_query(regions, boxes, relations), k, **how)

    def query_item(self, id: str, k: int = 10, **how: Any) -> Answer:
        """The k items most like one of the index."""
        return self.search(self.item_query(id), k, **how)

    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        stage: str = "auto",
        candidates: int = CANDIDATES,
        where: Mapping[str, str] | None = None,
    ) -> Answer:
        """The k best items.

        Args:
          query: of `text_query` or `item_query`.
          k: how many.
          stage: exact scores all items; staged those that the first stage names; auto chooses.
          candidates: that the first stage names, at least k.
          where: only items with these values of their fields.

        Raises:
          UserError: k, stage or the side of the query do not fit.
        """
        start = time.perf_counter()
        self.check_question(query, k, stage)
        stage = self._chosen_stage(stage)
        chosen = self._table.chosen(where or {})
        if stage == "exact":
            scorer, asked = self._asked(query)
            rows, scores = self._top(scorer, asked, k, chosen)
        else:
            assert self._stage is not None
            code = self._stage.query_code(query.embeddings, query.side)
            rows, _ = self._top("codes", code, max(candidates, k), chosen)
            rows, scores = self._rescored(query, rows, k)
        items = self._table.items
        hits = [
            Hit(items[row], float(score), int(row)) for row, score in zip(rows, scores, strict=True)
        ]
        return Answer(hits, query, stage, time.perf_counter() - start)

    def check_question(self, query: Query, k: int, stage: str) -> None:
        """Raises a UserError if k, stage or the side of the query do not fit."""
        if k < 1:
            raise UserError(f"k={k}; give 1 or more")
        if stage not in STAGES:
            raise UserError(f"stage={stage!r} is not known; use {', '.join(STAGES)}")
        if query.side == self.side == "captions":
            raise UserError(
                "an index of captions is asked by images; index the images to ask by text"
            )

    @property
    def first_stage(self) -> FirstStage | None:
        """What names candidates, if it was fitted."""
        return self._stage

    def _chosen_stage(self, stage: str) -> str:
        if stage == "staged" and self._stage is None:
            raise UserError(
                f"{self.store.directory} has no first stage; make one with "
                "python -m xmodal_jax.retrieval fit, or search exactly"
            )
        if stage != "auto":
            return stage
        return automatic_stage(self.kind, self.store.first_stage, len(self))

    def _top(
        self, scorer: str, asked: Any, k: int, chosen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the chosen rows; see `Scan.top`."""
        # The two scores of items read the same arrays, which are kept once.
        names = row_scores.CODES if scorer == "codes" else row_scores.ARRAYS[self.kind]
        if names not in self._blocks:
            self._blocks[names] = Blocks(self._table, names, self._mesh)
        return self._scans[scorer].top(self._blocks[names], asked, k, chosen)

    def _asked(self, query: Query) -> tuple[str, Any]:
        """The scorer of a query, and what it is given."""
        scorer = "likeness" if query.side == self.side else "model"
        return scorer, (self._params if scorer == "model" else (), query.one)

    def _rescored(self, query: Query, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best of these rows by the model, best first."""
        if not len(rows):
            return rows, np.zeros(0, np.float32)
        scores = self.block_scores(query, self._table.take(rows, row_scores.ARRAYS[self.kind]))
        order = np.lexsort((rows, -scores))[:k]
        return rows[order], scores[order]

    def block_scores(self, query: Query, block: Mapping[str, np.ndarray]) -> np.ndarray:
        """The model's scores [n] of stored arrays [n, ...] with a query."""
        count = len(next(iter(block.values())))
        # Filled up to a power of two: programs are compiled for sizes.
        filled = np.resize(np.arange(count), 1 << (count - 1).bit_length())
        scorer, asked = self._asked(query)
        whole = {name: array[filled] for name, array in block.items()}
        return np.asarray(self._scans[scorer].scores(whole, asked))[:count]

    # Explaining

    def have_boxes(self, rows: np.ndarray) -> np.ndarray:
        """bool [n], which of some rows have boxes."""
        return self._table.has("boxes", rows)

    def stored_boxes(self, rows: np.ndarray) -> np.ndarray | None:
        """float [n, R, 4] of some rows, x1, y1, x2, y2 in 0..1; None where one has none."""
        if not self.have_boxes(rows).all():
            return None
        return self._table.take(rows, ("boxes",))["boxes"].astype(np.float32)

    def boxes(self, row: int) -> np.ndarray | None:
        """float [R, 4] of a row's regions, x1, y1, x2, y2 in 0..1; None where there are none."""
        rows = np.array([row])
        boxes = self.stored_boxes(rows)
        if boxes is None:
            return None
        if self.kind != "vector":
            return boxes[0][self._table.take(rows, ("mask",))["mask"][0]]
        # A model of one vector keeps no mask; what fills up is a box without width and height.
        return boxes[0][(boxes[0][:, 2:] > boxes[0][:, :2]).all(1)]

    def similarities(self, query: Query, row: int) -> np.ndarray | None:
        """Cosines [R, W] of a row's vectors with the query's; None for a model without them."""
        if self.kind == "vector":
            return None
        stored = self.stored(np.array([row]))
        asked = query.one
        found = np.asarray(jnp.asarray(stored.tokens[0]) @ jnp.asarray(asked.tokens).T)
        return found[np.asarray(stored.mask[0])][:, asked.mask]

    def close(self) -> None:
        """Gives back the memory of what was read; files are opened again when they are needed."""
        self._blocks = {}
