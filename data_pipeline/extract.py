"""Makes a dataset of your own images: region features by Hugging Face models, then TFRecords.

    python -m data_pipeline.extract IMAGES_DIR --captions captions.csv --name mine \\
        --backbone facebook/dinov2-small

looks up the image files that the captions name in IMAGES_DIR, and writes OUT/extracted/NAME/ (the
features, in parts) and OUT/region_captions/NAME/ (the dataset). It needs PyTorch:
pip install "xmodal_jax[extract]".
"""

import argparse
import importlib.util
import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL

from data_pipeline.caption_flags import (
    add_caption_flags,
    add_scene_graphs_flag,
    captions_of,
    scene_graphs_of,
)
from data_pipeline.errors import DataError
from data_pipeline.extraction import BAD_IMAGES, Budget, Parts, alone, extract, remove_features
from data_pipeline.file_checks import check_name
from data_pipeline.image_files import Search, find_images
from data_pipeline.sources.captions import Splits
from data_pipeline.sources.extracted import ExtractedFeatures, extracted_source, kept
from data_pipeline.sources.scene_graphs import SceneGraphs
from data_pipeline.stopping import Stopped, stoppable

if TYPE_CHECKING:
    from data_pipeline.region_extractors import RegionExtractor

_LARGEST_SIDE = 4096  # of the square that a backbone sees

_HELP = """\
Computes region features of your own images with a Hugging Face vision model, and builds a dataset
of them and their captions that every model here trains on.

The captions file is a table (CSV, TSV or JSONL), one line a caption:

    image,caption
    beach/0001.jpg,"Two dogs run along the water."
    beach/0001.jpg,A brown dog chases a white one.
    0002.png,A man repairs his bicycle.

`image` is a file below IMAGES_DIR. With a column `split` (train, dev, test) you say which images
are kept for validation and test; without one, --dev and --test say how many. The other layouts that
--captions takes name files too; Karpathy's JSON of COCO also their folder, such as val2014.

Regions are the cells of a grid (--grid), each the mean of the backbone's patches there; or, with
--detector, the best boxes of an object detector, whose class names become object labels. Backbones:
any with a map of patches, e.g. facebook/dinov2-small, google/siglip-base-patch16-224,
openai/clip-vit-base-patch16, google/vit-base-patch16-224. Detectors: the DETR family, e.g.
PekingU/rtdetr_r50vd, hustvl/yolos-small. A directory with such a model will do as well.

The work may be stopped at any moment; the same command continues it. Images that are missing or
cannot be read are left out and listed in OUT/extracted/NAME/bad_images.txt. An image that was
added is extracted by the next run, one that was replaced by another of another size in bytes
together with those of its part; all other features are kept. The dataset itself is built anew with
--overwrite.
"""

_EXAMPLES = """\
examples:
    python -m data_pipeline.extract photos --captions captions.csv --name mine \\
        --backbone facebook/dinov2-small
    python -m data_pipeline.extract photos --captions captions.csv --name mine \\
        --backbone facebook/dinov2-base --detector PekingU/rtdetr_r50vd --regions 36
"""


def _extractor(args: argparse.Namespace) -> "RegionExtractor":
    # TensorFlow and PyTorch take seconds to import; --help and mistakes in captions don't wait.
    if importlib.util.find_spec("torch") is None:
        raise DataError('extracting features needs PyTorch: pip install "xmodal_jax[extract]"')
    import torch

    from data_pipeline.backbones import Backbone, Detector
    from data_pipeline.region_extractors import DetectedRegions, GridRegions

    if args.device == "cuda" and not torch.cuda.is_available():
        raise DataError("--device=cuda, and PyTorch finds no GPU; use --device=cpu")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if args.device == "auto" else args.device)
    backbone = Backbone(args.backbone, args.image_size, device)
    if not args.detector:
        return GridRegions(backbone, args.grid)
    return DetectedRegions(
        backbone, Detector(args.detector, device), args.regions, args.least_score
    )


def _settings(extractor: "RegionExtractor") -> dict[str, Any]:
    """What settings.json holds; everything but where the models lie has to stay the same."""
    import torch
    import transformers

    return extractor.settings | {
        "feature_width": extractor.width,
        "labels": extractor.labels,
        "torch": torch.__version__.split("+")[0],  # without the kind of machine it was built for
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }


def _search(directory: Path, captions: Splits) -> Search:
    if not directory.is_dir():
        raise DataError(f"IMAGES_DIR={directory} is no directory; give the one with the images")
    # In the order in which the dataset is written: it then reads each part once.
    folders = {i.file_name: i.folder for items in captions.values() for i in items}
    search = find_images(directory, folders, folders)
    if not search.files:
        name, reason = next(iter(search.bad.items()))
        raise DataError(
            f"none of the {len(search.bad)} images that have captions is in {directory}, e.g. "
            f"{name!r} ({reason}); give the directory that their names start from"
        )
    return search


