"""Builds a dataset: reads features and captions, checks them, writes TFRecord shards.

    python -m data_pipeline.build scan DIRECTORY --name flickr8k
    python -m data_pipeline.build synthetic

Both write DATA/region_captions/NAME/VERSION/ and say what came out.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Sequence

import tensorflow_datasets as tfds

from data_pipeline.errors import DataError
from data_pipeline.region_captions import build_dataset, open_dataset
from data_pipeline.sources import ScanPrecomp, Source
from data_pipeline.synthetic import SyntheticScenes

_SCAN_HELP = f"""\
{inspect.getdoc(ScanPrecomp)}

Features are checked (finite, shapes, boxes inside of their image, one caption or more an image)
and stored as float16.

Example:
    python -m data_pipeline.build scan flickr8k --name flickr8k --splits train dev test
"""

_SYNTHETIC_HELP = """\
Draws a dataset of small scenes with captions, relations and known word-to-region links: no
download, seconds to build, and a right answer for every question that a model can be asked.

Example:
    python -m data_pipeline.build synthetic --train 4000 --images data/scenes_images
"""


def build(
    source: Source, data_dir: str | os.PathLike[str], overwrite: bool = False
) -> tfds.core.DatasetBuilder:
    """Builds the source's dataset in data_dir unless it is there, prints a summary, opens it."""
    if not build_dataset(source, data_dir, overwrite):
        print(f"{source.name!r} is already built; left as it is (--overwrite builds it again)")
    builder = open_dataset(data_dir, source.name)
    print(summary(builder))
    return builder


def summary(builder: tfds.core.DatasetBuilder) -> str:
    """What is in a dataset, as a table of its splits and a few lines."""
    metadata = builder.info.metadata
    lines = [f"{'split':<8}{'images':>9}{'captions':>10}{'regions':>9}{'words a caption':>24}"]
    for split, figures in metadata["splits"].items():
        regions = sorted({figures["min_regions"], figures["max_regions"]})
        words = f"mean {figures['mean_words']:.1f}, max {figures['max_words']}"
        lines.append(
            f"{split:<8}{figures['images']:>9,}{figures['captions']:>10,}"
            f"{'-'.join(map(str, regions)):>9}{words:>24}"
        )
    size = sum(file.stat().st_size for file in os.scandir(builder.data_dir))
    lines += [
        f"feature width {metadata['feature_width']}, {len(metadata['labels'])} object classes, "
        f"{len(metadata['predicates'])} predicates",
        f"vocabulary of the training captions: {len(metadata['word_counts']):,} words",
        f"{size / 2**20:,.1f} MiB in {builder.data_dir}",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, description: str, short: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=short,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--out", default="data", help="where datasets are (default: data)")
        command.add_argument("--overwrite", action="store_true", help="replace an older dataset")
        return command

    scan = add("scan", _SCAN_HELP, "from .npy features and .txt captions in SCAN's layout")
    scan.add_argument("directory", help="the directory, or the one above its precomp/")
    scan.add_argument("--name", required=True, help="the dataset's name, e.g. flickr8k")
    scan.add_argument("--splits", nargs="+", help="default: every SPLIT_ims.npy that is there")

    synthetic = add("synthetic", _SYNTHETIC_HELP, "drawn scenes: no data needed")
    synthetic.add_argument("--name", default="scenes", help="default: scenes")
    for split, count in (("train", 4000), ("dev", 500), ("test", 500)):
        synthetic.add_argument(
            f"--{split}", type=int, default=count, help=f"number of images (default: {count})"
        )
    synthetic.add_argument("--seed", type=int, default=0, help="default: 0")
    synthetic.add_argument("--images", help="also write the test scenes as pictures there")
    return parser


def _source(args: argparse.Namespace) -> Source:
    if args.command == "scan":
        return ScanPrecomp(args.directory, splits=args.splits, name=args.name)
    sizes = {"train": args.train, "dev": args.dev, "test": args.test}
    return SyntheticScenes(sizes, seed=args.seed, name=args.name, images_dir=args.images)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after a mistake in the data, told in one line."""
    args = _parser().parse_args(argv)
    try:
        build(_source(args), args.out, overwrite=args.overwrite)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("next: see what can be trained on it with  python -m xmodal_jax.main --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
