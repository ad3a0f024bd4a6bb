"""Writes all files of a report into a directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from xmodal_jax.matched_words import Alignment
from xmodal_jax.report.content import Report
from xmodal_jax.report.drawings import Pair
from xmodal_jax.report.files import PAGE, write_csv, write_json, write_queries, write_whole
from xmodal_jax.report.page import render_page
from xmodal_jax.report.pictures import Pictures
from xmodal_jax.report.trec import write_trec


def write_report(
    directory: Path,
    report: Report,
    *,
    pictures: Pictures | None = None,
    alignments: Mapping[str, Sequence[str]] | None = None,
    shown: Mapping[Pair, Alignment] | None = None,
    trec: int = 0,
) -> None:
    """Writes the page, JSON, what every query found, and if wanted runs and qrels.

    Args:
      directory: made if it is not there.
      report: as `build_report` makes it.
      pictures: of the images, for the examples.
      alignments: further columns of captions in the CSV file, such as their words and regions.
      shown: words and regions of the pairs that the page shows.
      trec: also write `{i2t,t2i}.{run,qrels}`, with so many targets for each query; 0 for neither.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_queries(directory, report)
    write_csv(directory, report, alignments)
    if trec:
        write_trec(directory, report, trec)
    write_whole(directory / PAGE, render_page(report, pictures, shown))
    write_json(directory, report)  # last: with it the report is whole
