"""Evaluates several trained runs together: the mean of their score matrices.

  python -m xmodal_jax.ensemble runs/coco-i2t runs/coco-t2i --split test
  python -m xmodal_jax.ensemble runs/coco-* --split test --protocol 5fold --out both.json
  python -m xmodal_jax.ensemble runs/scan runs/vse --split test --standardize

Each run comes with its own configuration and its best checkpoint, so that models and sizes may
differ; data set and split must be the same. Runs are handled one after another: one model is in
memory at a time. Every pair is scored by the model's own score, whatever evaluate.rerank_top_k and
evaluate.score say; for pair models, which need both items at once, that may take long.

Published ensembles take the plain mean. Where one model sums over words and the other gives a
cosine, the first decides alone: --standardize divides each matrix by its standard deviation.

The result is written as JSON, which `python -m xmodal_jax.results FILE.json WORKDIR...` reads.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from configs import common
from xmodal_jax.errors import UserError, exit_code
from xmodal_jax.metrics.ranking import PROTOCOLS
from xmodal_jax.report.collection import Collection
from xmodal_jax.report.files import PAGE
from xmodal_jax.results import short_names
from xmodal_jax.workdir import has_checkpoint, read_config, write_json

# Standard deviations further apart than this are warned of.
_SIMILAR_SCALES = 3.0
_BLOCK_SCORES = 2**20  # that are held in float64 at once
_LONGEST_NAME = 200  # characters; file systems take 255 bytes


@dataclasses.dataclass(frozen=True)
class Member:
    """A run's scores [I, C] on the split, and the image ids [I] and [C] of its sides."""

    workdir: Path
    dataset: str
    step: int
    kind: str
    scores: np.ndarray
    image_ids: np.ndarray
    caption_image_ids: np.ndarray
    collection: Collection | None = None  # file names and captions, if they are known


