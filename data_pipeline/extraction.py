"""Computing the regions of many images: in parts, so that a run that was stopped continues.

`Parts` are the files of one extraction, `Budget` counts the images that cannot be used, `extract`
does the work. The models stand behind `RegionExtractor` (region_extractors.py).
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.file_checks import half_precision
from data_pipeline.image_files import BadImage, ImageFile, load_ahead
from data_pipeline.sources.extracted import (
    SETTINGS,
    Part,
    part_paths,
    read_part,
    read_settings,
    write_part,
)

if TYPE_CHECKING:  # It imports PyTorch.
    from data_pipeline.region_extractors import Found, Pixels, RegionExtractor

BAD_IMAGES = "bad_images.txt"
_PART_BYTES = 2**26  # of features in a part, at most
_THREADS = 8  # that read images, at most


class Parts:
    """The parts of one extraction on disk, in a directory that is this process's alone."""

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], files: Mapping[str, ImageFile]
    ) -> None:
        """Finds out what is done; parts that are damaged or out of date are removed.

        Args:
          settings: what the features depend on; they are written if there were none.
          files: of this extraction.

        Raises:
          DataError: there are features of other settings.
        """
        self._directory = directory
        self.done: set[str] = set()
        self.bad: dict[str, str] = {}
        for rest in directory.glob(".part-*"):
            rest.unlink()
        if part_paths(directory) or (directory / SETTINGS).exists():
            _check_settings(directory, settings)
        _write_text(directory / SETTINGS, json.dumps(settings, indent=2) + "\n")
        for path in part_paths(directory):
            if (problem := self._take(path, files)) is not None:
                print(f"{path.name} {problem}; its images are extracted again", file=sys.stderr)
                path.unlink()

    def _take(self, path: Path, files: Mapping[str, ImageFile]) -> str | None:
        """Counts a part as done, or says why not."""
        try:
            part = read_part(path)
        except DataError:
            return "is damaged"
        for name, num_bytes in zip(part.names.tolist(), part.num_bytes.tolist(), strict=True):
            if name in files and files[name].num_bytes != num_bytes:
                return f"has an older {name}"
        self._count(part)
        return None

    def _count(self, part: Part) -> None:
        self.done.update(part.names.tolist())
        reasons = zip(part.names.tolist(), part.reasons.tolist(), strict=True)
        self.bad.update((name, reason) for name, reason in reasons if reason)

    def add(self, part: Part) -> None:
        """Writes one more; its number is the first that is free."""
        paths = (self._directory / f"part-{number:05d}.npz" for number in range(10**5))
        write_part(next(path for path in paths if not path.exists()), part)
        self._count(part)


def _check_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    before = read_settings(directory)
    for field, value in settings.items():
        if _essence(before.get(field)) != _essence(value):
            raise DataError(
                f"{directory} has features with {field}={json.dumps(before.get(field))}, and now "
                f"it is {json.dumps(value)}; go back to that, take another --name, or replace them "
                "with --overwrite"
            )


def _essence(value: Any) -> Any:
    """A model is what it holds, wherever it lies."""
    return value.get("sha256", value) if isinstance(value, dict) else value


def remove_features(directory: Path, settings: Mapping[str, Any]) -> None:
    """Removes features of other settings; those of the same ones need not be made again."""
    with contextlib.suppress(DataError):
        return _check_settings(directory, settings)
    for path in [*part_paths(directory), directory / SETTINGS, directory / BAD_IMAGES]:
        path.unlink(missing_ok=True)


class Budget:
    """How many images may be bad, and which ones are."""

    def __init__(self, most: int, path: Path) -> None:
        self._most, self._path = most, path
        self.bad: dict[str, str] = {}

    def add(self, bad: Mapping[str, str]) -> None:
        """DataError if there are now too many."""
        self.bad |= bad
        if len(self.bad) > self._most:
            name, reason = next(reversed(self.bad.items()))
            raise DataError(
                f"{len(self.bad)} images are bad, more than --max-bad={self._most}, the last one "
                f"{name!r} ({reason}); {self._path} lists them: correct them, or give a larger "
                "--max-bad to go on without them"
            )

    def write(self) -> None:
        """Lists them in a file, name, tab, reason; no file where there are none."""
        if self.bad:
            _write_text(self._path, "".join(f"{name}\t{why}\n" for name, why in self.bad.items()))
        else:
            self._path.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(aside, path)


