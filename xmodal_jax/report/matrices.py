"""Saved score matrices: `.npz` files that any program can write, without pickles.

    numpy.savez("scores.npz", scores=scores)                      # [images, captions]
    numpy.savez("scores.npz", scores=scores, image_ids=..., caption_image_ids=...,
                captions=texts, image_names=file_names)           # the last two are arrays of text

Without ids the captions of an image stand together, and each image has the same number of them.
Where the directions are scored apart, `scores_t2i` [captions, images] is there as well.
"""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics.parts import Part, make_part, parts_of
from xmodal_jax.metrics.ranking import folds
from xmodal_jax.report.collection import Collection

_KNOWN = ("scores", "scores_t2i", "image_ids", "caption_image_ids", "captions", "image_names")


@dataclasses.dataclass(frozen=True)
class SavedScores:
    """Scores [I, C], those of the other direction [C, I] if they differ, and whose they are.

    NaN where a pair was not scored: `ScoreSaver` leaves so what lies between folds.
    """

    scores: np.ndarray
    scores_t2i: np.ndarray | None
    collection: Collection

    def parts(self, protocol: str) -> Iterator[Part]:
        """Both directions of every fold of a protocol.

        Raises:
          UserError: an unknown protocol, or one that ranks pairs which were not scored.
        """
        ids = self.collection.image_ids, self.collection.caption_image_ids
        if protocol == "full" and self._of_folds():
            raise UserError(
                "protocol full: only the pairs within five folds have scores here; use 5fold"
            )
        if self.scores_t2i is None:
            yield from parts_of(self.scores, *ids, protocol)
            return
        for fold, (rows, columns) in enumerate(folds(*ids, protocol)):
            images = np.arange(len(ids[0]))[rows], ids[0][rows]
            captions = np.arange(len(ids[1]))[columns], ids[1][columns]
            yield make_part("i2t", fold, images, captions, self.scores[rows][:, columns])
            yield make_part("t2i", fold, images, captions, self.scores_t2i[columns][:, rows])

    def _of_folds(self) -> bool:
        """Whether the scores are those of `5fold` alone."""
        ids = self.collection.image_ids, self.collection.caption_image_ids
        if len(ids[0]) % 5:
            return False
        rows, columns = next(folds(*ids, "5fold"))
        scored = ~np.isnan(self.scores[rows])
        return bool(scored[:, columns].all()) and not np.delete(scored, columns, axis=1).any()


def read_scores(path: Path) -> SavedScores:
    """Reads a `.npz` file, or a `.npy` file of scores alone.

    Raises:
      UserError: what it holds is no score matrix of images and captions.
    """
    arrays = _arrays(path)
    if unknown := sorted(arrays.keys() - set(_KNOWN)):
        raise UserError(f"{path} holds {unknown[0]!r}; it may hold {', '.join(_KNOWN)}")
    if "scores" not in arrays:
        raise UserError(f"{path} holds no 'scores'; save them with numpy.savez(FILE, scores=...)")
    for name in ("scores", "scores_t2i"):
        if name in arrays and (arrays[name].ndim != 2 or arrays[name].dtype.kind not in "fiu"):
            found = f"{arrays[name].dtype} {list(arrays[name].shape)}"
            raise UserError(f"{path}: {name!r} is {found}, not numbers [images, captions]")
    scores = _as_float(arrays["scores"])
    images, captions = scores.shape
    if not scores.size:
        raise UserError(f"{path}: 'scores' is [{images}, {captions}]; give one score or more")
    ids = arrays.get("image_ids", np.arange(images))
    owners = arrays.get("caption_image_ids")
    if owners is None:
        if "image_ids" in arrays or captions % images:
            raise UserError(
                f"{path}: {captions} captions of {images} images; give 'image_ids' and "
                "'caption_image_ids', which image each caption is of"
            )
        owners = np.repeat(ids, captions // images)
    wanted_sizes = ("image_ids", ids, images), ("caption_image_ids", owners, captions)
    for name, numbers, wanted in wanted_sizes:
        if numbers.shape != (wanted,) or numbers.dtype.kind not in "iu":
            is_a = f"{numbers.dtype} {list(numbers.shape)}"
            raise UserError(f"{path}: {name!r} is {is_a}, not {wanted} whole numbers")
    turned = arrays.get("scores_t2i")
    if turned is not None and turned.shape != (captions, images):
        shape = list(turned.shape)
        raise UserError(f"{path}: 'scores_t2i' is {shape}, not [{captions}, {images}]")
    collection = Collection(
        ids,
        owners,
        _texts(path, arrays, "image_names"),
        _texts(path, arrays, "captions"),
    )
    return SavedScores(scores, None if turned is None else _as_float(turned), collection)


def _as_float(scores: np.ndarray) -> np.ndarray:
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is missing; give scores as .npz or .npy")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"scores": found}
        with found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} can't be read as .npz without pickles: {error}; save plain arrays"
        ) from error


def _texts(path: Path, arrays: dict[str, np.ndarray], name: str) -> list[str]:
    found = arrays.get(name)
    if found is None:
        return []
    if found.dtype.kind != "U" or found.ndim != 1:
        raise UserError(f"{path}: {name!r} is {found.dtype}, not an array of text")
    return found.tolist()


class ScoreSaver:
    """Hands parts on and keeps their scores, to be written when all have passed."""

    def __init__(self, path: Path, collection: Collection) -> None:
        """path: the .npz file."""
        self._path, self._collection = path, collection
        self._sides: dict[str, list[Part]] = {"i2t": [], "t2i": []}

    def passing(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The same parts."""
        for part in parts:
            self._sides[part.side].append(part)
            yield part

    def write(self) -> None:
        """Writes what has passed; pairs of two folds, which were not scored, are NaN."""
        shape = len(self._collection.image_ids), len(self._collection.caption_image_ids)
        i2t = _assembled(self._sides["i2t"], shape)
        t2i = _assembled(self._sides["t2i"], shape[::-1])
        arrays = {
            "scores": i2t,
            "image_ids": self._collection.image_ids,
            "caption_image_ids": self._collection.caption_image_ids,
            "captions": np.array(self._collection.captions, dtype=np.str_),
            "image_names": np.array(self._collection.image_names, dtype=np.str_),
        }
        if not np.array_equal(i2t, t2i.T, equal_nan=True):
            arrays["scores_t2i"] = t2i
        kept: dict[str, Any] = {name: value for name, value in arrays.items() if value.size}
        aside = self._path.with_name("_" + self._path.name)
        np.savez(aside, **kept)
        aside.replace(self._path)


def _assembled(parts: list[Part], shape: tuple[int, int]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0].scores
    out = np.full(shape, np.nan, parts[0].scores.dtype)
    for part in parts:
        out[np.ix_(part.queries, part.targets)] = part.scores
    return out
