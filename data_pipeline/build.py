"""Builds a dataset: reads features and captions, checks them, writes TFRecord shards.

    python -m data_pipeline.build scan DIRECTORY --name flickr8k
    python -m data_pipeline.build folders features_36 --captions dataset_coco.json --name coco
    python -m data_pipeline.build bottom-up all.tsv --captions dataset_coco.json --name coco
    python -m data_pipeline.build synthetic

All write OUT/region_captions/NAME/VERSION/ and say what came out. --check reads everything, reports
what is there and what is wrong, and writes nothing. Images without features are the matter of
`python -m data_pipeline.extract`.
"""

import argparse
import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from data_pipeline.caption_flags import (
    add_caption_flags,
    add_scene_graphs_flag,
    captions_of,
    count_rows,
    scene_graphs_of,
)
from data_pipeline.check import check
from data_pipeline.errors import DataError
from data_pipeline.region_captions import (
    LEFT_OUT,
    WriteShards,
    build_dataset,
    open_dataset,
    write_in_turn,
)
from data_pipeline.shards import BadRecords
from data_pipeline.sources import (
    BottomUpTsv,
    FeatureFolders,
    JoinedSource,
    ScanPrecomp,
    Source,
)
from data_pipeline.sources.captions import Splits
from data_pipeline.sources.joined import KINDS
from data_pipeline.sources.sizes import read_sizes
from data_pipeline.sources.source import graph_files
from data_pipeline.stopping import Stopped, stoppable
from data_pipeline.synthetic import SyntheticScenes

_CHECKED = """\
Features are checked (finite, shapes, boxes inside of their image, one caption or more an image)
and stored as float16."""

_SCAN_HELP = f"""\
{inspect.getdoc(ScanPrecomp)}

{_CHECKED}

Example:
    python -m data_pipeline.build scan flickr8k --name flickr8k --splits train dev test
"""

_FOLDERS_HELP = f"""\
{inspect.getdoc(FeatureFolders)}

This is the layout of TERAN, TERN and SGAE. Captions come from another file, see --captions.

{_CHECKED}

Examples:
    python -m data_pipeline.build folders coco/features_36 --name coco \\
        --captions coco/annotations                           # COCO's JSON, ids of VSE++
    python -m data_pipeline.build folders f30k/features_36 --name f30k \\
        --captions f30k/annotations/dataset_flickr30k.json --sizes f30k/images/sizes.pkl
"""

_BOTTOM_UP_HELP = f"""\
{inspect.getdoc(BottomUpTsv)}

{_CHECKED}

Example:
    python -m data_pipeline.build bottom-up trainval_36.tsv test_36.tsv --name coco \\
        --captions dataset_coco.json --restval train
"""

_SYNTHETIC_HELP = """\
Draws a dataset of small scenes with captions, relations and known word-to-region links: no
download, seconds to build, and a right answer for every question that a model can be asked.

Example:
    python -m data_pipeline.build synthetic --train 4000 --images data/scenes_images
    python -m data_pipeline.build synthetic --images data/scenes_images --draw test
"""


def build(
    source: Source,
    data_dir: str | os.PathLike[str],
    overwrite: bool = False,
    on_bad: BadRecords = BadRecords(),  # noqa: B008 - it cannot be changed
    write: WriteShards = write_in_turn,
) -> tfds.core.DatasetBuilder:
    """Builds the source's dataset in data_dir unless it is there, prints a summary, opens it."""
    if not build_dataset(source, data_dir, overwrite, on_bad, write):
        print(f"{source.name!r} is already built; left as it is (--overwrite builds it again)")
    builder = open_dataset(data_dir, source.name)
    print(summary(builder))
    notes: list[str] = getattr(source, "notes", list)()
    if write is write_in_turn:  # Others read the images in processes of their own.
        notes += [note for graphs in graph_files(source) for note in graphs.notes()]
    for note in notes:
        print(f"note: {note}")
    return builder


def check_counts(source: Source, builder: tfds.core.DatasetBuilder) -> None:
    """DataError if a dataset was built of fewer or more images or captions than a source has."""
    metadata = builder.info.metadata
    left_out = metadata.get("left_out", {})
    before = {
        split: (figures["images"] + left_out.get(split, 0), figures["captions"])
        for split, figures in metadata["splits"].items()
    }
    now = {split: source.contents(split).caption_counts for split in source.splits()}
    for split in [*now, *(before.keys() - now.keys())]:
        counts = now.get(split, ())
        found, known = (len(counts), int(sum(counts))), before.get(split, (0, 0))
        # Captions of images that were left out were not counted.
        if found != known and (found[0] != known[0] or not left_out.get(split)):
            raise DataError(
                f"{builder.data_dir} was built of {known[0]} images with {known[1]} captions in "
                f"{split}, and now there are {found[0]} with {found[1]}; build it again with "
                "--overwrite, or take another --name"
            )


