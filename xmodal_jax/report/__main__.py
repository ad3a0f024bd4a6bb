"""Reports on saved scores of any code, and comparisons of reports.

  python -m xmodal_jax.report evaluate scores.npz --out report
  python -m xmodal_jax.report evaluate scores.npz --protocol 5fold --out report
  python -m xmodal_jax.report evaluate --i2t i2t.run --t2i t2i.run --qrels t2i.qrels --out report
  python -m xmodal_jax.report compare reportA reportB reportC --out comparison

evaluate prints R@1/5/10, median and mean rank, MRR, mAP@R, R-precision, NDCG@25 and rsum with their
95 % intervals, and writes report.html, report.json, queries_i2t.csv and queries_t2i.csv (a line for
each query) and queries.npz (for compare) into --out. `--mode=evaluate` of xmodal_jax.main writes
the same into the workdir of a run.

compare tests every pair of reports on the same split: a paired randomisation test by images, with
Holm's correction for all pairs and figures. What is not significant is not marked. Reports of run
files are paired by the names of their queries, and compared with such only.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from xmodal_jax.errors import UserError, exit_code
from xmodal_jax.metrics.measures import TOP
from xmodal_jax.metrics.parts import Part
from xmodal_jax.metrics.ranking import PROTOCOLS
from xmodal_jax.report.build import Options, build_report
from xmodal_jax.report.collection import Collection
from xmodal_jax.report.comparison import FIGURES, Run, compare, make_run
from xmodal_jax.report.files import read_report, write_whole
from xmodal_jax.report.matrices import read_scores
from xmodal_jax.report.page import render_comparison
from xmodal_jax.report.pictures import Pictures
from xmodal_jax.report.relevance import corrected_of, relevances_of
from xmodal_jax.report.terminal import render, render_markdown
from xmodal_jax.report.terminal import render_comparison as comparison_table
from xmodal_jax.report.trec import TrecRuns
from xmodal_jax.report.write import write_report

_SCORES = """the scores (.npz, read without pickles) hold

  scores             [images, captions], higher is better
  scores_t2i         [captions, images], if that direction has scores of its own
  image_ids          [images] whole numbers     } without them the captions of an image stand
  caption_image_ids  [captions] the image of it } together, the same number of each image
  captions           [captions] texts: for NDCG@25 with ROUGE-L, lengths and examples
  image_names        [images] file names: for pictures, and COCO's corrected ground truth