def _run(args: argparse.Namespace) -> None:
    check_name(args.name, "--name")
    if "://" in args.out:
        raise DataError(
            f"--out={args.out}: features are kept on a disk; give a directory, and copy its "
            "region_captions to the bucket afterwards"
        )
    captions, graphs = captions_of(args), scene_graphs_of(args)
    for split in captions:
        check_name(split, "split")  # now, and not when all is extracted
    search = _search(args.images, captions)
    directory = Path(args.out) / "extracted" / args.name
    with alone(directory):
        budget = Budget(args.max_bad, directory / BAD_IMAGES)
        try:
            budget.add(search.bad)
            kept(captions, search.files)  # Says it now, and not when all is extracted.
            extractor = _extractor(args)
            settings = json.loads(json.dumps(_settings(extractor)))
            if args.overwrite:
                remove_features(directory, settings)
            parts = Parts(directory, settings, search.files)
            budget.add({name: why for name, why in parts.bad.items() if name in search.files})
            extract(
                search.files,
                extractor,
                parts,
                budget,
                batch_size=args.batch_size,
                part_images=args.part_images,
            )
        finally:
            budget.write()
    found = kept(captions, search.files.keys() - budget.bad.keys())
    _build(args, found, ExtractedFeatures(directory), graphs)
    _report(args, extractor, budget, directory)


def _build(
    args: argparse.Namespace,
    captions: Splits,
    store: ExtractedFeatures,
    graphs: SceneGraphs | None,
) -> None:
    from data_pipeline.build import build, check_counts  # imports TensorFlow

    source = extracted_source(args.name, captions, store, graphs)
    check_counts(source, build(source, args.out, overwrite=args.overwrite))


def _report(
    args: argparse.Namespace, extractor: "RegionExtractor", budget: Budget, directory: Path
) -> None:
    if budget.bad:
        path = directory / BAD_IMAGES
        print(f"{len(budget.bad):,} bad images were left out; {path} says why")
    command = ["python", "-m", "xmodal_jax.main", "--config=configs/own.py"]
    command += [f"--config.data.name={args.name}", f"--workdir=runs/{args.name}"]
    if args.out != "data":
        command.append(f"--config.data.dir={args.out}")
    if extractor.most > 36:  # the configurations' own number
        command.append(f"--config.data.max_regions={extractor.most}")
    print(f"next: train on it:  {shlex.join(command)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.extract",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", type=Path, metavar="IMAGES_DIR", help="where the images are")
    add_caption_flags(parser)
    add_scene_graphs_flag(parser)
    parser.add_argument("--out", default="data", help="where datasets are (default: data)")
    parser.add_argument("--name", required=True, help="the dataset's name, e.g. mine")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an older dataset, and features that were extracted with other settings",
    )
    models = parser.add_argument_group("models and regions")
    models.add_argument("--backbone", required=True, metavar="NAME_OR_DIR", help="of the features")
    models.add_argument(
        "--image-size",
        "--image_size",
        type=_side,
        default=224,
        metavar="PIXELS",
        help="width and height to which images are scaled for the backbone (default: 224)",
    )
    models.add_argument(
        "--grid",
        type=_natural,
        metavar="N",
        help="N x N cells are the regions, or with 0 every patch (default: 6)",
    )
    models.add_argument("--detector", metavar="NAME_OR_DIR", help="whose boxes are the regions")
    models.add_argument(
        "--regions", type=_count, metavar="N", help="best boxes of an image (default: 36)"
    )
    models.add_argument(
        "--least-score", type=_score, metavar="SCORE", help="of a box, 0..1 (default: 0.1)"
    )
    work = parser.add_argument_group("work")
    work.add_argument("--batch-size", "--batch_size", type=_count, default=16, metavar="N")
    work.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    work.add_argument(
        "--max-bad",
        type=_natural,
        default=100,
        metavar="N",
        help="more images than this that are missing or damaged are an error (default: 100)",
    )
    work.add_argument(
        "--part-images",
        type=_count,
        default=256,
        metavar="N",
        help="images in a file, at most; a stop loses the file it is at (default: 256)",
    )
    return parser


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _side(text: str) -> int:
    if (value := _count(text)) > _LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text} is more than {_LARGEST_SIDE} pixels")
    return value


def _score(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no score; give a number from 0 to 1")
    return value


def _natural(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses; flags of the other kind of regions are mistakes, not ignored."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.detector and args.grid is not None:
        parser.error("--grid is without --detector, whose boxes are the regions; leave one out")
    for flag, value in (("--regions", args.regions), ("--least-score", args.least_score)):
        if value is not None and not args.detector:
            parser.error(f"{flag} is of the boxes that a --detector finds; give one")
    defaults = {"grid": 6, "regions": 36, "least_score": 0.1}
    vars(args).update({key: new for key, new in defaults.items() if getattr(args, key) is None})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 after a mistake, told in one line, 128 + n after signal n."""
    args = _arguments(argv)
    # Pillow's remarks on odd metadata; what it cannot read is an error and listed as such.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with stoppable():
            _run(args)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print("stopped; the same command continues where it was", file=sys.stderr)
        return stopped.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