def extract(
    files: Mapping[str, ImageFile],
    extractor: "RegionExtractor",
    parts: Parts,
    budget: Budget,
    *,
    batch_size: int,
    part_images: int,
) -> None:
    """Extracts all files that `parts` does not have, and adds them to it.

    What is in a part and in a batch depends on the files that are left alone, so that a run that
    was stopped and continued writes the bytes of one that was not.

    Raises:
      DataError: more images are bad than the budget allows. Parts that are whole stay.
    """
    left = [name for name in files if name not in parts.done]
    size = max(1, min(part_images, _PART_BYTES // (2 * extractor.width * extractor.most)))
    threads = min(_THREADS, os.cpu_count() or 1)
    paths = [files[name].path for name in left]
    with (
        load_ahead(extractor.load, paths, threads, batch_size + threads) as images,
        tqdm(total=len(files), initial=len(files) - len(left), unit=" images") as bar,
    ):
        for start in range(0, len(left), size):
            draft = _Draft(extractor, batch_size)
            for name in left[start : start + size]:
                image = next(images)
                if isinstance(image, BadImage):
                    budget.add({name: str(image)})
                draft.add(name, files[name].num_bytes, image)
                bar.update()
            part = draft.finish()
            budget.add(draft.bad)
            parts.add(part)


class _Draft:
    """A part that is being made; regions are extracted batch by batch."""

    def __init__(self, extractor: "RegionExtractor", batch_size: int) -> None:
        self._extractor, self._batch_size = extractor, batch_size
        self._names: list[str] = []
        self._num_bytes: list[int] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        self._waiting: dict[str, Pixels] = {}
        self._found: dict[str, Found] = {}
        self.bad: dict[str, str] = {}

    def add(self, name: str, num_bytes: int, image: "Pixels | BadImage") -> None:
        self._names.append(name)
        self._num_bytes.append(num_bytes)
        if isinstance(image, BadImage):
            self.bad[name] = str(image)
            return
        self._waiting[name] = image
        if len(self._waiting) == self._batch_size:
            self._extract()

    def _extract(self) -> None:
        found = self._extractor.extract(list(self._waiting.values()))
        for (name, image), regions in zip(self._waiting.items(), found, strict=True):
            try:
                half_precision(regions.features, "features")
            except DataError as error:
                self.bad[name] = str(error)
                continue
            self._found[name], self._sizes[name] = regions, image.size
        self._waiting.clear()

    def finish(self) -> Part:
        if self._waiting:
            self._extract()
        found = list(self._found.values())
        scales = [np.tile(np.array(self._sizes[name], np.float32), 2) for name in self._found]
        boxes = [regions.boxes * scale for regions, scale in zip(found, scales, strict=True)]
        sizes = [self._sizes.get(name, (0, 0)) for name in self._names]
        return Part(
            names=np.array(self._names, np.str_),
            num_bytes=np.array(self._num_bytes, np.int64),
            reasons=np.array([self.bad.get(name, "") for name in self._names], np.str_),
            counts=np.array([self._count(name) for name in self._names], np.int32),
            sizes=np.array(sizes, np.int32).reshape(-1, 2),
            features=_joined([f.features for f in found], np.float16, self._extractor.width),
            boxes=_joined(boxes, np.float32, 4),
            labels=_joined([f.labels for f in found], np.int32),
        )

    def _count(self, name: str) -> int:
        return len(self._found[name].features) if name in self._found else 0


def _joined(arrays: Sequence[np.ndarray], dtype: type, *shape: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, *shape), dtype), *(x.astype(dtype) for x in arrays)])


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """DataError if another process is at work there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process extracts to {directory}; wait for it") from None
        yield