def summary(builder: tfds.core.DatasetBuilder) -> str:
    """What is in a dataset, as a table of its splits and a few lines."""
    metadata = builder.info.metadata
    lines = [
        f"{'split':<8}{'images':>9}{'captions':>10}{'regions':>9}{'words a caption':>24}"
        f"{'with boxes':>12}{'with relations':>16}"
    ]
    for split, figures in metadata["splits"].items():
        regions = sorted({figures["min_regions"], figures["max_regions"]})
        words = f"mean {figures['mean_words']:.1f}, max {figures['max_words']}"
        lines.append(
            f"{split:<8}{figures['images']:>9,}{figures['captions']:>10,}"
            f"{'-'.join(map(str, regions)):>9}{words:>24}"
            # Older datasets do not say.
            f"{figures.get('with_boxes', '?'):>12}{figures.get('with_relations', '?'):>16}"
        )
    size = sum(file.stat().length for file in epath.Path(builder.data_dir).iterdir())
    lines += [
        f"feature width {metadata['feature_width']}, {len(metadata['labels'])} object classes, "
        f"{len(metadata['predicates'])} predicates",
        f"vocabulary of the training captions: {len(metadata['word_counts']):,} words",
        f"{size / 2**20:,.1f} MiB in {builder.data_dir}",
    ]
    if left_out := sum(metadata.get("left_out", {}).values()):
        path = os.path.join(builder.data_dir, LEFT_OUT)
        lines.append(f"{left_out:,} bad images were left out; {path} says why")
    return "\n".join(lines)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number; give 0 or more")
    return int(text)


