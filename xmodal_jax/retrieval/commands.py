"""What the commands of the search do, each with the arguments of its command line."""

import argparse
import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from xmodal_jax import export
from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import first_stage, fitting
from xmodal_jax.retrieval.answers import Answer, Query
from xmodal_jax.retrieval.engines import copying
from xmodal_jax.retrieval.engines.engine import Engine
from xmodal_jax.retrieval.engines.qdrant import Qdrant
from xmodal_jax.retrieval.features import read_features
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Part
from xmodal_jax.retrieval.pictures import Pictures, draw_answer
from xmodal_jax.retrieval.store import Store
from xmodal_jax.retrieval.words import matched_words

_WORTH_FITTING = 1000  # items
_OF_SERVE = ("fastapi", "uvicorn", "prometheus_client")  # the extra [serve]


def _collection(args: argparse.Namespace, model: export.ExportedModel) -> Any:
    # TensorFlow, which reads datasets, takes seconds to import; a search needs none of it.
    from data_pipeline.region_captions import open_dataset
    from xmodal_jax.retrieval.collection import Collection

    dataset = open_dataset(args.data, args.dataset)
    return Collection(dataset, args.split, model, {"dataset": args.dataset})


def _bar(total: int, what: str) -> tqdm:
    return tqdm(total=total, desc=what, unit=" items", disable=None)


def _parts(
    collection: Any, side: str, without: Set[str] = frozenset()
) -> tuple[Iterator[Part], int]:
    """The items but those of these ids, and how many they are."""
    images = side == "images"
    items = collection.image_items() if images else collection.caption_items()
    parts = collection.images(without) if images else collection.captions(without)
    return parts, sum(item.id not in without for item in items)


def _asked(index: Index, collection: Any) -> Embeddings:
    """Some of what an index may be asked."""
    other = collection.captions() if index.side == "images" else collection.images()
    return jax.tree.map(lambda x: x[: fitting.ASKED], next(other).embeddings)


def _fit(index: Index, features: int, collection: Any = None) -> None:
    """Fits the first stage, on captions where the collection has some, and says how good it is."""
    asked = None if collection is None else _asked(index, collection)
    with _bar(len(index), "first stage") as bar:
        about = fitting.fit_first_stage(index, asked, features=features, on_done=bar.update)
    print(
        f"first stage ({about['name']}): {100 * about['recall']:.1f} % of the exact ten best are "
        f"among what it names, for {about['queries']} queries ({about['measured_with']})"
    )
    if not about["trusted"]:
        print(
            f"this is below {100 * first_stage.TRUSTED:.0f} %: searches score every item; more "
            "--features make it better"
        )


def index(args: argparse.Namespace) -> None:
    """Makes an index."""
    model = export.load(args.model)
    collection = _collection(args, model)
    if args.pictures:
        _check_pictures(args.pictures, collection)
    parts, total = _parts(collection, args.side)
    with _bar(total, "index") as bar:
        made = Index.build(
            args.index,
            model,
            parts,
            side=args.side,
            store=args.store,
            model_path=args.model,
            pictures=args.pictures or "",
            on_stored=bar.update,
        )
    _report(made.store)
    if made.kind != "vector" and len(made) >= _WORTH_FITTING:
        _fit(made, args.features, collection)


def _check_pictures(directory: str, collection: Any) -> None:
    """Says how many pictures are missing; UserError if all of them are."""
    pictures, items = Pictures(directory), collection.image_items()
    missing = [item for item in items if pictures.path(item) is None]
    if not missing:
        return
    first = missing[0].file or f"file name of {missing[0].id!r}"
    if len(missing) == len(items):
        raise UserError(
            f"--pictures={directory} has the picture of none of the {len(items):,} images, such as "
            f"{first}; give the directory that has them"
        )
    print(
        f"note: {directory} lacks the pictures of {len(missing):,} of {len(items):,} images, "
        f"such as {first}",
        flush=True,
    )


def _report(store: Store) -> None:
    count = int(store.table().live.sum())
    print(
        f"{store.directory}: {count:,} {store.about['side']}, {store.bytes / 2**20:,.1f} MiB "
        f"({store.bytes / max(count, 1):,.0f} bytes each), model of kind {store.about['kind']}"
    )


def _model(args: argparse.Namespace) -> export.ExportedModel | None:
    return export.load(args.model) if args.model else None


def _opened(args: argparse.Namespace) -> Index:
    return Index.open(args.index, _model(args))


def add(args: argparse.Namespace) -> None:
    """Adds a split to an index.

    Ids that are in the index are left out, so that a command that was stopped goes on when it is
    given again. Whether the image is another one by now is not looked at: remove the ids first to
    replace them.
    """
    made = _opened(args)
    collection = _collection(args, made.model)
    before = len(made)
    _, given = _parts(collection, made.side)
    parts, total = _parts(collection, made.side, {item.id for item in made.items()})
    with _bar(total, "add") as bar:
        made.add(parts, bar.update)
    left_out = f", {given - total:,} left out: their ids are there" if given > total else ""
    print(f"{len(made) - before:,} {made.side} added{left_out}")
    _report(made.store)
    about = made.store.first_stage
    if first_stage.has_lapsed(made.kind, about, len(made)):
        print(
            f"the first stage was measured among {about['items']:,} items and is not trusted among "
            f"{len(made):,}: searches score every item; fit it again with "
            f"python -m xmodal_jax.retrieval fit {args.index}"
        )


