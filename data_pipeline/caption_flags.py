"""The flags of every program whose captions come in files of their own, and what they ask for."""

import argparse
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.sources.captions import Splits, first, read_captions


def add_caption_flags(command: argparse.ArgumentParser) -> None:
    """Adds --captions, --restval, --dev, --test and --first."""
    command.add_argument(
        "--captions",
        nargs="+",
        required=True,
        metavar="[SPLIT=]PATH",
        help="Karpathy's JSON (also .gz); COCO's captions JSON, each as SPLIT=PATH; a CSV, TSV or "
        "JSONL table with the columns image, caption and, if you have them, split and image_id; "
        "or a directory with the caption ids of VSE++ (coco_train_ids.npy ...) beside COCO's JSON",
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
        split, path = word.split("=", 1) if "=" in word else (None, word)
        found = read_captions(Path(path), split=split, restval=args.restval, held_out=held_out)
        for name, items in found.items():
            if name in splits:
                raise DataError(f"--captions {word} has split {name!r}, and so has one before it")
            splits[name] = items
    limits = [word.partition("=") for word in args.first]
    if wrong := [word for word, limit in zip(args.first, limits, strict=True) if not _fits(limit)]:
        raise DataError(f"--first {wrong[0]} is not like dev=1000")
    return first(splits, {split: int(number) for split, _, number in limits})


def _fits(limit: tuple[str, str, str]) -> bool:
    return limit[2].isascii() and limit[2].isdigit() and int(limit[2]) > 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; give a number from 0 to 1")
    return value
