"""A report on disk: `report.json`, `report.html`, what every query found, and TREC files.

`queries.npz` is what a comparison reads; the CSV files are for people and their programs.
"""

import csv
import dataclasses
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics.parts import SIDES
from xmodal_jax.report.content import Figure, QueryTable, Report

JSON, PAGE, QUERIES = "report.json", "report.html", "queries.npz"
_ARRAYS = ("queries", "images", "fold", "top", "top_scores")
_NAMES = ("image_names", "caption_names")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is the old or the new one at every moment."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    aside.replace(path)


def as_json(report: Report) -> dict[str, Any]:
    """The report but for what single queries found."""
    figures = {name: dataclasses.asdict(figure) for name, figure in report.figures.items()}
    return {
        "about": dict(report.about),
        "units": "percent, but for median_rank and mean_rank",
        "interval": "95 % bootstrap, images drawn with all of their queries",
        "figures": figures,
        "fine_grained": {k: dataclasses.asdict(figure) for k, figure in report.fine.items()},
        "teran_parity": dict(report.parity),
        "diagnostics": dict(report.diagnostics),
        "notes": list(report.notes),
    }


def write_json(directory: Path, report: Report) -> None:
    """Writes `report.json`."""
    write_whole(directory / JSON, json.dumps(as_json(report), indent=2) + "\n")


def write_queries(directory: Path, report: Report) -> None:
    """Writes `queries.npz`: arrays SIDE/NAME, values under SIDE/values/NAME, and the ids.

    Where images and captions are known by their names alone, these are there too.
    """
    collection = report.collection
    arrays: dict[str, Any] = {"image_ids": collection.image_ids}
    arrays["caption_image_ids"] = collection.caption_image_ids
    if collection.caption_names:
        arrays |= {name: np.array(getattr(collection, name), np.str_) for name in _NAMES}
    for side, table in report.tables.items():
        arrays |= {f"{side}/{name}": getattr(table, name) for name in _ARRAYS}
        arrays |= {f"{side}/values/{name}": found for name, found in table.values.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(directory / QUERIES, buffer.getvalue())


def write_csv(
    directory: Path, report: Report, alignments: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Writes `queries_i2t.csv` and `queries_t2i.csv`: a line for each query.

    Columns: its number, image and text, the fold, every value, and the best targets with their
    scores as `target:score` separated by spaces.

    Args:
      directory: of the report.
      report: whose queries they are.
      alignments: C texts each by the name of a further column of the captions.
    """
    collection = report.collection
    for side, table in report.tables.items():
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        extra = dict(alignments or {}) if side == "t2i" else {}
        head = ["query", "image_id", "image", "caption", "fold", *table.values, "best_targets"]
        out.writerow([*head, *extra])
        for k, query in enumerate(table.queries.tolist()):
            row = int(table.images[k])
            name = collection.image_label(row)
            caption = collection.caption_label(query) if side == "t2i" else ""
            values = [f"{found[k]:.6g}" for found in table.values.values()]
            pairs = zip(table.top[k], table.top_scores[k], strict=True)
            best = " ".join(f"{target}:{score:.6g}" for target, score in pairs)
            more = [texts[query] for texts in extra.values()]
            first = [query, collection.image_ids[row], name, caption, table.fold[k]]
            out.writerow([*first, *values, best, *more])
        write_whole(directory / f"queries_{side}.csv", text.getvalue())


@dataclasses.dataclass(frozen=True)
class SavedReport:
    """A report as it was written: its JSON, figures, tables, and the ids of its collection.

    names: of images [I] and of captions [C], where these are known by their names alone; or empty.
    """

    path: Path
    content: dict[str, Any]
    figures: dict[str, Figure]
    tables: dict[str, QueryTable]
    image_ids: np.ndarray
    caption_image_ids: np.ndarray
    names: tuple[np.ndarray, ...] = ()


def read_report(directory: Path) -> SavedReport:
    """Reads what `write_json` and `write_queries` wrote.

    Raises:
      UserError: the directory holds no report, or one that is damaged.
    """
    for name in (JSON, QUERIES):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} is no report: it has no {name}; write one with "
                "python -m xmodal_jax.report evaluate ... --out DIR, or --mode=evaluate"
            )
    try:
        content = json.loads((directory / JSON).read_text())
        figures = {name: Figure(**fields) for name, fields in content["figures"].items()}
        with np.load(directory / QUERIES, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tables = {side: _table(arrays, side) for side in SIDES}
        ids = arrays["image_ids"], arrays["caption_image_ids"]
        names = tuple(arrays[name] for name in _NAMES if name in arrays)
        dict(content["about"])
    except (
        *(ValueError, KeyError, TypeError, AttributeError, OSError, EOFError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise UserError(f"the report in {directory} is damaged: {error}; write it again") from error
    return SavedReport(directory, content, figures, tables, *ids, names)


def _table(arrays: Mapping[str, np.ndarray], side: str) -> QueryTable:
    prefix = f"{side}/values/"
    values = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    own = {name: arrays[f"{side}/{name}"] for name in _ARRAYS}
    return QueryTable(values=values, **own)