def remove(args: argparse.Namespace) -> None:
    """Removes items; their bytes are freed by compact."""
    store = Store.open(args.index)
    with store.writing():
        store.remove(args.ids)
    _report(store)


def compact(args: argparse.Namespace) -> None:
    """Merges the files of many parts into few, and frees what was removed or replaced.

    The order of items and all answers stay. Searches that have the index open go on with it as it
    was, and what they use is freed when they end. A compaction that is killed leaves the index
    whole; the next one deletes what it left.
    """
    store = Store.open(args.index)
    with store.writing():
        freed = store.compact()
    _report(store)
    print(f"{freed / 2**20:,.1f} MiB freed")


def fit(args: argparse.Namespace) -> None:
    """Fits the first stage again."""
    made = _opened(args)
    _fit(made, args.features, _collection(args, made.model) if args.dataset else None)


def verify(args: argparse.Namespace) -> None:
    """Compares all checksums."""
    _report(Store.open(args.index, verify=True))
    print("every file is as it was written")


def query(args: argparse.Namespace) -> None:
    """Prints what fits a sentence or an image, or what is like an item.

    An image is one of a dataset, or a file of arrays: regions [R, F] and boxes [R, 4] in 0..1, and
    for a model with scene graphs relations [E, 3] and confidences [E].
    """
    if sum(map(bool, (args.text, args.like, args.image))) != 1:
        raise UserError("give a sentence, or an item of the index with --like ID, or --image")
    made = _opened(args)
    engine: Engine = Qdrant.open(args.engine, made) if args.engine else made
    how = {"stage": args.stage, "where": dict(_pair(text) for text in args.where)}
    if args.like:
        asked = engine.item_query(args.like)
    else:
        asked = made.text_query(args.text) if args.text else _image(made, args)
    answer = engine.search(asked, args.k, **how)
    if args.json:
        print(json.dumps(_as_json(engine, answer)))
    else:
        _print_answer(engine, answer, made.side)
    if args.picture:
        pictures = Pictures(_pictures(made, args))
        draw_answer(engine, answer, pictures).save(args.picture, format="PNG")
    engine.close()


def _image(made: Index, args: argparse.Namespace) -> Query:
    if args.dataset:
        return Query("images", _collection(args, made.model).image(args.image))
    return made.image_query(*read_features(Path(args.image)))


def _pictures(made: Index, args: argparse.Namespace) -> str:
    return args.pictures or made.store.about["pictures"]


def serve(args: argparse.Namespace) -> None:
    """Shows an index as a web page."""
    missing = [name for name in _OF_SERVE if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} not installed; pip install -e ".[serve]"')
    from xmodal_jax.retrieval import serve as page

    made = _opened(args)
    page.run(made, args.host, args.port, pictures=_pictures(made, args), names=args.name)


def copy(args: argparse.Namespace) -> None:
    """Copies the items of an index to Qdrant; what is there already is left out."""
    made = _opened(args)
    engine = Qdrant.open(args.engine, made, create=True)
    with _bar(len(made), "copy") as bar:
        added = copying.copy(made, engine, bar.update)
    print(f"{args.engine}: {len(engine):,} {made.side}, {added:,} of them new")
    engine.close()


def bench(args: argparse.Namespace) -> None:
    """Measures time, CPU time, bytes, and recall of searches, at the index's size and others.

    Sizes above that of the index are reached with synthetic items: regions of two random images of
    the index, mixed, with a quarter of the variance within images replaced by that of others, and
    normalised again. All is built again in a directory that is deleted afterwards.
    """
    from xmodal_jax.retrieval import bench as benchmark

    made = _opened(args)
    asked = _asked(made, _collection(args, made.model)) if args.dataset else None
    rows = []
    for size in args.images or [len(made)]:
        for row in benchmark.bench(
            made,
            size,
            asked=asked,
            queries=args.queries,
            engines=args.engine,
            scratch=args.scratch,
        ):
            rows.append(row)
            if args.json:
                print(json.dumps(benchmark.as_json(row)), flush=True)
    if not args.json:
        print(benchmark.table(rows))


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--where={text} is not NAME=VALUE, such as split=test")
    return name, value


def _as_json(made: Engine, answer: Answer) -> dict[str, Any]:
    hits = [
        {
            "score": hit.score,
            **dataclasses.asdict(hit.item),
            "words": [word.as_json() for word in matched_words(made, answer.query, hit.row)],
        }
        for hit in answer.hits
    ]
    return {"stage": answer.stage, "seconds": answer.seconds, "hits": hits}


def _print_answer(made: Engine, answer: Answer, side: str) -> None:
    for place, hit in enumerate(answer.hits, 1):
        print(f"{place:3d}  {hit.score:8.4f}  {hit.item.id}  {hit.item.text}")
        words = matched_words(made, answer.query, hit.row)
        if words:
            found = "  ".join(f"{w.text} {w.similarity:.2f} (region {w.region})" for w in words)
            print(f"      {found}")
    print(f"{len(made):,} {side} asked in {1000 * answer.seconds:.0f} ms ({answer.stage})")
