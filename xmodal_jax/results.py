"""A table of the best evaluation of several runs, from their metric logs.

  python -m xmodal_jax.results runs/demo-mean_pooled runs/demo
  python -m xmodal_jax.results runs/flickr8k --split test --markdown

Without --split the step with the highest validation rsum is shown; with it, what
`--mode=evaluate` wrote for that split.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from xmodal_jax.errors import UserError

COLUMNS = ("i2t/r1", "i2t/r5", "i2t/r10", "t2i/r1", "t2i/r5", "t2i/r10", "rsum", "pointing")


def best_of_log(workdir: Path) -> tuple[str, int, dict[str, float]]:
    """Split, step and metrics of the evaluation with the highest rsum in a run's log."""
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
    return split, row["step"], {k.removeprefix(split + "/"): v for k, v in row.items()}


def of_evaluation(workdir: Path, split: str, protocol: str) -> tuple[str, int, dict[str, float]]:
    """What `--mode=evaluate` wrote for a split."""
    path = workdir / f"evaluation_{split}_{protocol}.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; run --mode=evaluate --config.evaluate.split={split}"
        )
    content = json.loads(path.read_text())
    return split, content["step"], content["metrics"]


def table(rows: Sequence[tuple[str, str, int, dict[str, float]]], markdown: bool = False) -> str:
    """Runs as lines: name, split, step, recalls of both directions, rsum, pointing if known."""
    columns = [c for c in COLUMNS if any(c in values for *_, values in rows)]
    cells = [["run", "split", "step", *columns]]
    for name, split, step, values in rows:
        cells.append(
            [name, split, str(step)] + [f"{values[c]:.1f}" if c in values else "" for c in columns]
        )
    if markdown:
        cells.insert(1, ["---"] * len(cells[0]))
        return "\n".join("| " + " | ".join(row) + " |" for row in cells)
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    pad = lambda i, cell: cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i])
    return "\n".join("  ".join(pad(i, cell) for i, cell in enumerate(row)) for row in cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--split", help="show what --mode=evaluate found on this split")
    parser.add_argument("--protocol", default="full", help="of that evaluation (default: full)")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    args = parser.parse_args(argv)
    rows = []
    try:
        for workdir in args.workdirs:
            found = (
                of_evaluation(workdir, args.split, args.protocol)
                if args.split
                else best_of_log(workdir)
            )
            rows.append((workdir.name, *found))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows, args.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
