"""A table of the best evaluation of several runs, from their metric logs.

  python -m xmodal_jax.results runs/demo-mean_pooled runs/demo
  python -m xmodal_jax.results runs/flickr8k --split test --markdown
  python -m xmodal_jax.results runs/demo/*/seed* --split test --group --columns rsum

Without --split the step with the highest validation rsum is shown; with it, what
`--mode=evaluate` wrote for that split, scored as the run is configured, or as --scoring says. With
--group the runs in one directory, which may differ in their seed only, become one row: mean ±
sample standard deviation over the seeds.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal_jax import run_record
from xmodal_jax.errors import UserError, exit_code
from xmodal_jax.scoring import evaluation_path, report_path, scoring_name

COLUMNS = ("i2t/r1", "i2t/r5", "i2t/r10", "t2i/r1", "t2i/r5", "t2i/r10", "rsum", "pointing")


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation: of a run, or of an ensemble, which has members and no step."""

    path: Path  # workdir, or the file of an ensemble
    split: str
    metrics: dict[str, float]
    step: int | None = None
    scoring: str = ""
    members: tuple[str, ...] = ()


def best_of_log(workdir: Path) -> Result:
    """The evaluation with the highest rsum in a run's log."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{workdir} is not the workdir of a run: it has no metrics.jsonl")
    # A run that is still writing, or was killed, may leave a last line that is not whole.
    lines = path.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    found = [(k, row) for row in rows for k in row if k.endswith("/rsum")]
    if not found:
        raise UserError(f"{path} has no evaluation yet; train to train.evaluate_every at least")
    key, row = max(found, key=lambda item: item[1][item[0]])
    split = key.split("/")[0]
    metrics = {k.removeprefix(split + "/"): v for k, v in row.items()}
    return Result(workdir, split, metrics, row["step"], _configured_scoring(workdir))


def of_evaluation(workdir: Path, split: str, protocol: str, scoring: str = "") -> Result:
    """What `--mode=evaluate` wrote for a split; scored as the run is configured, or as is said."""
    scoring = scoring or _configured_scoring(workdir)
    path = evaluation_path(workdir, split, protocol, scoring)
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; run main with --workdir={workdir} --mode=evaluate "
            f"--config.evaluate.split={split}"
        )
    content = json.loads(path.read_text())
    metrics = _report_values(report_path(workdir, split, protocol, scoring)) | content["metrics"]
    return Result(workdir, split, metrics, content["step"], scoring)


def _report_values(directory: Path) -> dict[str, float]:
    """What the report says beside; older evaluations have none."""
    path = directory / "report.json"
    found = json.loads(path.read_text())["figures"] if path.is_file() else {}
    return {name: figure["value"] for name, figure in found.items()}


def of_ensemble(path: Path, split: str | None, protocol: str) -> Result:
    """What an evaluation of several runs together wrote."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON; give workdirs, or evaluations of ensembles"
        ) from error
    if not isinstance(content, dict) or content.get("ensemble") is not True:
        raise UserError(f"{path} is not the evaluation of an ensemble; give the workdir of a run")
    found = content["split"], content["protocol"]
    if split and found != (split, protocol):
        raise UserError(f"{path} is of {' '.join(found)}, not of {split} {protocol}")
    members = tuple(content["members"])
    return Result(path, content["split"], content["metrics"], scoring="exact", members=members)


