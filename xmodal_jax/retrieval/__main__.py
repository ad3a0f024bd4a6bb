"""Index a collection, ask it in words or with an image, and see what matched.

  python -m xmodal_jax.retrieval index runs/demo/index --model runs/demo/export \\
    --dataset scenes --split test --pictures data/scenes_images
  python -m xmodal_jax.retrieval query runs/demo/index "a red circle left of a blue square"
  python -m xmodal_jax.retrieval query runs/demo/index "a green star" --picture found.png
  python -m xmodal_jax.retrieval query runs/demo/index --like scenes_test_000003.png
  python -m xmodal_jax.retrieval query runs/demo/captions --image scenes_test_000003.png \\
    --dataset scenes
  python -m xmodal_jax.retrieval serve runs/demo/index
  python -m xmodal_jax.retrieval bench runs/demo/index --images 500 20000
  python -m xmodal_jax.retrieval copy runs/demo/index qdrant-edge:runs/demo/qdrant

The collection is a dataset that was built with data_pipeline.build or data_pipeline.extract, the
model an export (--mode=export). An index may grow (add) and shrink (remove, compact); a command
that is killed leaves it as it was before its last step.
"""

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from xmodal_jax.errors import exit_code
from xmodal_jax.retrieval import commands
from xmodal_jax.retrieval.bench import ENGINES
from xmodal_jax.retrieval.index import STAGES
from xmodal_jax.retrieval.items import STORES
from xmodal_jax.retrieval.lemur import FEATURES
from xmodal_jax.retrieval.row_scores import SIDES

# What asks for its model in its own way, and what knows files only.
_WITHOUT_MODEL = (commands.index, commands.remove, commands.compact, commands.verify)


def _positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m xmodal_jax.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Any, what: str) -> argparse.ArgumentParser:
        made = group.add_parser(
            run.__name__,
            help=what,
            description=inspect.cleandoc(run.__doc__),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("index", type=Path, metavar="INDEX", help="its directory")
        made.set_defaults(run=run)
        if run not in _WITHOUT_MODEL:
            made.add_argument("--model", help="its export, if it is not where it was")
        return made

    def of_dataset(made: argparse.ArgumentParser, required: bool = True) -> None:
        made.add_argument("--dataset", required=required, help="name of a built dataset")
        made.add_argument("--split", default="test", help="of the dataset (default: test)")
        made.add_argument("--data", default="data", help="where datasets are (default: data)")

    def of_pictures(made: argparse.ArgumentParser) -> None:
        made.add_argument("--pictures", help="directory of the images' files, if they moved")

    def of_first_stage(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--features",
            type=_positive,
            default=FEATURES,
            help="bytes of an item's code in the first stage of word-region alignment; "
            f"more find more (default: {FEATURES})",
        )

    made = command(commands.index, "make an index of a split of a dataset")
    of_dataset(made)
    of_first_stage(made)
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
    of_dataset(command(commands.add, "add a split of a dataset"))
    made = command(commands.remove, "remove items")
    made.add_argument("ids", nargs="+", metavar="ID", help="of an item")
    command(commands.compact, "merge the files of many parts, free what was removed")
    made = command(commands.fit, "fit the first stage again, when an index has grown")
    of_dataset(made, required=False)
    of_first_stage(made)
    command(commands.verify, "compare the checksums of all files")
    made = command(commands.query, "ask")
    made.add_argument("text", nargs="?", default="", help="a sentence")
    made.add_argument("--like", metavar="ID", help="an item of the index, instead of a sentence")
    made.add_argument(
        "--image",
        metavar="ID",
        help="an image of --dataset, or FILE.npz with its regions and boxes; finds captions",
    )
    of_dataset(made, required=False)
    made.add_argument("-k", type=_positive, default=10, help="how many (default: 10)")
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
    made = command(commands.serve, "show it as a web page, needs the extra [serve]")
    made.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this)")
    made.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    made.add_argument(
        "--name",
        action="append",
        default=[],
        help="another one that it is called by, such as that of a proxy; may be repeated",
    )
    of_pictures(made)
    made = command(
        commands.copy, "copy the items to Qdrant, for collections that outgrow one machine"
    )
    made.add_argument(
        "engine", metavar="ENGINE", help=f"{engine}; a key is read from QDRANT_API_KEY"
    )
    made = command(commands.bench, "measure speed, size and recall")
    of_dataset(made, required=False)
    made.add_argument(
        "--images",
        type=_positive,
        nargs="+",
        metavar="N",
        help="sizes to measure; those beyond the index's own, the default, with synthetic items",
    )
    made.add_argument(
        "--engine",
        action="append",
        choices=ENGINES,
        default=[],
        help="measure this one as well",
    )
    made.add_argument(
        "--queries", type=_positive, default=50, help="how many are asked (default: 50)"
    )
    made.add_argument("--scratch", help="directory for what is built (default: the system's)")
    made.add_argument("--json", action="store_true", help="print a line of JSON a measurement")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    args = _parser().parse_args(argv)
    # The libraries report every file they read at INFO.
    logging.set_verbosity(logging.WARNING)
    return exit_code(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
