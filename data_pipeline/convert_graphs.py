"""Converts published scene graphs to the neutral JSON lines that the graph models read.

    python -m data_pipeline.convert_graphs flickr30k_test_lowered_images_data.joblib graphs.jsonl

SGM (Wang et al., WACV 2020) and LGSGM (Nguyen et al., 2021) published a dict of images:

    {"1000092795.jpg": {"labels": ["man", "hat", ...],                  one a region
                        "bbox": [[x1, y1, x2, y2], ...],                pixels
                        "rels": [["man:0", "wearing", "hat:1"], ...]}}  label : region

FILE is that dict as JSON (*.json, *.json.gz), or as a pickle or joblib file, which is read without
running any of it. Every image becomes one line, in the same order:

    {"id": "1000092795.jpg", "boxes": [[x1, y1, x2, y2], ...], "labels": ["man", "hat", ...],
     "relations": [[0, "wearing", 1, 1.0], ...]}

The published graphs have no confidences, so that of every relation is 1. With --ids, an image's id
is the integer that Karpathy's split files give it: its COCO id, or its number in Flickr30K:

    python -m data_pipeline.convert_graphs coco_images_data.joblib graphs.jsonl \\
        --ids dataset_coco.json
"""

import argparse
import collections
import json
import os
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.file_checks import is_unicode, parse_json
from data_pipeline.inert_pickle import read_pickle, read_unpacked
from data_pipeline.stopping import Stopped, stoppable

_CONFIDENCE = 1.0
_FARTHEST = 1e6  # Pixels.
_REGION = re.compile(r"(.*):([0-9]{1,9})", re.DOTALL)  # A label may have a colon itself.
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100  # Characters of a value in a message; file names fit.
_REMEDY = "correct the graph, or leave the image out"


def read_graphs(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The published dict, file name -> graph, whose graphs are not checked yet."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; give the file of the images' graphs")
    is_json = path.name.lower().endswith((".json", ".json.gz"))
    graphs = _read_json(path) if is_json else read_pickle(path)
    if not isinstance(graphs, dict) or not all(isinstance(name, str) for name in graphs):
        raise DataError(
            f"{path} is not a dict of file name -> scene graph; give the file of the images' graphs"
        )
    if not graphs:
        raise DataError(f"{path} has no scene graphs; give the file of the images' graphs")
    return graphs