def read(path: Path, split: str | None, protocol: str, scoring: str = "") -> Result:
    """The result of a workdir, or of an ensemble's file.

    Raises:
      UserError: there is none, or it is of another split or protocol than is asked for.
    """
    if path.is_file():
        return of_ensemble(path, split, protocol)
    return of_evaluation(path, split, protocol, scoring) if split else best_of_log(path)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The paths without the directory that all are in: `teran/seed0` and `vse/seed0`."""
    paths = [path.absolute() for path in paths]
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [str(path.relative_to(shared)) for path in paths]


def _ensemble_name(result: Result) -> str:
    return "ensemble: " + " + ".join(short_names([Path(name) for name in result.members]))


def choose_columns(results: Sequence[Result], wanted: Sequence[str] = ()) -> list[str]:
    """The metrics to show: those wanted, by default those of COLUMNS that any result has.

    Raises:
      UserError: no result has a wanted one.
    """
    present = {name for result in results for name in result.metrics}
    for name in wanted:
        if name not in present:
            raise UserError(f"column {name!r} is in no result; use {', '.join(sorted(present))}")
    return list(wanted) or [name for name in COLUMNS if name in present]


def table(results: Sequence[Result], columns: Sequence[str]) -> list[list[str]]:
    """Cells, a row for each result: name, split, step, metrics."""
    runs = [result for result in results if not result.members]
    names = iter(short_names([result.path for result in runs]))
    cells = [["run", "split", "step", *columns]]
    for result in results:
        name = _ensemble_name(result) if result.members else next(names)
        step = "" if result.step is None else str(result.step)
        cells.append([name, result.split, step, *_mean_cells([result], columns)])
    return cells


def grouped_table(results: Sequence[Result], columns: Sequence[str]) -> list[list[str]]:
    """Cells, a row for each directory of runs that differ in their seed only, and each ensemble.

    Raises:
      UserError: runs of one directory differ in anything else.
    """
    groups: dict[Path, list[Result]] = {}
    for result in results:
        key = result.path if result.members else result.path.absolute().parent
        groups.setdefault(key, []).append(result)
    directories = [key for key, group in groups.items() if not group[0].members]
    names = iter(short_names(directories))
    cells = [["run", "kind", "parameters", "minutes", "scoring", "seeds", *columns]]
    for group in groups.values():
        if group[0].members:
            first = [_ensemble_name(group[0]), "", "", "", group[0].scoring, ""]
        else:
            _check_seeds([result.path for result in group])
            scorings = "/".join(sorted({result.scoring for result in group}))
            first = [next(names), *_record_cells(group), scorings, str(len(group))]
        cells.append(first + _mean_cells(group, columns))
    return cells


def _check_seeds(workdirs: Sequence[Path]) -> None:
    """Raises a UserError unless the runs differ in their seeds, all of them, and nothing else."""
    # Late, so that a table without groups needs no JAX.
    from flax.traverse_util import flatten_dict

    seen: dict[Any, Path] = {}
    expected = None
    for workdir in workdirs:
        fields = flatten_dict(_read_config(workdir), sep=".")
        seed = fields.pop("seed")
        expected = expected or fields
        for name in sorted(fields.keys() | expected.keys()):
            if name.startswith("evaluate.") and (name not in fields or name not in expected):
                continue  # newer than one of the runs, and nothing that training depends on
            here, there = fields.get(name), expected.get(name)
            if here != there:
                raise UserError(
                    f"{workdir} has {name}={here!r}, but {workdirs[0]} has {there!r}: runs of one "
                    "directory may differ in their seed only; move one, or leave out --group"
                )
        if seed in seen:
            raise UserError(f"{workdir} and {seen[seed]} both have seed={seed}; give one of them")
        seen[seed] = workdir


def _read_config(workdir: Path) -> dict[str, Any]:
    """As it was written: `workdir.read_config` needs JAX, and adds fields the run had not."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not the workdir of a run: it has no config.json")
    return json.loads(path.read_text())


def _configured_scoring(workdir: Path) -> str:
    """By config.json, where there is one: a log alone still makes a row."""
    found = (workdir / "config.json").is_file()
    return scoring_name(_read_config(workdir).get("evaluate", {})) if found else "exact"


def _record_cells(group: Sequence[Result]) -> list[str]:
    """Kind, parameters and mean minutes of training, each empty where it was not recorded."""
    records = [run_record.read(result.path) for result in group]
    kinds = {record["kind"] for record in records if "kind" in record}
    sizes = {record["parameters"] for record in records if "parameters" in record}
    # Of all, or of none: null where an earlier part of the run was not timed.
    minutes = [record["train_seconds"] / 60 for record in records if record.get("train_seconds")]
    return [
        "/".join(sorted(kinds)),
        "/".join(f"{size:,}" for size in sorted(sizes)),
        f"{statistics.mean(minutes):.1f}" if len(minutes) == len(group) else "",
    ]


def _mean_cells(group: Sequence[Result], columns: Sequence[str]) -> list[str]:
    """The mean of each metric, with its spread if there are several; empty if one has it not."""
    cells = []
    for name in columns:
        values = [result.metrics[name] for result in group if name in result.metrics]
        text = f"{statistics.mean(values):.1f}" if len(values) == len(group) else ""
        cells.append(f"{text} ± {statistics.stdev(values):.1f}" if text and values[1:] else text)
    return cells


def render(cells: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Cells as aligned lines, names to the left, or as a Markdown table."""
    if markdown:
        rows = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    pad = lambda i, cell: cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i])
    return "\n".join("  ".join(pad(i, cell) for i, cell in enumerate(row)) for row in cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="workdir, or evaluation of an ensemble"
    )
    parser.add_argument("--split", help="show what --mode=evaluate found on this split")
    parser.add_argument("--protocol", default="full", help="of that evaluation (default: full)")
    parser.add_argument(
        "--scoring",
        default="",
        metavar="exact|pooled|rerankK",
        help="of that evaluation (default: as the run is configured)",
    )
    parser.add_argument("--group", action="store_true", help="one row for the seeds in a directory")
    parser.add_argument(
        "--columns",
        default="",
        metavar="NAME,NAME",
        help="metrics to show, e.g. i2t/r1,t2i/r1,rsum (default: recalls, rsum, pointing)",
    )
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    found = [read(path, args.split, args.protocol, args.scoring) for path in args.paths]
    columns = choose_columns(found, [name for name in args.columns.split(",") if name])
    cells = grouped_table(found, columns) if args.group else table(found, columns)
    print(render(cells, args.markdown))


if __name__ == "__main__":
    sys.exit(main())
