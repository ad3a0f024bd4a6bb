"""SCAN's file layout, which most image-text matching code reads since (Lee et al., ECCV 2018)."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import (
    ROUNDED,
    check_file_name,
    check_is_file,
    check_pixels,
    encode_relations,
    half_precision,
    normalised_boxes,
    open_array,
    parse_integer,
    read_lines,
)
from data_pipeline.inert_pickle import read_object_array
from data_pipeline.sources.scene_graphs import Graph, SceneGraphs
from data_pipeline.sources.source import Contents

_REPEATS = 5  # SCAN's dev and test files hold every image row five times, once a caption.
_USUAL_ORDER = ("train", "dev", "val", "test")


class ScanPrecomp:
    """Region features and captions in the layout of SCAN's `*_precomp` directories.

    In DIRECTORY/precomp or in DIRECTORY itself, for every split (N rows, n images, R regions):

        SPLIT_ims.npy            [N, R, F] float features; read row by row, never as a whole
        SPLIT_caps.txt           UTF-8, one caption a line, those of an image together
        SPLIT_ids.txt            integer image ids, one a row or one a caption; without the file
                                 images are numbered by row
        SPLIT_boxes.npy          [N, R, 4] pixels x1, y1, x2, y2; without it all boxes are 0; as
          or SPLIT_ims_bbx.npy   GSMN, CMCAN and CGMN call it
        SPLIT_img_sizes.npy      [N, 2] width, height in pixels (CAMERA); needed by boxes unless all
          or SPLIT_ims_size.npy  these are in 0..1; GSMN's form, an object array of dicts with
                                 image_w and image_h, is read without unpickling it
        SPLIT_labels.npy         [N, R] object class of a region, as a line number of labels.txt
        SPLIT_filenames.txt      image files, one a row
        SPLIT_scene_graphs.jsonl one object an image; "relations": [[subject, "predicate", object,
                                 confidence], ...]; without an "id" of its own (the image's id, its
                                 file's name or that's stem) a line is of the image in its row;
                                 subjects and objects are regions, or with "boxes" in pixels the
                                 regions that overlap most; "labels" of the objects are taken where
                                 there are no SPLIT_labels.npy. --scene-graphs FILE.jsonl with ids
                                 is one such file for all splits

    Only the first two are required; labels.txt lies beside them or in the parent directory. N is n,
    or 5 n where every image is repeated for each of its captions (SCAN's dev and test files): then
    it is found out and undone. The optional files may have N or n rows. Adjacency files (CGMN's
    *_IOU.npy, CMCAN's *_ims_dir_selfadj*.npy) are not read: graphs follow from the boxes.
    """

    def __init__(
        self,
        directory: str | Path,
        splits: Sequence[str] | None = None,
        name: str | None = None,
        scene_graphs: Path | None = None,
    ) -> None:
        """Opens the feature files and checks their shapes; everything else is read when asked for.

        Args:
            directory: see above.
            splits: the splits to read; by default all that have features.
            name: of the dataset; by default the directory's.
            scene_graphs: of all splits, instead of SPLIT_scene_graphs.jsonl.
        """
        nested = Path(directory) / "precomp"
        self._directory = nested if nested.is_dir() else Path(directory)
        self.name = name or Path(directory).resolve().name
        if splits and len(set(splits)) < len(splits):
            raise DataError(f"--splits {' '.join(splits)} lists a split twice; give each once")
        self._features = {split: self._open_features(split) for split in splits or self._found()}
        self._scene_graphs = scene_graphs

    def splits(self) -> list[str]:
        return list(self._features)

    @functools.cache  # noqa: B019 - a source lives as long as the program that builds from it
    def contents(self, split: str) -> Contents:
        images, captions = self._count(split), len(self._captions(split))
        ids = np.array(self._image_ids(split, captions), np.int64)
        return Contents(ids, np.full(images, captions // images))

    def _count(self, split: str) -> int:
        return len(self._features[split]) // self._step(split)

    @functools.cached_property
    def feature_width(self) -> int:
        widths = {split: rows.shape[2] for split, rows in self._features.items()}
        if len(set(widths.values())) > 1:
            raise DataError(
                f"feature widths differ between the splits of {self._directory}: {widths}; "
                "extract all of them with one model, or choose --splits"
            )
        return next(iter(widths.values()))

    @functools.cached_property
    def labels(self) -> list[str]:
        """Those of labels.txt, or of the scene graphs where no region has a label of its own."""
        if not any(self._path(split, "labels.npy").exists() for split in self.splits()):
            graphs = (self._graphs(split) for split in self.splits())
            if found := {label for one in graphs if one for label in one.labels}:
                return sorted(found)
        for path in (self._directory / "labels.txt", self._directory.parent / "labels.txt"):
            if path.exists():
                return read_lines(path)
        return []

    @functools.cached_property
    def predicates(self) -> list[str]:
        graphs = (self._graphs(split) for split in self.splits())
        return sorted({name for one in graphs if one for name in one.predicates})

    @functools.cached_property
    def _predicate_ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.predicates)}

    @functools.cached_property
    def _label_ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.labels)}

    def scene_graphs(self) -> list[SceneGraphs]:
        """The files of them, each once."""
        found = (self._graphs(split) for split in self.splits())
        return list({graphs.path: graphs for graphs in found if graphs}.values())

    def read(self, split: str, index: int) -> dict[str, Any]:
        rows, step = self._features[split], self._step(split)
        where = f"{self._directory}, split {split}, row {index * step}"
        regions = half_precision(rows[index * step], where)
        if step > 1 and (rows[index * step : (index + 1) * step] != rows[index * step]).any():
            raise DataError(
                f"{where}: this and the next {step - 1} rows differ, whereas rows 0 to "
                f"{step - 1} are one image; repeat every image {step} times, or none"
            )
        sizes, names = self._sizes(split), self._file_names(split)
        captions = self._captions(split)
        per_image = len(captions) // self._count(split)
        size = np.zeros(2, np.int32) if sizes is None else _whole(sizes[index], where)
        boxes = self._boxes(split, index, size, where)
        graph = self._graph(split, index, boxes, size)
        relations, scores = encode_relations(
            graph.relations, self._predicate_ids, len(regions), graph.where
        )
        return {
            "file_name": names[index] if names else "",
            "size": size,
            "regions": regions,
            "boxes": boxes,
            "object_labels": self._object_labels(split, index, graph, where),
            "relations": relations,
            "relation_scores": scores,
            "captions": captions[index * per_image : (index + 1) * per_image],
            "links": np.zeros((0, 4), np.int32),
        }

    def _path(self, split: str, ending: str) -> Path:
        return self._directory / f"{split}_{ending}"

    def _found(self) -> list[str]:
        found = [p.name.removesuffix("_ims.npy") for p in self._directory.glob("*_ims.npy")]
        if not found:
            raise DataError(
                f"no SPLIT_ims.npy in {self._directory}; give the directory that has them, or the "
                "one above its precomp/"
            )
        usual = [split for split in _USUAL_ORDER if split in found]
        return usual + sorted(set(found) - set(usual))

    def _open_features(self, split: str) -> np.ndarray:
        path = self._path(split, "ims.npy")
        rows = open_array(path)
        if rows.ndim != 3 or rows.dtype.kind != "f" or 0 in rows.shape:
            raise DataError(
                f"{path} is {rows.dtype}{list(rows.shape)}; it must be floats "
                "[images, regions, feature width]"
            )
        return rows

    @functools.cache  # noqa: B019
    def _step(self, split: str) -> int:
        """Rows an image has: 5 where the first five are the same, which `examples` verifies."""
        rows = self._features[split]
        # Of bytes: a NaN, which is told when its row is read, is not equal to itself.
        head = np.ascontiguousarray(rows[:_REPEATS]).reshape(len(rows[:_REPEATS]), -1)
        same = len({row.tobytes() for row in head}) == 1
        repeated = len(rows) % _REPEATS == 0 and same
        return _REPEATS if repeated else 1

    def _aligned(self, split: str, values: Any, path: Path) -> Any:
        """One value an image, of values that come one an image or one a row of features."""
        images, rows = self._count(split), len(self._features[split])
        if len(values) == images:
            return values
        if len(values) == rows:
            return values[:: self._step(split)]
        raise DataError(
            f"{path} has {len(values)} rows and {split}_ims.npy has {rows} ({images} images); "
            "write both from the same images"
        )

    @functools.cache  # noqa: B019
    def _array(
        self, split: str, ending: str, inner: tuple[int, ...], kinds: str = "fiu"
    ) -> np.ndarray | None:
        """[n, *inner], an entry an image, of a file that need not be there.

        kinds: of dtypes that may be in it.
        """
        path = self._path(split, ending)
        if not path.exists():
            return None
        array = open_array(path)
        if array.dtype.kind not in kinds:
            raise DataError(
                f"{path} is an array of {array.dtype}; it must be one of "
                f"{'numbers' if 'f' in kinds else 'integers'}"
            )
        if array.shape[1:] != inner:
            raise DataError(
                f"{path} has shape {list(array.shape)}; it must be [images, "
                f"{', '.join(map(str, inner))}]" + _known_shape(array.shape)
            )
        return self._aligned(split, array, path)

    @functools.cache  # noqa: B019
    def _sizes(self, split: str) -> Any:
        """[n, 2] width and height of the images, or None."""
        if (sizes := self._array(split, "img_sizes.npy", (2,))) is not None:
            return sizes
        path = self._path(split, "ims_size.npy")
        if not path.exists():
            return None
        check_is_file(path)
        found = read_object_array(path)
        try:
            sizes = np.array([(int(x["image_w"]), int(x["image_h"])) for x in found], np.int32)
        except (TypeError, KeyError, ValueError, OverflowError):
            raise DataError(
                f"{path} is not an array of dicts with image_w and image_h; write "
                f"{split}_img_sizes.npy [images, 2] instead"
            ) from None
        return self._aligned(split, sizes, path)

    @functools.cache  # noqa: B019
    def _box_file(self, split: str) -> tuple[np.ndarray, bool] | None:
        """Boxes [n, R, 4] and whether they are in 0..1 already, or None."""
        endings = [e for e in ("boxes.npy", "ims_bbx.npy") if self._path(split, e).exists()]
        if not endings:
            return None
        path = self._path(split, endings[0])
        if len(endings) > 1:
            raise DataError(
                f"{path} and {self._path(split, endings[1]).name} are both there; keep the one "
                "that belongs to these features"
            )
        boxes = self._array(split, endings[0], (self._features[split].shape[1], 4))
        assert boxes is not None
        highest = float(np.nan_to_num(boxes, nan=np.inf).max())
        # No set of images has boxes of a pixel only; 1 may have been rounded up.
        normalised = 0 < highest <= 1 + ROUNDED
        if 1 + ROUNDED < highest <= 2:
            raise DataError(
                f"{path} goes up to {highest:.4g}: that is neither 0..1 nor pixels; correct it"
            )
        if not normalised and self._sizes(split) is None:
            raise DataError(
                f"{path} has no {split}_img_sizes.npy beside it, without which pixels mean "
                "nothing; add it or remove the boxes"
            )
        return boxes, normalised

    def _boxes(self, split: str, index: int, size: np.ndarray, where: str) -> np.ndarray:
        found = self._box_file(split)
        if found is None:
            return np.zeros((self._features[split].shape[1], 4), np.float32)
        boxes, normalised = found
        if normalised:
            # A pixel beyond the image is tolerated; here 1 would be the whole image.
            return normalised_boxes(boxes[index], np.ones(2), where, tolerance=ROUNDED)
        check_pixels(boxes[index], size, where)
        return normalised_boxes(boxes[index], size, where)

    @functools.cache  # noqa: B019
    def _file_names(self, split: str) -> list[str]:
        path = self._path(split, "filenames.txt")
        if not path.exists():
            return []
        names = read_lines(path)
        for number, name in enumerate(names, start=1):
            check_file_name(name, f"{path} line {number}")
        return self._aligned(split, names, path)

    @functools.cache  # noqa: B019
    def _captions(self, split: str) -> list[str]:
        path, images = self._path(split, "caps.txt"), self._count(split)
        captions = read_lines(path)
        for number, caption in enumerate(captions, start=1):
            if not caption:
                raise DataError(f"{path} line {number} is empty; every line must be a caption")
        if not captions or len(captions) % images:
            raise DataError(
                f"{path} has {len(captions)} captions, which is not a multiple of the {images} "
                f"images of {split}_ims.npy; give every image the same number of lines"
            )
        return captions

    def _image_ids(self, split: str, captions: int) -> list[int]:
        path, images = self._path(split, "ids.txt"), self._count(split)
        if not path.exists():
            return list(range(images))
        lines = read_lines(path)
        if len(lines) not in (images, len(self._features[split]), captions):
            raise DataError(
                f"{path} has {len(lines)} lines for {images} images and {captions} captions; "
                "it needs one line an image or one a caption"
            )
        repeats = len(lines) // images
        ids = [parse_integer(line, path, number) for number, line in enumerate(lines, start=1)]
        first: dict[int, int] = {}
        for number, image_id in enumerate(ids):
            # The row where an id was first seen must be the row that it is on now.
            if first.setdefault(image_id, number // repeats) != number // repeats:
                raise DataError(
                    f"{path} line {number + 1}: id {image_id} is already that of image "
                    f"{first[image_id]}; ids must be unique (remove the file to number by row)"
                )
        if len(first) != images:
            raise DataError(
                f"{path} has {len(first)} different ids for {images} images; write the id of an "
                f"image on {repeats} successive lines (or remove the file to number by row)"
            )
        return ids[::repeats]

    def _object_labels(self, split: str, index: int, graph: Graph, where: str) -> np.ndarray:
        labels = self._array(split, "labels.npy", self._features[split].shape[1:2], "iu")
        if labels is None:
            return np.array([self._label_ids.get(label, -1) for label in graph.labels], np.int32)
        row = labels[index]
        highest = len(self.labels) if self.labels else np.iinfo(np.int32).max
        if (row < 0).any() or (row >= highest).any():
            raise DataError(
                f"{where}: object label {row[(row < 0) | (row >= highest)][0]} is not a line of "
                f"labels.txt, which has {len(self.labels)}; use the detector's own list"
            )
        return row.astype(np.int32)

    @functools.cache  # noqa: B019
    def _graphs(self, split: str) -> SceneGraphs | None:
        path = self._path(split, "scene_graphs.jsonl")
        if not path.exists():
            return self._common_graphs
        if self._scene_graphs is not None:
            raise DataError(
                f"{path} and --scene-graphs {self._scene_graphs} are both there; keep the one that "
                "belongs to these features"
            )
        graphs = SceneGraphs(path, of_split=True)
        self._check_graphs(graphs, [split])
        return graphs

    @functools.cached_property
    def _common_graphs(self) -> SceneGraphs | None:
        if self._scene_graphs is None:
            return None
        graphs = SceneGraphs(self._scene_graphs)
        self._check_graphs(graphs, self.splits())
        return graphs

    def _check_graphs(self, graphs: SceneGraphs, splits: Sequence[str]) -> None:
        places = ((split, index) for split in splits for index in range(self._count(split)))
        graphs.match(
            (self._names(split, index, graphs) for split, index in places),
            "add SPLIT_ids.txt or SPLIT_filenames.txt, or leave out the ids of graphs that are in "
            "the order of the rows",
        )

    def _names(self, split: str, index: int, graphs: SceneGraphs) -> dict[str, str]:
        """What a scene graph may call an image, by kind; a number that is no id is none."""
        if graphs.by_row:
            return {"row": str(self._aligned(split, range(len(graphs)), graphs.path)[index])}
        names = {}
        if self._has_ids(split):
            names["id"] = str(self.contents(split).image_ids[index])
        if files := self._file_names(split):
            names |= {"file": files[index], "stem": Path(files[index]).stem}
        return names

    @functools.cache  # noqa: B019
    def _has_ids(self, split: str) -> bool:
        return self._path(split, "ids.txt").exists()

    def _graph(self, split: str, index: int, boxes: np.ndarray, size: np.ndarray) -> Graph:
        """The graph of an image with boxes [R, 4] in 0..1, and size 0 where it is not known."""
        graphs = self._graphs(split)
        name = graphs.find(self._names(split, index, graphs)) if graphs else None
        if graphs is None or name is None:
            return Graph([], [])
        pixels = boxes * np.tile(size, 2) if boxes.any() and size.all() else None
        return graphs.read(name, pixels, len(boxes))


def _whole(size: np.ndarray, where: str) -> np.ndarray:
    """Width and height as int32; DataError for what is no number of pixels."""
    if not (np.abs(size.astype(np.float64)) < 2**31).all():  # Not so of NaN.
        raise DataError(f"{where}: image size {size.tolist()}; correct the image's size")
    return size.astype(np.int32)


def _known_shape(shape: tuple[int, ...]) -> str:
    """What a file of another project that has the same name is."""
    if len(shape) == 3 and shape[-1] == 30:
        return "; PFAN's position blocks have this name, and are no boxes: remove the file"
    return ""