def score_member(workdir: Path, split: str, protocol: str) -> Member:
    """Scores a split with the best parameters of a run.

    Raises:
      UserError: the split or the protocol does not fit, or what the run needs is not here.
    """
    # Late, so that --help answers at once.
    import jax

    from xmodal_jax.evaluate import restore_best
    from xmodal_jax.evaluators.retrieval import RetrievalEvaluator
    from xmodal_jax.experiment import Experiment
    from xmodal_jax.run_report import collection_of

    config = read_config(workdir)
    config.evaluate.update(split=split, protocol=protocol, pointing=False)
    config.evaluate.update(probes=False, entities="", score="model", rerank_top_k=0)
    # Placement is this machine's affair and not that of the one which trained.
    config.mesh.update(data=-1, model=1)
    config.partition_rules = ()
    devices = jax.device_count()
    for section in (config.train, config.evaluate):
        section.batch_size = -(-section.batch_size // devices) * devices
    experiment = Experiment.create(config.lock())
    step, params = restore_best(experiment, workdir)
    [evaluator] = experiment.evaluators(progress=True)
    assert isinstance(evaluator, RetrievalEvaluator)
    found = evaluator.scored_split(params)
    return Member(
        workdir,
        config.data.name,
        step,
        experiment.model.kind,
        found.scores,
        found.image_ids,
        found.caption_image_ids,
        collection_of(experiment.dataset, split),
    )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _check_same_data(member: Member, first: Member) -> None:
    """Raises a UserError unless both have the same images and captions in the same order."""
    for what in ("image_ids", "caption_image_ids"):
        ours, theirs = getattr(member, what), getattr(first, what)
        if not np.array_equal(ours, theirs):
            side = "images" if what == "image_ids" else "captions"
            raise UserError(
                f"{member.workdir} (data set {member.dataset!r}, {len(ours)} {side}) and "
                f"{first.workdir} ({first.dataset!r}, {len(theirs)} {side}) have not the same "
                f"{side} in this split; leave one out"
            )
    if member.dataset != first.dataset:
        _warn(
            f"{member.workdir} is of data set {member.dataset!r}, {first.workdir} of "
            f"{first.dataset!r}; their ids agree, make sure that their images and captions do"
        )


def _rows(scores: np.ndarray) -> Iterator[slice]:
    """Blocks of rows that are small beside the whole."""
    size = max(1, _BLOCK_SCORES // max(1, scores.shape[1]))
    return (slice(start, start + size) for start in range(0, len(scores), size))


def _deviation(member: Member) -> float:
    """Standard deviation in float64, of which a copy of all scores would take gigabytes."""
    scores = member.scores
    mean = sum(float(scores[rows].sum(dtype=np.float64)) for rows in _rows(scores)) / scores.size
    squares = (float(np.square(scores[rows] - np.float64(mean)).sum()) for rows in _rows(scores))
    value = float(np.sqrt(sum(squares) / scores.size))
    if not np.isfinite(value):
        raise UserError(f"{member.workdir} gives scores that are not finite; leave it out")
    return value


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The mean scores [I, C] of several runs, the runs without theirs, and how those varied."""

    scores: np.ndarray
    members: list[Member]
    deviations: list[float]


def mean_scores(members: Iterable[Member], *, standardize: bool = False) -> Ensemble:
    """The mean of the members' scores, in float32; only one member's are held beside it.

    Args:
      members: at least one; may be made one by one.
      standardize: divide each matrix by its standard deviation first.

    Raises:
      UserError: members have other images or captions, or scores that can't be averaged.
    """
    total = np.empty(0)
    out = Ensemble(np.empty(0), [], [])
    for member in members:
        out.members.append(dataclasses.replace(member, scores=np.empty(0)))
        _check_same_data(member, out.members[0])
        deviation = _deviation(member)
        if standardize and deviation == 0:
            raise UserError(f"{member.workdir} gives every pair the same score; leave it out")
        if len(out.members) == 1:
            total = np.zeros(member.scores.shape, np.float32)
        for rows in _rows(total):
            total[rows] += member.scores[rows] / np.float64(deviation if standardize else 1)
        out.deviations.append(deviation)
        del member  # or its scores would stay until the next ones are there
    total /= len(out.members)
    return dataclasses.replace(out, scores=total)


def _warn_of_scales(names: Sequence[str], deviations: Sequence[float]) -> None:
    large, small = int(np.argmax(deviations)), int(np.argmin(deviations))
    if deviations[large] > _SIMILAR_SCALES * deviations[small]:
        _warn(
            f"scores of {names[large]} vary far more (standard deviation "
            f"{deviations[large]:.3g}) than those of {names[small]} ({deviations[small]:.3g}), "
            "which hardly count; add --standardize"
        )


def _output_path(args: argparse.Namespace, names: Sequence[str]) -> Path:
    """Where the result goes: by default beside the runs, with all their names."""
    if args.out:
        path = args.out
    else:
        joined = "+".join(name.replace(os.sep, "-") for name in names)
        suffix = "_standardized" if args.standardize else ""
        name = f"ensemble_{joined}_{args.split}_{args.protocol}{suffix}.json"
        if len(name.encode()) > _LONGEST_NAME:
            raise UserError(f"the names of {len(names)} runs make a long file name; give --out")
        parents = [str(workdir.absolute().parent) for workdir in args.workdirs]
        path = Path(os.path.commonpath(parents)) / name
    if path.is_dir():
        raise UserError(f"--out={path} is a directory; give a file name")
    # Now, and not when everything is computed.
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _check_workdirs(workdirs: Sequence[Path]) -> None:
    """Raises a UserError unless all are different trained runs, two at least."""
    if len(workdirs) < 2:
        raise UserError(f"an ensemble needs at least 2 runs, not {len(workdirs)}; give more")
    seen = set()
    for workdir in workdirs:
        read_config(workdir)
        if not has_checkpoint(workdir):
            raise UserError(f"{workdir} has no checkpoint; train it first, or leave it out")
        if workdir.resolve() in seen:
            raise UserError(f"{workdir} is given twice; give each run once")
        seen.add(workdir.resolve())


def run(args: argparse.Namespace) -> None:
    """Scores the members, prints the table and writes the file.

    Raises:
      UserError: the runs do not make an ensemble.
    """
    from xmodal_jax.evaluate import short_metrics
    from xmodal_jax.metrics.parts import parts_of
    from xmodal_jax.report.terminal import render
    from xmodal_jax.run_report import run_report

    _check_workdirs(args.workdirs)
    names = short_names(args.workdirs)
    path = _output_path(args, names)

    def scored() -> Iterator[Member]:
        for number, (workdir, name) in enumerate(zip(args.workdirs, names, strict=True), 1):
            print(f"[{number}/{len(names)}] {name}", flush=True)
            yield score_member(workdir, args.split, args.protocol)

    found = mean_scores(scored(), standardize=args.standardize)
    if not args.standardize:
        _warn_of_scales(names, found.deviations)
    ids = found.members[0].image_ids, found.members[0].caption_image_ids
    scoring = "mean of scores"
    if args.standardize:
        scoring += ", each divided by its standard deviation"
    print(f"ensemble of {len(names)} runs: {' + '.join(names)}")
    print(f"{args.split} split, protocol {args.protocol}, {scoring}")
    members = [str(workdir) for workdir in args.workdirs]
    about = {"name": f"ensemble of {' + '.join(names)}, {args.split} split", "ensemble": True}
    about |= {"members": members, "scoring": scoring, "data": found.members[0].dataset}
    about |= {"split": args.split, "protocol": args.protocol}
    directory = path.with_name(path.stem + "_report")
    section = common.get_config().evaluate
    section.protocol = args.protocol
    collection = found.members[0].collection or Collection(*ids)
    parts = parts_of(found.scores, *ids, args.protocol)
    report = run_report(section, collection, parts, about, directory)
    metrics = short_metrics(report.metrics())
    print(render(report))
    content = {
        "ensemble": True,
        "members": members,
        "steps": [member.step for member in found.members],
        "kinds": [member.kind for member in found.members],
        "standard_deviations": found.deviations,
        "split": args.split,
        "protocol": args.protocol,
        "scoring": scoring,
        "metrics": metrics,
    }
    write_json(path, content)
    print(f"written to {path} and {directory}; open {directory / PAGE}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workdirs", nargs="+", type=Path, metavar="WORKDIR", help="of a trained run; two or more"
    )
    parser.add_argument("--split", required=True, help="split to evaluate, such as test")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="full", help="5fold: COCO 1K (default: full)"
    )
    parser.add_argument(
        "--standardize",
        action="store_true",
        help="divide each run's scores by their standard deviation first",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="result (default: ensemble_RUN+RUN_SPLIT_PROTOCOL.json beside the runs)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates an ensemble; returns the exit code."""
    args = _parser().parse_args(argv)
    # The libraries report every file they read at INFO.
    logging.set_verbosity(logging.WARNING)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