def _count(text: str) -> int:
    if (value := _number(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few; give 1 or more")
    return value


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
        command.add_argument(
            "--check", action="store_true", help="read everything, report, write nothing"
        )
        command.add_argument(
            "--on-bad-record",
            choices=("stop", "skip"),
            default="stop",
            help="an image that cannot be read stops the build, or is left out and counted",
        )
        command.add_argument(
            "--max-bad",
            type=_number,
            default=100,
            metavar="N",
            help="with skip: more bad images than this stop it all the same (default: 100)",
        )
        command.add_argument(
            "--beam",
            action="store_true",
            help="write the files with Apache Beam (extra [beam]); options of a cluster's runner "
            "come behind --, e.g. -- --runner=DataflowRunner --project=P --region=R ...",
        )
        command.add_argument(
            "--workers",
            type=_count,
            metavar="N",
            help="with --beam: processes (default: 2)",
        )
        return command

    scan = add("scan", _SCAN_HELP, "from .npy features and .txt captions in SCAN's layout")
    scan.add_argument("directory", help="the directory, or the one above its precomp/")
    scan.add_argument("--name", required=True, help="the dataset's name, e.g. flickr8k")
    scan.add_argument("--splits", nargs="+", help="default: every SPLIT_ims.npy that is there")
    add_scene_graphs_flag(scan)

    folders = add("folders", _FOLDERS_HELP, "from bu_att/ID.npz and bu_box/ID.npy (TERAN, SGAE)")
    folders.add_argument("directory", type=Path, help="the directory above bu_att and bu_box")
    tsv = add("bottom-up", _BOTTOM_UP_HELP, "from the TSV files of bottom-up attention")
    tsv.add_argument("tsv", nargs="+", type=Path, help="the files, of all splits")
    for command in (folders, tsv):
        _add_joined_flags(command)

    synthetic = add("synthetic", _SYNTHETIC_HELP, "drawn scenes: no data needed")
    synthetic.add_argument("--name", default="scenes", help="default: scenes")
    for split, count in (("train", 4000), ("dev", 500), ("test", 500)):
        synthetic.add_argument(
            f"--{split}", type=int, default=count, help=f"number of images (default: {count})"
        )
    synthetic.add_argument("--seed", type=int, default=0, help="default: 0")
    synthetic.add_argument("--images", help="also write the scenes as pictures there")
    synthetic.add_argument(
        "--draw",
        nargs="+",
        default=[],
        metavar="SPLIT",
        help="only write the pictures of these splits to --images, and no dataset",
    )
    return parser


def _add_joined_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", required=True, help="the dataset's name, e.g. coco")
    add_caption_flags(command)
    command.add_argument(
        "--names",
        choices=KINDS,
        help="what feature files are called by: an image's id, its row in the caption file, its "
        "file name, or that without the ending (default: what finds most of them)",
    )
    command.add_argument(
        "--sizes",
        type=Path,
        metavar="FILE",
        help="widths and heights by row of the caption file, where neither features nor captions "
        "have them: sizes.pkl of TERAN (a list of pairs, read without unpickling), .json or .npy",
    )
    add_scene_graphs_flag(command)


def _opener(args: argparse.Namespace) -> Callable[[], Source]:
    """What opens the source, here or in a worker."""
    if args.command == "scan":
        return functools.partial(
            ScanPrecomp,
            args.directory,
            splits=args.splits,
            name=args.name,
            scene_graphs=args.scene_graphs,
        )
    if args.command == "synthetic":
        sizes = {"train": args.train, "dev": args.dev, "test": args.test}
        images = None if args.check else args.images
        return functools.partial(SyntheticScenes, sizes, args.seed, args.name, images)
    return functools.partial(_joined, args)


def _joined(args: argparse.Namespace) -> Source:
    captions = captions_of(args)
    sizes = _sizes(args, captions) if args.sizes else ()
    store = BottomUpTsv(args.tsv) if args.command == "bottom-up" else FeatureFolders(args.directory)
    return JoinedSource(
        args.name,
        captions,
        store,
        kind=args.names,
        sizes=sizes,
        graphs=scene_graphs_of(args),
    )


def _sizes(args: argparse.Namespace, captions: Splits) -> list[tuple[int, int]]:
    """Those of --sizes; DataError where they can't be those of the caption file's images."""
    if len(args.captions) > 1:
        raise DataError("--sizes go by the rows of one caption file, and --captions names several")
    path = next(item.path for items in captions.values() for item in items)
    found, rows = read_sizes(args.sizes), count_rows(args, captions)
    if path.suffix == ".npy":
        raise DataError(
            f"--sizes go by the rows of one caption file, and {args.captions[0]} is a directory "
            "with several; leave them out, as COCO's files know the sizes"
        )
    if len(found) != rows:
        raise DataError(
            f"{args.sizes} has {len(found)} sizes and {path} {rows} images; give the sizes of "
            "these images, in their order"
        )
    return found


def _draw(args: argparse.Namespace) -> None:
    if not args.images or args.check:
        raise DataError("--draw writes pictures; say where with --images DIR, without --check")
    source = _opener(args)()
    assert isinstance(source, SyntheticScenes)
    for split in args.draw:
        count = len(source.contents(split).image_ids)
        for number in range(count):
            source.save_image(split, number)
        print(f"{count:,} pictures of {split} are in {args.images}")


def _writer(
    args: argparse.Namespace, make_source: Callable[[], Source], beam_args: Sequence[str]
) -> WriteShards:
    if not args.beam:
        if beam_args:
            raise DataError(f"{beam_args[0]} behind -- is an option of Beam; add --beam")
        if args.workers is not None:
            raise DataError(f"--workers={args.workers} are processes of Beam; add --beam")
        return write_in_turn
    from data_pipeline.beam_build import BeamWriter  # Late: it needs the extra "beam".

    return BeamWriter(make_source, args.workers or 2, beam_args)


def _run(args: argparse.Namespace, beam_args: Sequence[str]) -> int:
    if getattr(args, "draw", ()):
        _draw(args)
        return 0
    make_source = _opener(args)
    if args.check:
        report = check(make_source)
        print(report)
        return 1 if report.problems else 0
    on_bad = BadRecords(skip=args.on_bad_record == "skip", limit=args.max_bad)
    write = _writer(args, make_source, beam_args)
    source = make_source()
    check_counts(source, build(source, args.out, args.overwrite, on_bad, write))
    print("next: see what can be trained on it with  python -m xmodal_jax.main --help")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status.

    0, 1 where --check finds problems, 2 after a mistake in the data, 128 + n after signal n.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = _parser().parse_args(words[:end])
    try:
        with stoppable():
            return _run(args, words[end + 1 :])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except tf.errors.OpError as error:  # of files
        print(f"error: {error.message}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("stopped; the same command builds it", file=sys.stderr)
        return stopped.exit_status


if __name__ == "__main__":
    sys.exit(main())