def read_ids(path: str | os.PathLike[str]) -> dict[str, int]:
    """File name -> COCO id, or number of the image, from one of Karpathy's split files."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; give another --ids, dataset_coco.json or the like")
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f'{path} has no list "images"; give dataset_coco.json or the like')
    ids: dict[str, int] = {}
    for row, image in enumerate(content["images"]):
        name, image_id = None, None
        if isinstance(image, dict):
            name, image_id = image.get("filename"), image.get("cocoid", image.get("imgid"))
        if not isinstance(name, str) or type(image_id) is not int:
            raise DataError(
                f'{path}, image {row}: needs "filename" and an integer "cocoid" or "imgid"; '
                "give dataset_coco.json or the like"
            )
        if ids.setdefault(name, image_id) != image_id:
            raise DataError(
                f"{path}, image {row}: {name!r} has id {image_id} here and {ids[name]} before; "
                "remove one of the two"
            )
    return ids


def neutral_graph(graph: Any, where: str) -> dict[str, list]:
    """Boxes, labels and relations of a published graph; DataError for what is wrong in it."""
    if not isinstance(graph, dict) or not all(key in graph for key in ("labels", "bbox", "rels")):
        raise DataError(f'{where} is not a dict of "labels", "bbox" and "rels"; {_REMEDY}')
    labels, boxes, relations = (_listed(graph, key, where) for key in ("labels", "bbox", "rels"))
    for region, label in enumerate(labels):
        if not isinstance(label, str) or not is_unicode(label):
            raise DataError(
                f"{where}, region {region}: its label {_SHORT.repr(label)} is no text; {_REMEDY}"
            )
    if len(boxes) != len(labels):
        raise DataError(f"{where} has {len(labels)} labels and {len(boxes)} boxes; {_REMEDY}")
    return {
        "boxes": [_box(box, f"{where}, region {k}") for k, box in enumerate(boxes)],
        "labels": labels,
        "relations": [
            _relation(relation, labels, f"{where}, relation {k}")
            for k, relation in enumerate(relations)
        ],
    }


def write_graphs(
    graphs: Mapping[str, Any],
    out: str | os.PathLike[str],
    source: str = "graphs",
    ids: Mapping[str, int] | None = None,
) -> collections.Counter[str]:
    """Writes a line for each of the graphs and returns how often every predicate was seen.

    The file appears when it is complete. source is how messages call the graphs. Raises DataError
    for a graph with a mistake, and for an image that ids does not have.
    """
    out = Path(out)
    aside = out.with_name(f"{out.name}.tmp")
    predicates: collections.Counter[str] = collections.Counter()
    try:
        with aside.open("w", encoding="ascii") as file:
            for graph in _neutral_graphs(graphs, source, ids):
                predicates.update(predicate for _, predicate, _, _ in graph["relations"])
                file.write(json.dumps(graph) + "\n")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return predicates


def summary(images: int, predicates: collections.Counter[str]) -> str:
    """What was converted, in two lines."""
    commonest = ", ".join(f"{name} {count:,}" for name, count in predicates.most_common(5))
    return (
        f"{images:,} images, {predicates.total():,} relations, {len(predicates):,} predicates\n"
        f"commonest predicates: {commonest or 'none'}"
    )


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_unpacked(path).getvalue())
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); copy it again") from None


def _neutral_graphs(
    graphs: Mapping[str, Any], source: str, ids: Mapping[str, int] | None
) -> Iterator[dict[str, Any]]:
    seen: dict[Any, str] = {}
    for name, graph in tqdm(graphs.items(), "graphs", unit=" images"):
        where = f"{source}, image {_SHORT.repr(name)}"
        if not is_unicode(name):
            raise DataError(f"{where} has half a character (surrogate) in its name; {_REMEDY}")
        if ids is not None and name not in ids:
            raise DataError(f"{where} is not in the file of --ids; give that of the same dataset")
        image_id = name if ids is None else ids[name]
        if (other := seen.setdefault(image_id, name)) != name:
            raise DataError(
                f"{where} has the id {image_id} of image {_SHORT.repr(other)} in the file of "
                "--ids; correct that file"
            )
        yield {"id": image_id, **neutral_graph(graph, where)}


def _listed(graph: dict[str, Any], key: str, where: str) -> list[Any]:
    if not isinstance(graph[key], list | tuple):
        raise DataError(f"{where}: {key!r} is a {type(graph[key]).__name__}, no list; {_REMEDY}")
    return list(graph[key])


def _box(box: Any, where: str) -> list[float]:
    """[4] pixels x1, y1, x2, y2."""
    if (
        not isinstance(box, list | tuple)
        or len(box) != 4
        or not all(type(value) in (int, float) and abs(value) < _FARTHEST for value in box)
        or box[0] > box[2]
        or box[1] > box[3]
    ):
        raise DataError(
            f"{where}: box {_SHORT.repr(box)} is not x1, y1, x2, y2 in pixels; {_REMEDY}"
        )
    return list(box)


def _relation(relation: Any, labels: list[str], where: str) -> list[Any]:
    """[subject region, predicate, object region, confidence] of ["man:1", "wearing", "hat:0"]."""
    if (
        not isinstance(relation, list | tuple)
        or len(relation) != 3
        or not all(isinstance(part, str) and is_unicode(part) for part in relation)
        or not relation[1].strip()
    ):
        raise DataError(
            f"{where}: {_SHORT.repr(relation)} is not three texts, subject, predicate, object; "
            f"{_REMEDY}"
        )
    subject, predicate, target = relation
    return [
        _region(subject, labels, where),
        predicate,
        _region(target, labels, where),
        _CONFIDENCE,
    ]


def _region(text: str, labels: list[str], where: str) -> int:
    """The 1 of "man:1", where region 1 has to be labelled "man"."""
    match = _REGION.fullmatch(text)
    if match is None or int(match[2]) >= len(labels):
        raise DataError(
            f"{where}: {_SHORT.repr(text)} is not label:region with one of the {len(labels)} "
            f"regions; {_REMEDY}"
        )
    label, region = match[1], int(match[2])
    if label != labels[region]:
        raise DataError(
            f"{where}: {_SHORT.repr(text)} names region {region}, whose label is "
            f"{_SHORT.repr(labels[region])}; {_REMEDY}"
        )
    return region


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.convert_graphs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", metavar="FILE", help="the published dict: .json (also .gz), pickle or joblib"
    )
    parser.add_argument("out", metavar="OUT.jsonl", help="the file to write, one line an image")
    parser.add_argument(
        "--ids", metavar="DATASET.json", help="Karpathy's file (also .gz): integers as ids"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older OUT.jsonl")
    return parser


def _convert(args: argparse.Namespace) -> None:
    if os.path.exists(args.out) and not args.overwrite:
        raise DataError(f"{args.out} exists; add --overwrite to replace it")
    ids = None if args.ids is None else read_ids(args.ids)
    print(f"reading {args.file} (a minute for 100,000 images)", flush=True)
    graphs = read_graphs(args.file)
    predicates = write_graphs(graphs, args.out, source=args.file, ids=ids)
    print(summary(len(graphs), predicates))
    print(f"written to {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 after a mistake, told in one line, 128 + n after signal n."""
    args = _parser().parse_args(argv)
    try:
        with stoppable():
            _convert(args)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("stopped; nothing was written", file=sys.stderr)
        return stopped.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
