"""Flags of several programs: captions and scene graphs in files of their own, what they ask for."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.sources.captions import Splits, first, read_captions
from data_pipeline.sources.scene_graphs import SceneGraphs


def add_caption_flags(command: argparse.ArgumentParser) -> None:
    """Adds --captions, --restval, --dev, --test and --first."""
    command.add_argument(
        "--captions",
        nargs="+",
        action="extend",
        required=True,
        metavar="[SPLIT=]PATH",
        help="Karpathy's JSON (also .gz); COCO's captions JSON, each as SPLIT=PATH; a CSV (also "
        ".txt), TSV or JSONL table with the columns image, caption and, if you have them, split "
        "and image_id; or a directory with the caption ids of VSE++ (coco_train_ids.npy ...) "
        "beside COCO's JSON",
    )
    command.add_argument(
        "--restval",
        default="train",
        choices=("train", "dev", "test", "restval", ""),
        help='where "restval" goes: a split, restval to keep it, or "" (default: train)',
    )
    for split in ("dev", "test"):
        command.add_argument(
            f"--{split}",
            type=_share,
            default=0.1,
            metavar="SHARE",
            help=f"of a table without splits, the share of {split} images (default: 0.1)",
        )
    command.add_argument(
        "--first",
        nargs="+",
        action="extend",
        default=[],
        metavar="SPLIT=N",
        help="only the first N images of a split, e.g. dev=1000, which COCO is validated on",
    )


def captions_of(args: argparse.Namespace) -> Splits:
    """The captions that those flags ask for."""
    held_out = {"dev": args.dev, "test": args.test}
    if sum(held_out.values()) >= 1:
        raise DataError(f"--dev={args.dev} and --test={args.test} leave nothing to train on")
    splits: Splits = {}
    for word in args.captions:
        # What is there is a path, whatever signs it has.
        named = "=" in word and not Path(word).exists()
        split, path = word.split("=", 1) if named else (None, word)
        found = read_captions(Path(path), split=split, restval=args.restval, held_out=held_out)
        for name, items in found.items():
            if name in splits:
                raise DataError(f"--captions {word} has split {name!r}, and so has one before it")
            splits[name] = items
    return first(splits, _limits(args.first))


def count_rows(args: argparse.Namespace, splits: Splits) -> int:
    """Images of the one caption file, of which the flags may have left out some."""
    if args.first or not args.restval:
        splits = captions_of(
            argparse.Namespace(**{**vars(args), "first": [], "restval": "restval"})
        )
    return 1 + max(item.row for items in splits.values() for item in items)


def _limits(words: Sequence[str]) -> dict[str, int]:
    limits: dict[str, int] = {}
    for word in words:
        split, _, number = word.partition("=")
        if not (number.isascii() and number.isdigit() and int(number) > 0):
            raise DataError(f"--first {word} is not like dev=1000")
        if limits.setdefault(split, int(number)) != int(number):
            raise DataError(f"--first has {split}={limits[split]} and {word}; give one of them")
    return limits


def add_scene_graphs_flag(command: argparse.ArgumentParser) -> None:
    """Adds --scene-graphs."""
    command.add_argument(
        "--scene-graphs",
        type=Path,
        metavar="FILE.jsonl",
        help="relations among objects; python -m data_pipeline.convert_graphs makes one of SGM's",
    )


def scene_graphs_of(args: argparse.Namespace) -> SceneGraphs | None:
    """The graphs that this flag asks for."""
    return SceneGraphs(args.scene_graphs) if args.scene_graphs else None


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; give a number from 0 to 1")
    return value
