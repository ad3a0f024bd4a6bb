"""Index a collection, ask it in words or with an image, and see what matched.

  python -m xmodal_jax.retrieval index runs/demo/index --model runs/demo/export \\
    --dataset scenes --split test --pictures data/scenes_images
  python -m xmodal_jax.retrieval query runs/demo/index "a red circle left of a blue square"
  python -m xmodal_jax.retrieval query runs/demo/index "a green star" --picture found.png
  python -m xmodal_jax.retrieval query runs/demo/index --like scenes_test_000003.png
  python -m xmodal_jax.retrieval serve runs/demo/index
  python -m xmodal_jax.retrieval bench runs/demo/index --images 500 20000
  python -m xmodal_jax.retrieval copy runs/demo/index qdrant-edge:runs/demo/qdrant

The collection is a dataset that was built with data_pipeline.build or data_pipeline.extract, the
model an export (--mode=export). An index may grow (add) and shrink (remove); a command that is
killed leaves it as it was before its last step.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from data_pipeline.errors import DataError
from xmodal_jax import export
from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import fitting
from xmodal_jax.retrieval.engines import copying
from xmodal_jax.retrieval.engines.engine import Engine
from xmodal_jax.retrieval.engines.qdrant import Qdrant
from xmodal_jax.retrieval.index import STAGES, Answer, Index
from xmodal_jax.retrieval.items import STORES, Part
from xmodal_jax.retrieval.pictures import Pictures, draw_answer
from xmodal_jax.retrieval.row_scores import SIDES
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


def _parts(collection: Any, side: str) -> tuple[Iterator[Part], int]:
    if side == "images":
        return collection.images(), len(collection)
    return collection.captions(), collection.num_captions


def _asked(index: Index, collection: Any) -> Embeddings:
    """Some of what an index may be asked."""
    other = collection.captions() if index.side == "images" else collection.images()
    return jax.tree.map(lambda x: x[: fitting.ASKED], next(other).embeddings)


def _fit(index: Index, collection: Any = None) -> None:
    """Fits the first stage, on captions where the collection has some, and says how good it is."""
    asked = None if collection is None else _asked(index, collection)
    with _bar(len(index), "first stage") as bar:
        about = fitting.fit_first_stage(index, asked, on_done=bar.update)
    print(
        f"first stage ({about['name']}): {100 * about['recall']:.1f} % of the exact ten best are "
        f"among what it names, for {about['queries']} queries ({about['measured_with']})"
    )
    if not about["trusted"]:
        print(
            f"that is below {100 * fitting.TRUSTED:.0f} %: searches score every item; more "
            "--features make it better"
        )


def index(args: argparse.Namespace) -> None:
    """Makes an index."""
    model = export.load(args.model)
    collection = _collection(args, model)
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
    _report(made)
    if made.kind != "vector" and len(made) >= _WORTH_FITTING:
        _fit(made, collection)


def _report(made: Index) -> None:
    each = made.store.bytes / max(len(made), 1)
    print(
        f"{made.store.directory}: {len(made):,} {made.side}, {made.store.bytes / 2**20:,.1f} MiB "
        f"({each:,.0f} bytes each), model of kind {made.kind}"
    )


def _model(args: argparse.Namespace) -> export.ExportedModel | None:
    return export.load(args.model) if args.model else None


def _opened(args: argparse.Namespace) -> Index:
    return Index.open(args.index, _model(args))


def add(args: argparse.Namespace) -> None:
    """Adds a split to an index."""
    made = _opened(args)
    parts, total = _parts(_collection(args, made.model), made.side)
    with _bar(total, "add") as bar:
        made.add(parts, bar.update)
    _report(made)


def remove(args: argparse.Namespace) -> None:
    """Removes items."""
    made = _opened(args)
    made.remove(args.ids)
    _report(made)


def fit(args: argparse.Namespace) -> None:
    """Fits the first stage again."""
    made = _opened(args)
    _fit(made, _collection(args, made.model) if args.dataset else None)


def verify(args: argparse.Namespace) -> None:
    """Compares all checksums."""
    _report(Index.open(args.index, _model(args), verify=True))
    print("every file is as it was written")


def query(args: argparse.Namespace) -> None:
    """Prints what fits a sentence, or what is like an item."""
    if bool(args.text) == bool(args.like):
        raise UserError("give a sentence, or an item of the index with --like ID")
    made = _opened(args)
    engine: Engine = Qdrant.open(args.engine, made) if args.engine else made
    how = {"stage": args.stage, "where": dict(_pair(text) for text in args.where)}
    asked = made.text_query(args.text) if args.text else engine.item_query(args.like)
    answer = engine.search(asked, args.k, **how)
    if args.json:
        print(json.dumps(_as_json(engine, answer)))
    else:
        _print_answer(engine, answer, made.side)
    if args.picture:
        pictures = Pictures(_pictures(made, args))
        draw_answer(engine, answer, pictures).save(args.picture, format="PNG")
    engine.close()


def _pictures(made: Index, args: argparse.Namespace) -> str:
    return args.pictures or made.store.about["pictures"]


def serve(args: argparse.Namespace) -> None:
    """Shows an index as a web page."""
    missing = [name for name in _OF_SERVE if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{", ".join(missing)} not installed; pip install -e ".[serve]"')
    from xmodal_jax.retrieval import serve as page

    made = _opened(args)
    page.run(made, args.host, args.port, pictures=_pictures(made, args))


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
    the index, mixed, with a quarter of the variance within images replaced by that of a third, and
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m xmodal_jax.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Any, what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            run.__name__,
            help=what,
            description=inspect.cleandoc(run.__doc__),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("index", type=Path, metavar="INDEX", help="its directory")
        made.set_defaults(run=run)
        if run is not index:
            made.add_argument("--model", help="its export, if it is not where it was")
        return made

    def of_dataset(made: argparse.ArgumentParser, required: bool = True) -> None:
        made.add_argument("--dataset", required=required, help="name of a built dataset")
        made.add_argument("--split", default="test", help="of the dataset (default: test)")
        made.add_argument("--data", default="data", help="where datasets are (default: data)")

    def of_pictures(made: argparse.ArgumentParser) -> None:
        made.add_argument("--pictures", help="directory of the images' files, if they moved")

    made = command(index, "make an index of a split of a dataset")
    of_dataset(made)
    made.add_argument("--model", required=True, help="directory of an export")
    made.add_argument(
        "--side",
        choices=SIDES,
        default="images",
        help="what is indexed: images, to be asked by sentences, or captions, to be asked by "
        "images (default: images)",
    )
    made.add_argument(
        "--store",
        choices=STORES,
        default="int8",
        help="how vectors are kept: int8 with a scale each, or float16, twice as large (default: "
        "int8)",
    )
    made.add_argument("--pictures", help="directory of the images' files, for the web page")
    of_dataset(command(add, "add a split of a dataset"))
    made = command(remove, "remove items")
    made.add_argument("ids", nargs="+", metavar="ID", help="of an item")
    of_dataset(command(fit, "fit the first stage again, when an index has grown"), required=False)
    command(verify, "compare the checksums of all files")
    made = command(query, "ask")
    made.add_argument("text", nargs="?", default="", help="a sentence")
    made.add_argument("--like", metavar="ID", help="an item of the index, instead of a sentence")
    made.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    made.add_argument(
        "--stage",
        choices=STAGES,
        default="auto",
        help="exact scores all items, staged those that the first stage names (default: auto)",
    )
    made.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only items with this value of a field, such as split=test; may be repeated",
    )
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("--picture", metavar="FILE.png", help="draw the best of them there")
    of_pictures(made)
    engine = "qdrant-edge:DIR (in this process) or http://HOST:PORT/COLLECTION"
    made.add_argument("--engine", help=f"ask Qdrant: {engine}; see copy")
    made = command(serve, "show it as a web page, needs the extra [serve]")
    made.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this)")
    made.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    of_pictures(made)
    made = command(copy, "copy the items to Qdrant, for collections that outgrow one machine")
    made.add_argument(
        "engine", metavar="ENGINE", help=f"{engine}; a key is read from QDRANT_API_KEY"
    )
    made = command(bench, "measure speed, size and recall")
    of_dataset(made, required=False)
    made.add_argument(
        "--images",
        type=int,
        nargs="+",
        metavar="N",
        help="sizes to measure; those beyond the index's own, the default, with synthetic items",
    )
    made.add_argument(
        "--engine",
        action="append",
        choices=("qdrant-edge",),
        default=[],
        help="measure this one as well",
    )
    made.add_argument("--queries", type=int, default=50, help="how many are asked (default: 50)")
    made.add_argument("--scratch", help="directory for what is built (default: the system's)")
    made.add_argument("--json", action="store_true", help="print a line of JSON a measurement")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    args = _parser().parse_args(argv)
    # The libraries report every file they read at INFO.
    logging.set_verbosity(logging.WARNING)
    try:
        args.run(args)
    except (UserError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