for example: numpy.savez("scores.npz", scores=s, captions=numpy.array(texts))
A run of TREC may leave out targets: they count as equal, behind all that it has."""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m xmodal_jax.report", description=__doc__, formatter_class=raw
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "evaluate",
        help="a report on saved scores or TREC runs",
        epilog=_SCORES,
        formatter_class=raw,
    )
    one.add_argument("scores", nargs="?", type=Path, metavar="SCORES.npz")
    one.add_argument("--i2t", type=Path, metavar="RUN", help="TREC run: images find captions")
    one.add_argument("--t2i", type=Path, metavar="RUN", help="TREC run: captions find images")
    one.add_argument(
        "--qrels", type=Path, metavar="QRELS", help="of --t2i: which image each caption is of"
    )
    one.add_argument("--out", type=Path, metavar="DIR", help="where the files go (default: none)")
    one.add_argument("--name", default="", help="of the run, for titles (default: of the file)")
    one.add_argument(
        "--protocol", choices=PROTOCOLS, default="full", help="5fold: COCO 1K (default: full)"
    )
    one.add_argument(
        "--corrected",
        action=argparse.BooleanOptionalAction,
        help="ECCV Caption and CxC, for COCO's test split (default: where the images are that)",
    )
    one.add_argument("--rouge", type=Path, metavar="FILE", help="relevances, instead of computing")
    one.add_argument("--spice", type=Path, metavar="FILE", help="relevances of the TERAN reference")
    one.add_argument(
        "--teran-parity", action="store_true", help="also what the TERAN reference would print"
    )
    one.add_argument("--images", type=Path, metavar="DIR", help="image files, for the examples")
    one.add_argument(
        "--trec",
        type=int,
        default=0,
        metavar="DEPTH",
        help="also write runs of so many targets for each query, and qrels",
    )
    one.add_argument(
        "--ensemble",
        nargs="+",
        default=(),
        metavar="RUN",
        help="the scores are those of these runs together; the report says so everywhere",
    )
    many = commands.add_parser("compare", help="tests between reports of one split")
    many.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="directory of one")
    many.add_argument(
        "--seeds",
        action="store_true",
        help="reports that lie in .../RUN/SEED/REPORT are seeds of RUN: mean ± deviation",
    )
    many.add_argument(
        "--figures",
        default=",".join(FIGURES),
        metavar="NAME,NAME",
        help="figures to test, as report.json names them; each adds to the correction",
    )
    many.add_argument("--out", type=Path, metavar="DIR", help="for comparison.html and .json")
    many.add_argument(
        "--markdown",
        action="store_true",
        help="print the runs as a Markdown table, with 95 %% intervals and without the tests",
    )
    return parser


@dataclasses.dataclass(frozen=True)
class _Input:
    name: str
    collection: Collection
    parts: Iterator[Part]
    runs: TrecRuns | None = None


def _read(args: argparse.Namespace) -> _Input:
    runs = (args.i2t, args.t2i, args.qrels)
    if (args.scores is None) == (runs == (None, None, None)):
        raise UserError("give SCORES.npz, or --i2t, --t2i and --qrels")
    if args.scores is not None:
        found = read_scores(args.scores)
        return _Input(args.scores.stem, found.collection, found.parts(args.protocol))
    if None in runs:
        raise UserError("runs of TREC need all of --i2t, --t2i and --qrels")
    if args.protocol != "full":
        raise UserError(f"--protocol={args.protocol} is for score matrices; runs have no folds")
    trec = TrecRuns(*runs)
    return _Input(args.t2i.stem, trec.collection, trec.parts(), trec)


def _evaluate(args: argparse.Namespace) -> None:
    if args.trec < 0:
        raise UserError(f"--trec={args.trec}; give 1 or more, 100 is usual")
    if args.trec and not args.out:
        raise UserError(f"--trec={args.trec} writes files; give --out too")
    source = _read(args)
    collection = source.collection
    relevances, notes = relevances_of(collection, args.rouge, args.spice)
    split, more = corrected_of(collection, args.protocol, args.corrected)
    options = Options(relevances, split, args.teran_parity, max(TOP, args.trec))
    about = {
        "name": args.name or source.name,
        "protocol": args.protocol,
        "images": len(collection.image_ids),
        "captions": len(collection.caption_image_ids),
    }
    if args.ensemble:
        about |= {"ensemble": True, "members": list(args.ensemble)}
    pictures = Pictures(args.images, collection.image_names) if args.images else None
    report = build_report(source.parts, collection, options, about, [*notes, *more])
    if source.runs is not None:
        depths = ", ".join(f"{side} {depth}" for side, depth in source.runs.depths.items())
        text = f"of run files, with at least so many targets for each query: {depths}; all others "
        text += "count as equal, behind these"
        report = dataclasses.replace(report, notes=(*report.notes, text))
    print(render(report))
    if args.out:
        write_report(args.out, report, pictures=pictures, trec=args.trec)
        print(f"written to {args.out}; open {args.out / 'report.html'}")


def _short(paths: Sequence[Path]) -> list[str]:
    """The paths without what all of them begin and end with."""
    parts = [path.absolute().parts for path in paths]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({own[0] for own in parts}) == 1:
        parts = [own[1:] for own in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    return ["/".join(own) for own in parts]


def _runs(args: argparse.Namespace) -> list[Run]:
    groups: dict[str, list[Path]] = {}
    # With seeds a report lies in RUN/SEED/REPORT.
    named = [path.absolute().parents[1] if args.seeds else path for path in args.reports]
    short = dict(zip(dict.fromkeys(named), _short(list(dict.fromkeys(named))), strict=True))
    for path, whose in zip(args.reports, named, strict=True):
        groups.setdefault(short[whose], []).append(path)
    for name, paths in groups.items():
        if len({path.resolve() for path in paths}) < len(paths):
            raise UserError(f"{name} is given twice; give each report once")
        if args.seeds and len({path.resolve().parent for path in paths}) < len(paths):
            raise UserError(f"{name} has two reports of one seed; give one of each, all of a kind")
    return [make_run(name, [read_report(p) for p in paths]) for name, paths in groups.items()]


def _compare(args: argparse.Namespace) -> None:
    runs = _runs(args)
    if len(runs) < 2:
        raise UserError(f"a comparison needs at least 2 runs, not {len(runs)}; give more reports")
    differences = compare(runs, [name for name in args.figures.split(",") if name])
    print((render_markdown if args.markdown else comparison_table)(runs, differences))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        rows = [dataclasses.asdict(d) | {"significant": d.significant} for d in differences]
        content = {"differences": rows, "correction": "Holm", "test": "paired randomisation"}
        write_whole(args.out / "comparison.json", json.dumps(content, indent=2) + "\n")
        write_whole(args.out / "comparison.html", render_comparison(runs, differences))
        print(f"written to {args.out}; open {args.out / 'comparison.html'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a report or a comparison; returns the exit code."""
    args = _parser().parse_args(argv)
    command = _evaluate if args.command == "evaluate" else _compare
    return exit_code(lambda: command(args))


if __name__ == "__main__":
    sys.exit(main())
